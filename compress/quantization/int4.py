"""Writes the form of a float32 file whose matrices are kept in four bits a weight: ONNX Runtime's MatMulNBits."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from core.errors import ToolError

BLOCK = 32  # weights that share a scale and a zero point
INT8_PRODUCTS = 4  # ONNX Runtime's accuracy level: activations are rounded to int8 for the product


def write_int4(prepared: Path, output: Path, in_float: Sequence[str]) -> None:
    """Write the four-bit form of a file: every product of an activation with a constant matrix.

    Args:
        prepared: The float32 file.
        output: The file to make.
        in_float: Names of graph nodes that stay in float32.

    Raises:
        ToolError: It has no such product.
    """
    model = ONNXModel(onnx.load(prepared))
    model.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        model.model,
        bits=4,
        block_size=BLOCK,
        is_symmetric=False,
        accuracy_level=INT8_PRODUCTS,
        nodes_to_exclude=[*in_float, *(f"{name}_MatMul" for name in in_float)],
    )
    quantizer.process()
    proto = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in proto.graph.node):
        raise ToolError("the model has no product with a constant matrix, which is what int4 keeps in four bits")
    onnx.save(proto, output)
