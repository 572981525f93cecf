"""Static int8 quantization of an ONNX file, in the layout that is fast where the file will run."""

import logging
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import BaseModel, SerializeAsAny

from compress.calibration import Method, Ranges, calibrate
from core.data import Data, Split, spread
from core.errors import ToolError, did_you_mean, require
from core.history import step
from core.machine import int8_instructions
from core.onnx_model import OnnxModel, explain, open_onnx, read_proto
from core.predict import check_reads, preprocessing_of
from core.preprocessing import Preprocessing, normalise
from core.progress import Progress, no_progress
from core.result import Report, Result
from core.sessions import FloatArray, open_session, provider_name, run_session
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

MeasureSpeedup = Callable[[OnnxModel, OnnxModel], float]
"""Speedup of the second file over the first, measured on ONNX Runtime."""
Verify = Callable[[OnnxModel, OnnxModel], Report]
"""Compares the second file with the first; raises `GateMissedError` when it is too far off."""

CALIBRATION_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        provider: Where the file will run.
        activation_type: ``uint8`` or ``int8``; None takes what is fast there.
        weight_type: ``uint8`` or ``int8``; None takes what is fast there.
        reduce_range: Use 7 of 8 bits for weights, for processors whose int8 multiply saturates; None asks this one.
        per_channel: One scale per output channel of a weight instead of one per tensor.
        calibration_method: How a range follows from what was seen: ``minmax``, ``percentile``, ``entropy`` or ``mse``.
        calibration_samples: Training samples to look at.
        nodes_to_exclude: Names of graph nodes to leave in float.
    """

    provider: str = "cpu"
    activation_type: Literal["uint8", "int8"] | None = None
    weight_type: Literal["uint8", "int8"] | None = None
    reduce_range: bool | None = None
    per_channel: bool = True
    calibration_method: Method = "minmax"
    calibration_samples: int = 512
    nodes_to_exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            self.calibration_samples >= 1, f"calibration_samples is {self.calibration_samples}; it must be at least 1"
        )


class Layout(BaseModel, frozen=True):
    """The element types of a quantized file and why they were taken."""

    activation_type: Literal["uint8", "int8"]
    weight_type: Literal["uint8", "int8"]
    reduce_range: bool
    reason: str


class QuantizeReport(Report, frozen=True):
    """What quantization did.

    Attributes:
        layout: The element types.
        size_bytes: File size before and after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        verify: How far the outputs moved; None when they were not compared.
    """

    layout: Layout
    size_bytes: tuple[int, int]
    measured_speedup: float | None
    verify: SerializeAsAny[Report] | None


def fast_layout(provider: str) -> Layout:
    """Choose the layout that is fast on a provider and this processor.

    Raises:
        ToolError: ONNX Runtime has no fast static int8 there.
    """
    name = provider_name(provider)
    if name == "CUDAExecutionProvider":
        raise ToolError(
            "ONNX Runtime's CUDA provider has no int8 convolution or matrix kernels: a static int8 file "
            "is slower there than float32; quantize for --provider cpu, or give both types explicitly"
        )
    instructions = int8_instructions()
    if _is_arm():
        return Layout(
            activation_type="int8",
            weight_type="int8",
            reduce_range=False,
            reason=f"ARM kernels multiply int8 by int8 ({', '.join(instructions) or 'no dot product'})",
        )
    if instructions:
        return Layout(
            activation_type="uint8",
            weight_type="int8",
            reduce_range=False,
            reason=f"x86 multiplies uint8 by int8 ({', '.join(instructions)}); int8 by int8 has no kernel",
        )
    return Layout(
        activation_type="uint8",
        weight_type="int8",
        reduce_range=True,
        reason="this x86 processor has no VNNI: its uint8 by int8 multiply saturates, 7-bit weights do not",
    )


def quantize(
    model: OnnxModel,
    data: Data,
    output: Path,
    config: QuantizeConfig,
    *,
    verify: Verify | None = None,
    measure_speedup: MeasureSpeedup | None = None,
    progress: Progress = no_progress,
    force: bool = False,
) -> Result[OnnxModel, QuantizeReport]:
    """Quantize to int8 with QuantizeLinear and DequantizeLinear pairs (QDQ), calibrated on training samples.

    Args:
        model: A float32 file; left untouched.
        data: Its train split calibrates.
        output: The file to make; it takes its name only after `verify`.
        config: How.
        verify: Compares the result with `model`.
        measure_speedup: Measures the result against `model`.
        progress: Told of every calibration batch.
        force: Replace an existing file.

    Raises:
        ToolError: The file is quantized already, a node to exclude does not exist, or the data does not fit it.
        GateMissedError: From `verify`.
    """
    if model.is_quantized:
        raise ToolError(f"{model.path} is quantized already; give the float32 file it was made from")
    layout = _layout(config)
    proto = read_proto(model.path)
    _check_nodes(proto, config.nodes_to_exclude)
    check_reads(model, data)
    preprocessing = preprocessing_of(model, data)
    _check_runs(model, data, preprocessing)
    with whole_file(output, force=force) as part:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared.onnx"
            quant_pre_process(proto, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
            batches = _Batches(model, data, preprocessing, config.calibration_samples)
            ranges = calibrate(
                onnx.load(prepared),
                batches,
                config.calibration_method,
                lambda done: progress("calibrate", done, len(batches), "batches"),
            )
            _write_int8(prepared, part, ranges, layout, config)
        _write_metadata(
            part,
            model,
            step(
                "quantize", asdict(config) | {"layout": layout.model_dump()}, parent=model.sha256, data=data.fingerprint
            ),
        )
        candidate = open_onnx(part, str(output))
        verified = verify(model, candidate) if verify else None
        speedup = measure_speedup(model, candidate) if measure_speedup else None
    if speedup is not None and speedup < 1:
        logger.warning("the int8 file runs at %.2fx the speed of the float32 file: it does not help here", speedup)
    made = open_onnx(output)
    report = QuantizeReport(
        stage="quantize",
        layout=layout,
        size_bytes=(model.size_bytes, made.size_bytes),
        measured_speedup=speedup,
        verify=verified,
    )
    return Result(made, report)


class _Batches:
    """Calibration batches, read as they are asked for."""

    def __init__(self, model: OnnxModel, data: Data, preprocessing: Preprocessing, num_samples: int) -> None:
        fixed = model.inputs[0].shape[0]
        self._batch_size = fixed if isinstance(fixed, int) else CALIBRATION_BATCH
        split = data.split("train")
        self._split = split.take(spread(len(split), num_samples))
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[FloatArray]:
        for first in range(0, len(self._split), self._batch_size):
            chosen = torch.arange(first, min(first + self._batch_size, len(self._split)))
            yield _fetch(self._split.take(chosen), self._preprocessing).numpy()


def _write_int8(prepared: Path, output: Path, ranges: Ranges, layout: Layout, config: QuantizeConfig) -> None:
    """Write the int8 form of a file whose tensors' ranges are known."""
    known = prepared.with_name("ranges.json")
    arrays = {name: tuple(np.float32(one) for one in kept) for name, kept in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, arrays), known)
    quantize_static(
        prepared,
        output,
        None,
        quant_format=QuantFormat.QDQ,
        activation_type=_TYPES[layout.activation_type],
        weight_type=_TYPES[layout.weight_type],
        reduce_range=layout.reduce_range,
        per_channel=config.per_channel,
        nodes_to_exclude=list(config.nodes_to_exclude),
        calibration_cache_path=known,
    )


def _saturates(weight_type: str) -> bool:
    """Tell whether this processor's multiply of uint8 by int8 saturates: x86 without VNNI."""
    return not _is_arm() and weight_type == "int8" and not int8_instructions()


def _is_arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")


def _layout(config: QuantizeConfig) -> Layout:
    if config.activation_type and config.weight_type:
        reduce_range = _saturates(config.weight_type) if config.reduce_range is None else config.reduce_range
        return Layout(
            activation_type=config.activation_type,
            weight_type=config.weight_type,
            reduce_range=reduce_range,
            reason="as asked for",
        )
    chosen = fast_layout(config.provider)
    asked = {
        name: value
        for name in ("activation_type", "weight_type", "reduce_range")
        if (value := getattr(config, name)) is not None
    }
    return chosen.model_copy(
        update=asked | ({"reason": f"{chosen.reason}; {', '.join(asked)} as asked for"} if asked else {})
    )


def _check_nodes(proto: onnx.ModelProto, names: tuple[str, ...]) -> None:
    known = [node.name for node in proto.graph.node]
    for name in names:
        if name not in known:
            raise ToolError(f"there is no node {name!r} to exclude.{did_you_mean(name, known)}")


def _fetch(split: Split, preprocessing: Preprocessing) -> torch.Tensor:
    """Return all samples of a small split as inputs (N, ...), in this process."""
    return normalise(split.samples.fetch(split.indices.tolist(), preprocessing), preprocessing)


def _check_runs(model: OnnxModel, data: Data, preprocessing: Preprocessing) -> None:
    """Run one sample first, so that data of the wrong shape fails here with a clear message."""
    inputs = _fetch(data.split("train").take(torch.arange(1)), preprocessing)
    batch_size = model.inputs[0].shape[0]
    repeats = batch_size if isinstance(batch_size, int) else 1
    run_session(open_session(model.path), inputs.repeat(repeats, *[1] * (inputs.ndim - 1)).numpy())


def _write_metadata(path: Path, parent: OnnxModel, done: Any) -> None:
    proto = onnx.load(path)
    explain(
        proto,
        history=(*parent.history, done),
        inputs=parent.inputs,
        preprocessing=parent.preprocessing,
        labels=parent.labels,
    )
    onnx.save(proto, path)


_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
