"""Bias correction: what rounding a layer's weight adds to its output on average is subtracted from its bias.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2; the mean inputs
are those of calibration samples.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.quantization.int8_layouts import Layout
from compress.quantization.int8_rounding import input_axis, is_unscaled, rounded_weight
from core.onnx_graph import add_initializer, attribute_values, initializer_arrays, watch
from core.sessions import Array, FloatArray, open_graph, run_session

Means = Mapping[str, NDArray[np.float32]]
"""Tensor -> the mean of each of its channels, (C,)."""


def channel_means(proto: onnx.ModelProto, batches: Iterable[tuple[Array, ...]]) -> Means:
    """Return the mean of every channel that a layer reads, over samples and positions.

    Args:
        proto: A float32 graph.
        batches: What it reads, an array (N, ...) for each input.
    """
    tensors = sorted({node.input[0] for node in _layers(proto.graph)})
    watched = deepcopy(proto)
    watch(watched.graph, tensors)
    sums = {tensor: np.zeros(1) for tensor in tensors}
    samples = 0
    session = open_graph(watched)
    for batch in batches:
        samples += len(batch[0])
        for tensor, values in zip(tensors, run_session(session, *batch).values(), strict=True):
            positions = tuple(range(2, values.ndim))
            sums[tensor] = sums[tensor] + values.mean(axis=positions, dtype=np.float64).sum(axis=0)
    return {tensor: (total / max(samples, 1)).astype(np.float32) for tensor, total in sums.items()}


def corrected(proto: onnx.ModelProto, means: Means, layout: Layout, in_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return a float32 graph that, rounded, answers on average as it does unrounded.

    Args:
        proto: The graph.
        means: Of what its layers read.
        layout: How weights are rounded.
        in_float: Names of nodes that are not rounded: their biases stay.
    """
    corrected_proto = deepcopy(proto)
    graph = corrected_proto.graph
    constants = initializer_arrays(graph)
    for node in [layer for layer in _layers(graph) if layer.name not in in_float]:
        weight = constants[node.input[1]]
        change = rounded_weight(weight, node, layout) - weight
        added = _mean_output(node, change, means[node.input[0]])
        before = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(added)
        bias = add_initializer(graph, f"{node.name}/onnxpress/bias", before - added)
        node.input[:] = [*node.input[:2], bias]
    return corrected_proto


def _mean_output(node: onnx.NodeProto, weight: FloatArray, mean: FloatArray) -> FloatArray:
    """Return what a layer with this weight makes of the mean input, (O,), as if images had no borders."""
    if node.op_type == "Gemm":
        return mean @ np.moveaxis(weight, input_axis(node), 0)
    groups = attribute_values(node).get("group", 1)
    summed = weight.sum(axis=tuple(range(2, weight.ndim)))  # (O, C / groups)
    of_group = mean.reshape(groups, -1)[np.arange(len(weight)) // (len(weight) // groups)]
    return np.asarray((summed * of_group).sum(axis=1), np.float32)


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that multiply by a constant weight and add at most a constant bias, (O,)."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
        and node.input[1] in ranks
        and all(ranks.get(tensor) == 1 for tensor in node.input[2:] if tensor)
        and is_unscaled(node)
    ]
