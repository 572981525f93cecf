"""Writes the int8 forms of a float32 file, by ONNX Runtime's quantizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.calibration import Ranges
from compress.int8_layouts import PRODUCTS, Layout
from core.onnx_model import BAKED

TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
PASSING = ("Relu", "Clip", "LeakyRelu", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators whose output keeps the resolution of their input."""
FORMS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
DYNAMIC = ("MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization")
"""Operators whose dynamic form is fast or small: that of a convolution is neither. Gemm becomes MatMul."""
INTEGER_PRODUCTS = (
    *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own, in place: ONNX asks for none, but nodes are excluded and told apart by it."""
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
    """Write a file as calibrating and quantizing need it: all types inferred, weights in Constant nodes lifted."""
    prepared = folder / "prepared.onnx"
    lifted = onnx.ModelProto()
    lifted.CopyFrom(proto)
    _lift_constants(lifted.graph)
    quant_pre_process(lifted, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    return prepared


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, in place; onnx-ir's pass also notes shapes, which rewriting falsifies."""
    for node in [one for one in graph.node if one.op_type == "Constant" and one.attribute[0].name == "value"]:
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
        in_float: Names of graph nodes that stay in float, and, in the ``qdq`` form, read what no rounding has touched.
    """
    known = prepared.with_name("ranges.json")
    baked = [node.name for node in onnx.load(prepared).graph.node if node.name.startswith(BAKED)]
    arrays = {name: tuple(np.float32(one) for one in kept) for name, kept in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, arrays), known)
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
        calibration_cache_path=known,
        extra_options={"QDQKeepRemovableActivations": bool(in_float)},  # a range that begins at zero stands for Relu
    )
    if in_float and layout.form == "qdq":
        made = onnx.load(output)
        _read_unrounded(made.graph, in_float)
        onnx.save(made, output)


def write_dynamic(prepared: Path, output: Path, layout: Layout, in_float: Sequence[str]) -> None:
    """Write the dynamic int8 form of a file: weights are rounded here, activations by their range when it runs.

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
        reduce_range=layout.reduce_range or "LSTM" in operators,  # whose saturation is not simulated
        weight_type=TYPES[layout.weight_type],
        nodes_to_exclude=[*in_float, *(f"{name}_MatMul" for name in in_float)],
    )


def rounds_when_it_runs(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Tell whether the dynamic form makes a node int8: of products, those with a constant matrix only."""
    if node.op_type in ("MatMul", "Gemm"):
        return node.input[1] in {one.name for one in graph.initializer}
    return node.op_type in DYNAMIC


def multiplies_in_int8(graph: onnx.GraphProto) -> bool:
    """Tell whether a file has a product of int8: ONNX Runtime's quantizer passes over what it cannot quantize."""
    restored = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return any(
        node.op_type in INTEGER_PRODUCTS or (node.op_type in PRODUCTS and restored.issuperset(node.input[:2]))
        for node in graph.node
    )


def _read_unrounded(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Let nodes read tensors from before the pairs of QuantizeLinear and DequantizeLinear, in place."""
    maker = {output: node for node in graph.node for output in node.output}
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
    for operator in ("DequantizeLinear", "QuantizeLinear"):  # those that nothing reads any more
        read = {tensor for node in graph.node for tensor in node.input} | {one.name for one in graph.output}
        for node in [one for one in graph.node if one.op_type == operator and one.output[0] not in read]:
            graph.node.remove(node)
