"""Writes the int8 forms of a float32 file, by ONNX Runtime's quantizer."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.quantization.calibration import Ranges
from compress.quantization.int8_layouts import PRODUCTS, Layout
from core.onnx_graph import producers, remove_unread
from core.onnx_model import BAKED

TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
PASSING = ("Relu", "Clip", "LeakyRelu", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators whose output keeps the resolution of their input."""
FORMS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
DYNAMIC = ("MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization")
"""Operators whose dynamic form is fast or small; that of a convolution is neither. Gemm becomes MatMul."""
INTEGER_PRODUCTS = (
    *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own, in place: ONNX requires none, but nodes are excluded and told apart by name."""
    taken = {node.name for node in graph.node}
    seen = {""}
    for index, node in enumerate(graph.node):
        if node.name in seen:
            name = f"{node.name or node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def prepare(proto: onnx.ModelProto, folder: Path) -> Path:
    """Write a file as calibrating and quantizing need it: types inferred, Constant nodes turned into initializers."""
    prepared = folder / "prepared.onnx"
    lifted = deepcopy(proto)
    _lift_constants(lifted.graph)
    quant_pre_process(lifted, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    return prepared


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, in place; onnx-ir's pass also notes shapes, which rewriting falsifies."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        weight = graph.initializer.add()
        weight.CopyFrom(node.attribute[0].t)
        weight.name = node.output[0]
        graph.node.remove(node)


def write_static(prepared: Path, output: Path, ranges: Ranges, layout: Layout, in_float: Sequence[str]) -> None:
    """Write the static int8 form of a file.

    Args:
        prepared: From `prepare`.
        output: The file to make.
        ranges: Of its tensors.
        layout: The form.
        in_float: Names of graph nodes that stay in float; in the ``qdq`` form they read unrounded tensors.
    """
    cache = prepared.with_name("ranges.json")
    baked = [node.name for node in onnx.load(prepared).graph.node if node.name.startswith(BAKED)]
    ends = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ends), cache)
    quantize_static(
        prepared,
        output,
        None,
        quant_format=FORMS[layout.form],
        op_types_to_quantize=list(layout.only) or None,
        per_channel=layout.per_channel,
        reduce_range=layout.reduce_range,
        activation_type=TYPES[layout.activation_type],
        weight_type=TYPES[layout.weight_type],
        nodes_to_exclude=[*in_float, *baked],
        calibration_cache_path=cache,
        # Otherwise a Relu whose range begins at zero is removed, and unrounded tensors would lack it.
        extra_options={"QDQKeepRemovableActivations": bool(in_float)},
    )
    if in_float and layout.form == "qdq":
        proto = onnx.load(output)
        _read_unrounded(proto.graph, in_float)
        onnx.save(proto, output)


def write_dynamic(prepared: Path, output: Path, layout: Layout, in_float: Sequence[str]) -> None:
    """Write the dynamic int8 form of a file: weights are rounded now, activations when it runs, by their range then.

    Args:
        prepared: From `prepare`.
        output: The file to make.
        layout: The form.
        in_float: Names of graph nodes that stay in float.
    """
    operators = {node.op_type for node in onnx.load(prepared).graph.node}
    quantize_dynamic(
        prepared,
        output,
        op_types_to_quantize=list(DYNAMIC),
        per_channel=layout.per_channel,
        reduce_range=layout.reduce_range or "LSTM" in operators,  # saturation of an LSTM is not simulated
        weight_type=TYPES[layout.weight_type],
        nodes_to_exclude=[*in_float, *(f"{name}_MatMul" for name in in_float)],
    )


def rounds_when_it_runs(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Tell whether the dynamic form makes a node int8: of products, only those with a constant matrix."""
    if node.op_type in ("MatMul", "Gemm"):
        return node.input[1] in {tensor.name for tensor in graph.initializer}
    return node.op_type in DYNAMIC


def multiplies_in_int8(graph: onnx.GraphProto) -> bool:
    """Tell whether a graph has an int8 product: ONNX Runtime's quantizer passes over what it cannot quantize."""
    restored = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return any(
        node.op_type in INTEGER_PRODUCTS or (node.op_type in PRODUCTS and restored.issuperset(node.input[:2]))
        for node in graph.node
    )


def _read_unrounded(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Let nodes read tensors from before the pairs of QuantizeLinear and DequantizeLinear, in place."""
    maker = producers(graph)
    waiting = [node for node in graph.node if node.name in names]
    while waiting:
        node = waiting.pop()
        for index, tensor in enumerate(node.input):
            restored = maker.get(tensor)
            rounded = maker.get(restored.input[0]) if restored and restored.op_type == "DequantizeLinear" else None
            if rounded is not None and rounded.op_type == "QuantizeLinear":
                node.input[index] = rounded.input[0]
            before = maker.get(node.input[index])
            if before is not None and before.op_type in PASSING:
                waiting.append(before)
    remove_unread(graph, lambda node: node.op_type in ("DequantizeLinear", "QuantizeLinear"))
