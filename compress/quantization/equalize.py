"""Cross-layer equalization: neighbouring layers share the range of each channel evenly; the outputs do not change.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compress.quantization.int8_rounding import input_axis, is_unscaled, output_axis
from core.onnx_graph import attribute_values, consumers, initializer_arrays

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity")
"""Operators through which a positive factor of a channel passes."""
ROUNDS = 20
SETTLED = 1e-3  # relative change of the factors below which a round was the last


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the only one that reads its output, with the axes of their weights that are the shared channels."""

    first: onnx.NodeProto
    first_axis: int
    second: onnx.NodeProto
    second_axis: int


def equalized(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a graph with the same outputs whose channels' ranges are equalized, or None where no layers allow it.

    Args:
        proto: A float32 graph, batch norms folded into the layers before them.
    """
    result = deepcopy(proto)
    constants = {name: values.copy() for name, values in initializer_arrays(result.graph).items()}
    pairs = list(_pairs(result.graph, constants))
    if not pairs:
        return None
    for _ in range(ROUNDS):
        if max(_equalize(pair, constants) for pair in pairs) < SETTLED:
            break
    changed = {tensor for pair in pairs for node in (pair.first, pair.second) for tensor in node.input[1:]}
    for initializer in result.graph.initializer:
        if initializer.name in changed:
            initializer.CopyFrom(numpy_helper.from_array(constants[initializer.name], initializer.name))
    return result


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
    """Return the largest magnitude in each channel of a weight."""
    reach: NDArray[np.float32] = np.abs(weight).max(axis=tuple(other for other in range(weight.ndim) if other != axis))
    return reach


def _along(values: NDArray[np.float32], weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return a value for each channel in the shape that multiplies a weight along its channels."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _pairs(graph: onnx.GraphProto, constants: Mapping[str, NDArray[np.float32]]) -> Iterator[_Pair]:
    """Yield the layers whose output only one other layer reads, with only homogeneous operators between them."""
    readers = consumers(graph)
    answers = {output.name for output in graph.output}
    for first in graph.node:
        if not _is_layer(first, constants, readers):
            continue
        reader = _only_reader(first, readers, answers)
        while reader is not None and reader.op_type in HOMOGENEOUS:
            reader = _only_reader(reader, readers, answers)
        if reader is not None and _is_layer(reader, constants, readers):
            yield from _paired(first, reader, constants)


def _only_reader(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], answers: set[str]
) -> onnx.NodeProto | None:
    """Return the node that alone reads what a node makes, and reads it first, or None where there is no such node."""
    tensor = node.output[0]
    after = readers.get(tensor, [])
    return after[0] if len(after) == 1 and tensor not in answers and after[0].input[:1] == [tensor] else None


def _is_layer(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[np.float32]], readers: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    """Tell whether a node multiplies by a weight and adds a bias that no other node reads."""
    if node.op_type not in ("Conv", "Gemm") or any(tensor not in constants for tensor in node.input[1:] if tensor):
        return False
    return is_unscaled(node) and all(len(readers[tensor]) == 1 for tensor in node.input[1:] if tensor)


def _paired(first: onnx.NodeProto, second: onnx.NodeProto, constants: Mapping[str, NDArray[np.float32]]) -> list[_Pair]:
    """Return the pair of two layers, or nothing where their weights do not share channels one by one."""
    groups = attribute_values(second).get("group", 1)
    weight = constants[second.input[1]]
    depthwise = groups > 1 and weight.shape[1] == 1 and groups == len(weight)
    if groups > 1 and not depthwise:
        return []
    pair = _Pair(first, output_axis(first, 2), second, 0 if depthwise else input_axis(second))
    channels = constants[first.input[1]].shape[pair.first_axis]
    bias_sizes = [constants[tensor].size for tensor in first.input[2:] if tensor]
    fits = weight.shape[pair.second_axis] == channels and bias_sizes in ([], [channels])
    return [pair] if fits else []
