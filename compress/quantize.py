"""Quantization of an ONNX file: int8 in the form that measures fastest where it will run, or another precision."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx
from pydantic import SerializeAsAny

from compress.calibration import Method
from compress.calibration_doubts import doubts
from compress.half_precision import overflowing, write_half
from compress.int8_choice import KEPT, choose
from compress.int8_file import multiplies_in_int8
from compress.int8_layouts import Layout, layouts_worth_trying
from compress.int8_score import drop_against, num_scored
from compress.int8_sensitivity import LayerDamage
from compress.int8_trial import Form, Treatment, Trial, TriedForm
from compress.quantize_config import Precision, QuantizeConfig, layout_asked
from compress.quantize_source import SENSITIVITY_SAMPLES, QuantizeSource, quantize_source
from compress.weight_only import write_int4
from core.compatibility import preprocessing_of
from core.data import Data, spread
from core.errors import GateMissedError, ToolError
from core.external_data import whole_onnx
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx, read_proto
from core.predict import predict
from core.progress import Progress, no_progress
from core.result import Report, Result

logger = logging.getLogger(__name__)

UNLIKE = "does not match the float32 file"

MeasureSpeedups = Callable[[OnnxModel, Sequence[OnnxModel]], Sequence[float]]
"""Speedups of files over a first, all measured on ONNX Runtime in the same rounds."""
Verify = Callable[[OnnxModel, OnnxModel], Report]
"""Compares the second file with the first; raises `GateMissedError` when it is too far off."""


class QuantizeReport(Report, frozen=True):
    """What quantization did.

    Attributes:
        precision: What it computes in.
        layout: The form it took; None where it is not int8.
        calibration_method: How ranges were found; None where none were needed.
        treatments: What was done to the float32 graph first: ``equalized``, ``bias corrected``.
        left_in_float: Names of nodes that stayed in float32: what was excluded, what lost too much in int8, and what
            would overflow in float16; without those that no form rounds, as what masks an attention.
        hardest_layer: Name of the node that loses most, where no form fitted as it was.
        tried: What it was chosen among; empty where it was asked for.
        trained_epochs: Epochs of quantization-aware training that it took; 0 where calibration was enough.
        size_bytes: File size before and after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        drop: Points of accuracy lost on the validation split, of agreement where the data has no labels; None when
            it was not measured.
        drop_without_vnni: The same of an int8 file on x86 processors without VNNI, simulated; see
            `compress.saturation`.
        verify: How far the outputs moved; None when they were not compared.
    """

    precision: Precision
    layout: Layout | None
    calibration_method: Method | None
    treatments: tuple[Treatment, ...]
    left_in_float: tuple[str, ...]
    hardest_layer: str | None
    tried: tuple[TriedForm, ...]
    trained_epochs: int = 0
    size_bytes: tuple[int, int]
    measured_speedup: float | None
    drop: float | None
    drop_without_vnni: float | None
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
    baseline: OnnxModel | None = None,
    verify: Verify | None = None,
    measure_speedups: MeasureSpeedups | None = None,
    progress: Progress = no_progress,
    force: bool = False,
) -> Result[OnnxModel, QuantizeReport]:
    """Quantize, calibrated on training samples, to the form of int8 that is fastest where no other is asked for.

    Args:
        model: A float32 file; left untouched.
        data: Its train split calibrates, its validation split scores.
        output: The file to make; it takes its name only after `verify`.
        config: How.
        baseline: What accuracy is lost against; None takes `model`.
        verify: Compares the result with `model`.
        measure_speedups: Measures files against `model`; without it nothing is measured, and so nothing chosen.
        progress: Told of every calibration batch.
        force: Replace an existing file.

    Raises:
        ToolError: The file is not float32, a node to exclude does not exist, or the data does not fit it.
        GateMissedError: From `verify`; the file loses more than `max_drop`; or none is faster than float32 within it.
    """
    if output.exists() and output.samefile(model.path):
        raise ToolError(f"{output} is the file to quantize, which stays; choose another --output")
    trial = None
    with whole_onnx(output, force=force) as part:
        with quantize_source(model, data, config.calibration_samples, config.nodes_to_exclude, progress) as source:
            if measure_speedups:
                _say_doubts(model, data, config)
                trial = Trial(
                    write=source.write,
                    run_once=lambda file: predict(
                        file, data, "validation", limit=file.fixed_batch or 1, provider=config.provider
                    ),
                    measure_speedups=partial(measure_speedups, model),
                    drop_of=drop_against(baseline or model, data, config.provider),
                    folder=source.folder,
                    max_drop=config.max_drop,
                    progress=progress,
                    treatments=source.treatments,
                )
            made = _written(source, part, model, config, trial)
            drop_without_vnni = _drop_without_vnni(source, made, trial)
        _write_metadata(part, model, data, config, made)
        candidate = open_onnx(part, str(output))
        verified = _verified(verify, model, candidate, made) if verify else None
        speedup = trial.measure_speedups([candidate])[0] if trial and made.speedup is None else made.speedup
    _warn(speedup, drop_without_vnni, config)
    done = open_onnx(output)
    static = made.form if made.form and made.form.layout.form != "dynamic" else None
    report = QuantizeReport(
        stage="quantize",
        precision=config.precision,
        layout=made.form.layout if made.form else None,
        calibration_method=static.method if static else None,
        treatments=made.form.treatments if made.form else (),
        left_in_float=(*config.nodes_to_exclude, *made.in_float),
        hardest_layer=made.hardest_layer,
        tried=made.tried,
        size_bytes=(model.size_bytes, done.size_bytes),
        measured_speedup=speedup,
        drop=made.drop,
        drop_without_vnni=drop_without_vnni,
        verify=verified,
    )
    return Result(done, report)


def quantization_sensitivity(
    model: OnnxModel, data: Data, config: QuantizeConfig, progress: Progress = no_progress
) -> Int8SensitivityReport:
    """Measure what each layer loses in int8, weights and activations apart; nothing is written.

    Raises:
        ToolError: As `quantize`.
    """
    layout = layout_asked(config)
    with quantize_source(model, data, config.calibration_samples, config.nodes_to_exclude, progress) as source:
        form = Form(layout, config.methods[0])
        return Int8SensitivityReport(
            stage="sensitivity",
            layout=layout,
            calibration_method=form.method,
            samples=min(SENSITIVITY_SAMPLES, len(data.split("train"))),
            layers=tuple(source.sensitivity(form)),
        )


@dataclass(frozen=True, slots=True)
class _Written:
    """What a file became: its form where it is int8, what stayed in float unasked, and what was measured."""

    form: Form | None
    in_float: tuple[str, ...] = ()
    speedup: float | None = None
    drop: float | None = None
    hardest_layer: str | None = None
    tried: tuple[TriedForm, ...] = ()


def _written(
    source: QuantizeSource, part: Path, model: OnnxModel, config: QuantizeConfig, trial: Trial | None
) -> _Written:
    """Write the file that is asked for, or that is chosen where it may be."""
    if config.precision == "int8" and not config.asked:
        operators = [node.op_type for node in read_proto(model.path).graph.node]
        layouts = layouts_worth_trying(config.provider, config.reduce_range, operators)
        if trial:
            choice = choose(layouts, trial, config.methods, source.sensitivity)
            shutil.copyfile(choice.path, part)
            in_float, hardest = choice.form.in_float, choice.hardest_layer
            return _Written(choice.form, in_float, choice.speedup, choice.drop, hardest, choice.tried)
        made = _Written(Form(layouts[0], config.methods[0]))
    elif config.precision == "int8":
        made = _Written(Form(layout_asked(config), config.methods[0]))
    else:
        made = _Written(None, _written_otherwise(source, part, config))
    if made.form:
        source.write(made.form, part)
    if trial is None:
        return made
    title = made.form.title if made.form else config.precision
    if made.form and not multiplies_in_int8(read_proto(part).graph):
        raise ToolError(f"no product of {model.name} becomes int8 in {title}; choose another form")
    try:
        drop = trial.drop_of(open_onnx(part))
    except ToolError as error:
        reason = str(error).replace(str(part), "it")
        raise ToolError(f"the file in {title} cannot be used on --provider {config.provider}: {reason}") from error
    if drop > config.max_drop:
        raise GateMissedError(
            f"the file in {title} loses {drop:.2f} points, more than {config.max_drop:g}; raise --max-drop, or leave "
            "nodes in float with --exclude"
        )
    return replace(made, drop=drop)


def _written_otherwise(source: QuantizeSource, part: Path, config: QuantizeConfig) -> tuple[str, ...]:
    """Write a file that is not int8; return the names of nodes that stay in float32 beside what is excluded."""
    excluded = config.nodes_to_exclude
    if config.precision == "int4":
        write_int4(source.prepared, part, excluded)
        return ()
    if config.precision == "bfloat16":
        write_half(source.prepared, part, "bfloat16", excluded)
        return ()
    found = overflowing(onnx.load(source.prepared), source.extremes())
    write_half(source.prepared, part, "float16", (*excluded, *found))
    return tuple(name for name in found if name not in excluded)


def _verified(verify: Verify, model: OnnxModel, candidate: OnnxModel, made: _Written) -> Report:
    """Compare what was written with the original; a miss tells what was tried too."""
    try:
        return verify(model, candidate)
    except GateMissedError as missed:
        told = [one.model_copy(update={"verdict": UNLIKE}) if one.verdict == KEPT else one for one in made.tried]
        raise GateMissedError(str(missed), [one.model_dump() for one in told]) from missed


def _drop_without_vnni(source: QuantizeSource, made: _Written, trial: Trial | None) -> float | None:
    if trial is None or made.form is None:
        return None
    saturated = source.saturated(made.form)
    return trial.drop_of(saturated) if saturated else made.drop


def _say_doubts(model: OnnxModel, data: Data, config: QuantizeConfig) -> None:
    train = data.split("train")
    calibration = train.take(spread(len(train), config.calibration_samples))
    for doubt in doubts(calibration, num_scored(model, data), preprocessing_of(model, data), config.max_drop):
        logger.warning("%s", doubt)


def _warn(speedup: float | None, drop_without_vnni: float | None, config: QuantizeConfig) -> None:
    if speedup is not None and speedup < 1:
        logger.warning(
            "the %s file runs at %.2fx the speed of the float32 file: it does not help here", config.precision, speedup
        )
    if drop_without_vnni is not None and drop_without_vnni > config.max_drop:
        logger.warning(
            "on x86 processors without VNNI, whose int8 multiply saturates, this file loses %.2f points (simulated); "
            "--portable makes one that does not",
            drop_without_vnni,
        )


def _write_metadata(path: Path, parent: OnnxModel, data: Data, config: QuantizeConfig, made: _Written) -> None:
    form = made.form and asdict(made.form) | {"layout": made.form.layout.model_dump()}
    done = step(
        "quantize",
        asdict(config) | {"kept": form, "left_in_float": made.in_float},
        parent=parent.sha256,
        data=data.fingerprint,
    )
    proto = onnx.load(path)
    explain(
        proto,
        history=(*parent.history, done),
        inputs=parent.declared,
        preprocessing=parent.preprocessing,
        labels=parent.labels,
        returns=parent.returns,
    )
    onnx.save(proto, path)
