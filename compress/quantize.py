"""Static int8 quantization of an ONNX file, in the form that measures fastest where the file will run."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from pydantic import SerializeAsAny

from compress.calibration import Method
from compress.int8_choice import Form, Trial, Tried, choose, drop_against
from compress.int8_layouts import ElementType, FileForm, Layout, fast_layout, layouts_worth_trying, saturates
from compress.int8_sensitivity import LayerDamage
from compress.int8_source import SENSITIVITY_SAMPLES, int8_source
from core.data import Data
from core.errors import require
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx
from core.progress import Progress, no_progress
from core.result import Report, Result
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

MeasureSpeedup = Callable[[OnnxModel, OnnxModel], float]
"""Speedup of the second file over the first, measured on ONNX Runtime."""
Verify = Callable[[OnnxModel, OnnxModel], Report]
"""Compares the second file with the first; raises `GateMissedError` when it is too far off."""

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """How to quantize.

    What is fast is measured where neither types nor form are given.

    Attributes:
        provider: Where the file will run.
        activation_type: ``uint8`` or ``int8``; None takes what is fast there.
        weight_type: ``uint8`` or ``int8``; None takes what is fast there.
        reduce_range: Use 7 of 8 bits for weights, for processors whose int8 multiply saturates; None asks this one.
        per_channel: One scale per output channel of a weight, or one per tensor; None takes what is fast.
        form: ``qdq`` or ``qoperator``; None takes what is fast.
        calibration_method: How a range follows from what was seen: ``minmax``, ``percentile``, ``entropy`` or ``mse``;
            None takes minmax, and tries the others where that loses too much.
        calibration_samples: Training samples to look at.
        nodes_to_exclude: Names of graph nodes to leave in float.
        max_drop: Points of accuracy that may be lost, of agreement where the data has no labels.
    """

    provider: str = "cpu"
    activation_type: ElementType | None = None
    weight_type: ElementType | None = None
    reduce_range: bool | None = None
    per_channel: bool | None = None
    form: FileForm | None = None
    calibration_method: Method | None = None
    calibration_samples: int = 512
    nodes_to_exclude: tuple[str, ...] = ()
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.calibration_samples >= 1, f"calibration_samples is {self.calibration_samples}; it must be at least 1"
        )
        require(self.max_drop >= 0, f"max_drop is {self.max_drop}; it cannot be negative")

    @property
    def methods(self) -> tuple[Method, ...]:
        """Return the ways to find ranges, in the order that they are tried."""
        return (self.calibration_method,) if self.calibration_method else METHODS

    @property
    def asked(self) -> dict[str, Any]:
        """Return what of the layout is given."""
        names = ("activation_type", "weight_type", "reduce_range", "per_channel", "form")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class QuantizeReport(Report, frozen=True):
    """What quantization did.

    Attributes:
        layout: The form it took.
        calibration_method: How ranges were found.
        left_in_float: Names of nodes that stayed in float: what was excluded, and what lost too much in int8.
        tried: What it was chosen among; empty where it was asked for.
        size_bytes: File size before and after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        verify: How far the outputs moved; None when they were not compared.
    """

    layout: Layout
    calibration_method: Method
    left_in_float: tuple[str, ...]
    tried: tuple[Tried, ...]
    size_bytes: tuple[int, int]
    measured_speedup: float | None
    verify: SerializeAsAny[Report] | None


class Int8SensitivityReport(Report, frozen=True):
    """What each layer loses in int8.

    Attributes:
        layout: The form that was looked at.
        calibration_method: How ranges were found.
        samples: Training samples that were asked.
        layers: In the order of the graph.
    """

    layout: Layout
    calibration_method: Method
    samples: int
    layers: tuple[LayerDamage, ...]


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
    """Quantize to int8, calibrated on training samples, in the form that is fastest where no form is asked for.

    Args:
        model: A float32 file; left untouched.
        data: Its train split calibrates.
        output: The file to make; it takes its name only after `verify`.
        config: How.
        verify: Compares the result with `model`.
        measure_speedup: Measures a file against `model`; without it nothing is chosen by measuring.
        progress: Told of every calibration batch.
        force: Replace an existing file.

    Raises:
        ToolError: The file is quantized already, a node to exclude does not exist, or the data does not fit it.
        GateMissedError: From `verify`; or no form is faster than float32 within `max_drop`.
    """
    layouts = (_layout(config),) if config.asked else layouts_worth_trying(config.provider)
    with whole_file(output, force=force) as part:
        with int8_source(model, data, config.calibration_samples, config.nodes_to_exclude, progress) as source:
            if config.asked or measure_speedup is None:
                choice = None
                form = Form(layouts[0], config.methods[0])
                source.write(form, part)
            else:
                trial = Trial(
                    write=source.write,
                    measure_speedup=partial(measure_speedup, model),
                    drop_of=drop_against(model, data, config.provider),
                    folder=source.folder,
                    max_drop=config.max_drop,
                    progress=progress,
                )
                choice = choose(layouts, trial, config.methods, source.sensitivity)
                form = choice.form
                shutil.copyfile(choice.path, part)
        _write_metadata(
            part,
            model,
            step(
                "quantize",
                asdict(config) | {"layout": form.layout.model_dump(), "left_in_float": form.in_float},
                parent=model.sha256,
                data=data.fingerprint,
            ),
        )
        candidate = open_onnx(part, str(output))
        verified = verify(model, candidate) if verify else None
        speedup = choice.speedup if choice else measure_speedup(model, candidate) if measure_speedup else None
    if speedup is not None and speedup < 1:
        logger.warning("the int8 file runs at %.2fx the speed of the float32 file: it does not help here", speedup)
    made = open_onnx(output)
    report = QuantizeReport(
        stage="quantize",
        layout=form.layout,
        calibration_method=form.method,
        left_in_float=(*config.nodes_to_exclude, *form.in_float),
        tried=choice.tried if choice else (),
        size_bytes=(model.size_bytes, made.size_bytes),
        measured_speedup=speedup,
        verify=verified,
    )
    return Result(made, report)


def quantization_sensitivity(
    model: OnnxModel, data: Data, config: QuantizeConfig, progress: Progress = no_progress
) -> Int8SensitivityReport:
    """Measure what each layer loses in int8, weights and activations apart; nothing is written.

    Raises:
        ToolError: As `quantize`.
    """
    layout = _layout(config) if config.asked else fast_layout(config.provider)
    with int8_source(model, data, config.calibration_samples, config.nodes_to_exclude, progress) as source:
        form = Form(layout, config.methods[0])
        return Int8SensitivityReport(
            stage="sensitivity",
            layout=layout,
            calibration_method=form.method,
            samples=min(SENSITIVITY_SAMPLES, len(data.split("train"))),
            layers=tuple(source.sensitivity(form)),
        )


def _layout(config: QuantizeConfig) -> Layout:
    """Return the layout that is asked for, the rest of it being what is fast."""
    asked = config.asked
    if config.activation_type and config.weight_type:
        return Layout(**{"reduce_range": saturates(config.weight_type)} | asked, reason="as asked for")
    chosen = fast_layout(config.provider)
    return chosen.model_copy(update=asked | {"reason": f"{chosen.reason}; {', '.join(asked)} as asked for"})


def _write_metadata(path: Path, parent: OnnxModel, done: Any) -> None:
    proto = onnx.load(path)
    explain(
        proto,
        history=(*parent.history, done),
        inputs=parent.declared,
        preprocessing=parent.preprocessing,
        labels=parent.labels,
    )
    onnx.save(proto, path)
