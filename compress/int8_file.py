"""Writes the static int8 form of a float32 file whose tensors' ranges are known, by ONNX Runtime's quantizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.calibration import Ranges
from compress.int8_layouts import Layout

TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
FORMS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


def prepare(proto: onnx.ModelProto, folder: Path) -> Path:
    """Write a file with the types of all its tensors inferred, as calibrating and quantizing need it."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(proto, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    return prepared


def write_int8(prepared: Path, output: Path, ranges: Ranges, layout: Layout, nodes_to_exclude: Sequence[str]) -> None:
    """Write the int8 form of a file.

    Args:
        prepared: From `prepare`.
        output: The file to make.
        ranges: Of its tensors.
        layout: The form.
        nodes_to_exclude: Names of graph nodes to leave in float.
    """
    known = prepared.with_name("ranges.json")
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
        nodes_to_exclude=list(nodes_to_exclude),
        calibration_cache_path=known,
    )
