"""Writes the float16 or bfloat16 form of a float32 file; what would overflow in float16 stays in float32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress.quantization.calibration import Ranges
from core.onnx_graph import attribute_values, initializer_arrays, producers, remove_unread

HalfType = Literal["float16", "bfloat16"]
MOST = float(np.finfo(np.float16).max) / 2  # half of the greatest: other samples may reach further than those seen


def overflowing(proto: onnx.ModelProto, ranges: Ranges) -> tuple[str, ...]:
    """Return the names of the nodes that read or make what float16 cannot hold.

    Args:
        proto: A float32 file.
        ranges: Of its tensors.
    """
    greatest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    for name, values in initializer_arrays(proto.graph).items():
        if values.dtype == np.float32 and values.size:
            greatest[name] = float(np.abs(values).max())
    return tuple(
        node.name
        for node in proto.graph.node
        if any(greatest.get(tensor, 0.0) > MOST for tensor in (*node.input, *node.output))
    )


def write_half(prepared: Path, output: Path, half: HalfType, in_float: Sequence[str]) -> None:
    """Write the half-precision form of a file; its inputs and outputs stay float32.

    Args:
        prepared: The float32 file, with the types of all its tensors inferred.
        output: The file to make.
        half: The element type.
        in_float: Names of graph nodes that stay in float32.
    """
    float32 = onnx.load(prepared)
    proto = convert_float_to_float16(
        float32, keep_io_types=True, disable_shape_infer=True, node_block_list=list(in_float)
    )
    _bypass_casts(proto.graph)
    if half == "bfloat16":
        _as_bfloat16(proto.graph, initializer_arrays(onnx.load(prepared).graph))  # the converter changed what it read
    onnx.save(proto, output)


def _bypass_casts(graph: onnx.GraphProto) -> None:
    """Let neighbours in float32 hand tensors to one another as they are, in place.

    The converter casts the output of every node in float32 to float16, and back for the next.
    """
    maker = producers(graph)

    def before_casts(tensor: str) -> str:
        widened = maker.get(tensor)
        if widened is None or not _casts_to(widened, TensorProto.FLOAT):
            return tensor
        narrowed = maker.get(widened.input[0])
        return narrowed.input[0] if narrowed is not None and _casts_to(narrowed, TensorProto.FLOAT16) else tensor

    for node in graph.node:
        for index, tensor in enumerate(node.input):
            node.input[index] = before_casts(tensor)
    remove_unread(graph, lambda node: _casts_to(node, TensorProto.FLOAT) or _casts_to(node, TensorProto.FLOAT16))


def _casts_to(node: onnx.NodeProto, element_type: int) -> bool:
    return node.op_type == "Cast" and attribute_values(node).get("to") == element_type


def _as_bfloat16(graph: onnx.GraphProto, float32: Mapping[str, NDArray[np.float32]]) -> None:
    """Turn float16 into bfloat16, in place, each constant from its float32 values where it has some."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            known = float32.get(tensor.name)
            tensor.CopyFrom(_bfloat16(tensor.name, numpy_helper.to_array(tensor) if known is None else known))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_bfloat16(attribute.t.name, numpy_helper.to_array(attribute.t)))


def _bfloat16(name: str, values: NDArray[np.floating]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, values.astype(np.float32).flatten())
