"""How a layer's weight is rounded to int8, and which of its axes are its channels."""

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.quantization.int8_layouts import Layout
from core.onnx_graph import attribute_values


def highest_weight(*, reduce_range: bool) -> int:
    """Return the code that ONNX Runtime's quantizer gives to a weight's largest value."""
    return 64 if reduce_range else 127


def rounded_weight(weight: NDArray[np.float32], node: onnx.NodeProto, layout: Layout) -> NDArray[np.float32]:
    """Return a weight rounded to the values that int8 can represent, in float32 and the same shape."""
    axis = output_axis(node, weight.ndim) if layout.per_channel else None
    others = tuple(index for index in range(weight.ndim) if index != axis)
    most = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.maximum(most, 1e-12) / highest_weight(reduce_range=layout.reduce_range)
    return np.asarray(np.round(weight / scale) * scale, np.float32)


def output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return which axis of a layer's weight, which has `rank` of them, is its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if _is_transposed(node) else rank - 1


def input_axis(node: onnx.NodeProto) -> int:
    """Return which axis of a convolution's or a matrix's weight is its input channels."""
    if node.op_type == "Conv":
        return 1
    return 1 if _is_transposed(node) else 0


def is_unscaled(node: onnx.NodeProto) -> bool:
    """Tell whether a layer adds its product and its bias as they are: only a Gemm may state factors of them."""
    stated = attribute_values(node)
    return all(stated.get(factor, 1) == 1 for factor in ("alpha", "beta"))


def _is_transposed(node: onnx.NodeProto) -> bool:
    return bool(attribute_values(node).get("transB"))
