"""Trials of int8 forms whose clock, and where need be whose files and scores, are made up."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import onnx

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_trial import Trial
from compress.quantization.quantize import QuantizeReport, quantize
from compress.quantization.source import QuantizeSource, quantize_source
from core.data import Data
from core.onnx_model import OnnxModel
from core.progress import no_progress
from core.result import Result

SAMPLES = 64


def by_form(**speedups: float) -> Callable[[OnnxModel, OnnxModel], float]:
    """Return a clock by which a file is as fast as its form: qoperator, products, tensor (one scale) or channel."""

    def measured(_: OnnxModel, candidate: OnnxModel) -> float:
        nodes = onnx.load(candidate.path).graph.node
        if any(node.op_type.startswith("QLinear") for node in nodes):
            return speedups["qoperator"]
        quantized = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
        added = {output for node in nodes if node.op_type == "Add" for output in node.output}
        axes = [node for node in nodes if node.op_type == "DequantizeLinear" and "axis" in str(node.attribute)]
        if not quantized & added:
            return speedups["products"]
        return speedups["channel" if axes else "tensor"]

    return measured


def of_file(speedups: dict[str, float]) -> Callable[[OnnxModel, OnnxModel], float]:
    """Return a clock that knows some files by name; all others run at twice the speed."""
    return lambda _, candidate: speedups.get(candidate.path.stem, 2.0)


def source_of(model: OnnxModel, data: Data) -> AbstractContextManager[QuantizeSource]:
    """What forms of a file are written from, calibrated on few samples."""
    return quantize_source(model, data, SAMPLES, (), no_progress)


def quantized_by(
    clock: Callable[[OnnxModel, OnnxModel], float], model: OnnxModel, data: Data, folder: Path, **settings: object
) -> Result[OnnxModel, QuantizeReport]:
    """Quantize, timed by a clock of (float32 file, candidate)."""
    config = QuantizeConfig(calibration_samples=SAMPLES, **settings)

    def measured(whole: OnnxModel, files: Sequence[OnnxModel]) -> list[float]:
        return [clock(whole, file) for file in files]

    return quantize(model, data, folder / "int8.onnx", config, measure_speedups=measured)


def trial_of(
    source: QuantizeSource, speedup_of: Callable[[OnnxModel], float], drop_of: Callable[[OnnxModel], float]
) -> Trial:
    """What forms of a source are put through, within a point."""
    return Trial(
        write=source.write,
        run_once=lambda _: None,
        measure_speedups=lambda files: [speedup_of(file) for file in files],
        drop_of=drop_of,
        folder=source.folder,
        max_drop=1.0,
        progress=no_progress,
        treatments=source.treatments,
    )


def trial_of_copies(
    file: OnnxModel, folder: Path, speedup_of: Callable[[OnnxModel], float], drop_of: Callable[[OnnxModel], float]
) -> Trial:
    """What forms are put through that are all the same file, within a point; nothing can be done to it."""
    return Trial(
        write=lambda _, path: shutil.copyfile(file.path, path),
        run_once=lambda _: None,
        measure_speedups=lambda files: [speedup_of(one) for one in files],
        drop_of=drop_of,
        folder=folder,
        max_drop=1.0,
        progress=no_progress,
    )
