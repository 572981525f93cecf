"""Cross-layer equalization: neighbouring layers share out the range of each channel between them; answers stay.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compress.int8_rounding import input_axis, output_axis

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity")
"""Operators through which a positive factor of a channel passes."""
ROUNDS = 20
SETTLED = 1e-3  # relative change of the factors below which a round was the last


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer, and the only one that reads what it makes; axes are those of the channels they share."""

    first: onnx.NodeProto
    first_axis: int
    second: onnx.NodeProto
    second_axis: int


def equalized(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a graph that answers alike, its channels' ranges equalized, or None where it has no such layers.

    Args:
        proto: A float32 graph, batch norms folded into what they follow.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    constants = {one.name: numpy_helper.to_array(one).copy() for one in made.graph.initializer}
    pairs = list(_pairs(made.graph, constants))
    if not pairs:
        return None
    for _ in range(ROUNDS):
        if max(_equalize(pair, constants) for pair in pairs) < SETTLED:
            break
    changed = {tensor for pair in pairs for node in (pair.first, pair.second) for tensor in node.input[1:]}
    for one in made.graph.initializer:
        if one.name in changed:
            one.CopyFrom(numpy_helper.from_array(constants[one.name], one.name))
    return made


def _equalize(pair: _Pair, constants: Mapping[str, NDArray[np.float32]]) -> float:
    """Scale each shared channel so that both weights reach equally far, in place; return the greatest change."""
    weight, after = constants[pair.first.input[1]], constants[pair.second.input[1]]
    reach, reach_after = _reach(weight, pair.first_axis), _reach(after, pair.second_axis)
    alive = (reach > 0) & (reach_after > 0)
    factor = np.where(alive, np.sqrt(reach / np.where(alive, reach_after, 1)), 1).astype(np.float32)
    weight /= _along(factor, weight, pair.first_axis)
    after *= _along(factor, after, pair.second_axis)
    if len(pair.first.input) > 2 and pair.first.input[2]:
        bias = constants[pair.first.input[2]]
        bias /= factor
    return float(np.abs(factor - 1).max())


def _reach(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.abs(weight).max(axis=tuple(one for one in range(weight.ndim) if one != axis))
    return found


def _along(values: NDArray[np.float32], weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _pairs(graph: onnx.GraphProto, constants: Mapping[str, NDArray[np.float32]]) -> list[_Pair]:
    """Return the layers whose output one other layer alone reads, and through homogeneous operators only."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    answers = {one.name for one in graph.output}
    found = []
    for first in graph.node:
        if not _is_layer(first, constants, readers):
            continue
        last = first
        while True:
            after = readers.get(last.output[0], [])
            if len(after) != 1 or last.output[0] in answers or after[0].input[0] != last.output[0]:
                break
            if after[0].op_type in HOMOGENEOUS:
                last = after[0]
                continue
            if _is_layer(after[0], constants, readers):
                found += _paired(first, after[0], constants)
            break
    return found


def _is_layer(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[np.float32]], readers: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    """Tell whether a node multiplies by a weight, and adds a bias, that it shares with no other."""
    if node.op_type not in ("Conv", "Gemm") or any(tensor not in constants for tensor in node.input[1:] if tensor):
        return False
    plain = all(helper.get_attribute_value(one) == 1 for one in node.attribute if one.name in ("alpha", "beta"))
    return plain and all(len(readers[tensor]) == 1 for tensor in node.input[1:] if tensor)


def _paired(first: onnx.NodeProto, second: onnx.NodeProto, constants: Mapping[str, NDArray[np.float32]]) -> list[_Pair]:
    groups = next((one.i for one in second.attribute if one.name == "group"), 1)
    weight = constants[second.input[1]]
    depthwise = groups > 1 and weight.shape[1] == 1 and groups == len(weight)
    if groups > 1 and not depthwise:
        return []
    pair = _Pair(first, output_axis(first, 2), second, 0 if depthwise else input_axis(second))
    channels = constants[first.input[1]].shape[pair.first_axis]
    bias = [constants[tensor].size for tensor in first.input[2:] if tensor]
    fits = weight.shape[pair.second_axis] == channels and bias in ([], [channels])
    return [pair] if fits else []
