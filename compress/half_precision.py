"""Writes the float16 or bfloat16 form of a float32 file; what would overflow in float16 stays in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress.calibration import Ranges

HalfType = Literal["float16", "bfloat16"]
MOST = float(np.finfo(np.float16).max) / 2  # half of the greatest: other samples reach further than those seen


def overflowing(proto: onnx.ModelProto, ranges: Ranges) -> tuple[str, ...]:
    """Return the names of the nodes that read or make what float16 cannot hold.

    Args:
        proto: A float32 file.
        ranges: Of its tensors.
    """
    greatest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    for one in proto.graph.initializer:
        if one.data_type == TensorProto.FLOAT and (values := numpy_helper.to_array(one)).size:
            greatest[one.name] = float(np.abs(values).max())
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
    proto = onnx.load(prepared)
    made = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True, node_block_list=list(in_float))
    _keep_whole(made.graph)
    if half == "bfloat16":
        whole = {one.name: one for one in onnx.load(prepared).graph.initializer}
        _as_bfloat16(made.graph, whole)
    onnx.save(made, output)


def _keep_whole(graph: onnx.GraphProto) -> None:
    """Let neighbours in float32 hand tensors to one another as they are, in place.

    The converter casts whatever a node in float32 makes to float16, and back for the next.
    """
    maker = {output: node for node in graph.node for output in node.output}

    def before_casts(tensor: str) -> str:
        widened = maker.get(tensor)
        if widened is None or not _casts_to(widened, TensorProto.FLOAT):
            return tensor
        narrowed = maker.get(widened.input[0])
        return narrowed.input[0] if narrowed is not None and _casts_to(narrowed, TensorProto.FLOAT16) else tensor

    for node in graph.node:
        for index, tensor in enumerate(node.input):
            node.input[index] = before_casts(tensor)
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16):  # those that nothing reads any more
        read = {tensor for node in graph.node for tensor in node.input} | {one.name for one in graph.output}
        for node in [one for one in graph.node if _casts_to(one, kind) and one.output[0] not in read]:
            graph.node.remove(node)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(one.name == "to" and one.i == kind for one in node.attribute)


def _as_bfloat16(graph: onnx.GraphProto, whole: dict[str, TensorProto]) -> None:
    """Turn float16 into bfloat16, in place, each constant from its float32 values where it has some."""
    for one in graph.initializer:
        if one.data_type == TensorProto.FLOAT16:
            source = numpy_helper.to_array(whole.get(one.name, one)).astype(np.float32)
            one.CopyFrom(helper.make_tensor(one.name, TensorProto.BFLOAT16, source.shape, source.flatten()))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                source = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(
                    helper.make_tensor(attribute.t.name, TensorProto.BFLOAT16, source.shape, source.flatten())
                )
