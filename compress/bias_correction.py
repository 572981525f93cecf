"""Bias correction: what rounding a layer's weight adds to its output on average is taken off its bias.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2; the mean inputs
are those of calibration samples.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.int8_layouts import Layout
from compress.int8_rounding import input_axis, rounded_weight
from core.sessions import Array, FloatArray, open_graph, run_session

Means = Mapping[str, NDArray[np.float32]]
"""Tensor -> the mean of each of its channels, (C,)."""


def channel_means(proto: onnx.ModelProto, batches: Iterable[tuple[Array, ...]]) -> Means:
    """Return the mean of every channel that a layer reads, over samples and positions.

    Args:
        proto: A float32 graph.
        batches: What it reads, an array (N, ...) for each input.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    graph = watched.graph
    tensors = sorted({node.input[0] for node in _layers(proto.graph)})
    del graph.output[:]
    for tensor in tensors:
        graph.node.append(helper.make_node("Identity", [tensor], [f"{tensor}/onnxpress/seen"]))
        graph.output.append(helper.make_tensor_value_info(f"{tensor}/onnxpress/seen", TensorProto.FLOAT, None))
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
        in_float: Names of nodes that are not: their biases are right.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in [one for one in _layers(graph) if one.name not in in_float]:
        weight = constants[node.input[1]]
        change = rounded_weight(weight, node, layout) - weight
        added = _mean_output(node, change, means[node.input[0]])
        before = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(added)
        name = f"{node.name}/onnxpress/bias"
        graph.initializer.append(numpy_helper.from_array(before - added, name))
        node.input[:] = [*node.input[:2], name]
    return made


def _mean_output(node: onnx.NodeProto, weight: FloatArray, mean: FloatArray) -> FloatArray:
    """Return what a layer of this weight makes of the mean input, (O,), the borders of images aside."""
    if node.op_type == "Gemm":
        return mean @ np.moveaxis(weight, input_axis(node), 0)
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    summed = weight.sum(axis=tuple(range(2, weight.ndim)))  # (O, C / groups)
    of_group = mean.reshape(groups, -1)[np.arange(len(weight)) // (len(weight) // groups)]
    return np.asarray((summed * of_group).sum(axis=1), np.float32)


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    constants = {one.name: len(one.dims) for one in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
        and node.input[1] in constants
        and all(constants.get(tensor) == 1 for tensor in node.input[2:] if tensor)
        and all(helper.get_attribute_value(one) == 1 for one in node.attribute if one.name in ("alpha", "beta"))
    ]
