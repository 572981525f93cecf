"""Quantization of an ONNX file: int8 in the form that measures fastest where it will run, or another precision."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx
from pydantic import SerializeAsAny

from compress.quantization.calibration import Method
from compress.quantization.calibration_doubts import doubts
from compress.quantization.config import Precision, QuantizeConfig, layout_asked
from compress.quantization.half_precision import overflowing, write_half
from compress.quantization.int4 import write_int4
from compress.quantization.int8_choice import KEPT, choose
from compress.quantization.int8_file import multiplies_in_int8
from compress.quantization.int8_layouts import Layout, layouts_worth_trying
from compress.quantization.int8_score import drop_against, num_scored
from compress.quantization.int8_sensitivity import LayerDamage
from compress.quantization.int8_trial import Form, Treatment, Trial, TriedForm
from compress.quantization.source import SENSITIVITY_SAMPLES, QuantizeSource, quantize_source
from core.compatibility import preprocessing_of
from core.data import Data, spread
from core.errors import GateMissedError, ToolError
from core.external_data import refuse_replacing, whole_onnx
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx, read_proto
from core.progress import Progress, no_progress
from core.result import Report, Result
from core.sessions import made_up_inputs, open_session, run_session
from core.stated_input import with_sizes_of

logger = logging.getLogger(__name__)

UNLIKE = "does not match the float32 file"

MeasureSpeedups = Callable[[OnnxModel, Sequence[OnnxModel]], Sequence[float]]
"""Speedups of files over a first, all measured on ONNX Runtime in the same rounds."""
Verify = Callable[[OnnxModel, OnnxModel], Report]
"""Compares the second file with the first; raises `GateMissedError` when it is too far off."""


class QuantizeReport(Report, frozen=True):
    """What quantization did.

    Attributes:
        precision: The precision the file computes in.
        layout: The form it took; None where it is not int8.
        calibration_method: How ranges were found; None where none were needed.
        treatments: What was done to the float32 graph first: ``equalized``, ``bias corrected``.
        left_in_float: Names of nodes that stayed in float32: what was excluded, what lost too much in int8, and what
            would overflow in float16. Nodes that no form rounds, such as attention masks, are not among them.
        hardest_layer: Name of the node that loses most, where no form fitted as it was.
        tried: The forms it was chosen from; empty where the form was asked for.
        trained_epochs: Epochs of quantization-aware training that it took; 0 where calibration was enough.
        size_bytes: File size before and after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        drop: Points of accuracy lost on the validation split, of agreement where the data has no labels; None when
            it was not measured.
        drop_without_vnni: The same of an int8 file on x86 processors without VNNI, simulated; see
            `compress.quantization.saturation`.
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
        samples: How many training samples were measured on.
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
        config: The precision and the form, or how the form is chosen.
        baseline: The model that accuracy is compared with; None takes `model`.
        verify: Compares the result with `model`.
        measure_speedups: Measures files against `model`; without it nothing is measured, and so nothing chosen.
        progress: Told of every calibration batch.
        force: Replace an existing file.

    Raises:
        ToolError: The file is not float32, a node to exclude does not exist, or the data does not fit it.
        GateMissedError: From `verify`; the file loses more than `max_drop`; or none is faster than float32 within it.
    """
    refuse_replacing(model.files, output)
    model = with_sizes_of(model, data)
    if measure_speedups:
        made_up_inputs(model, model.fixed_batch or 1)  # which every form is timed on: else each would be blamed
    with whole_onnx(output, force=force) as part:
        with quantize_source(model, data, config.calibration_samples, config.nodes_to_exclude, progress) as source:
            trial = None
            if measure_speedups:
                _say_doubts(model, data, config)
                drop_of = drop_against(baseline or model, data, config.provider)
                trial = _trial(source, data, config, partial(measure_speedups, model), drop_of, progress)
            written = _written(source, part, model, config, trial)
        _write_metadata(part, model, data, config, written)
        candidate = open_onnx(part, str(output))
        verified = _verified(verify, model, candidate, written) if verify else None
        if trial and written.speedup is None:
            written = replace(written, speedup=trial.measure_speedups([candidate])[0])
    _warn(written, config)
    quantized = open_onnx(output)
    return Result(quantized, _report(model, quantized, config, written, verified))


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
            stage="int8 sensitivity",
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
    drop_without_vnni: float | None = None
    hardest_layer: str | None = None
    tried: tuple[TriedForm, ...] = ()


def _trial(
    source: QuantizeSource,
    data: Data,
    config: QuantizeConfig,
    measure_speedups: Callable[[Sequence[OnnxModel]], Sequence[float]],
    drop_of: Callable[[OnnxModel], float],
    progress: Progress,
) -> Trial:
    def run_once(file: OnnxModel) -> object:
        return run_session(open_session(file.path, config.provider), *made_up_inputs(file, file.fixed_batch or 1))

    return Trial(
        write=source.write,
        run_once=run_once,
        measure_speedups=measure_speedups,
        drop_of=drop_of,
        folder=source.folder,
        max_drop=config.max_drop,
        progress=progress,
        treatments=source.treatments,
    )


def _report(
    model: OnnxModel, quantized: OnnxModel, config: QuantizeConfig, written: _Written, verified: Report | None
) -> QuantizeReport:
    form = written.form
    return QuantizeReport(
        stage="quantize",
        precision=config.precision,
        layout=form.layout if form else None,
        calibration_method=form.method if form and form.layout.form != "dynamic" else None,
        treatments=form.treatments if form else (),
        left_in_float=(*config.nodes_to_exclude, *written.in_float),
        hardest_layer=written.hardest_layer,
        tried=written.tried,
        size_bytes=(model.size_bytes, quantized.size_bytes),
        measured_speedup=written.speedup,
        drop=written.drop,
        drop_without_vnni=written.drop_without_vnni,
        verify=verified,
    )


def _written(
    source: QuantizeSource, part: Path, model: OnnxModel, config: QuantizeConfig, trial: Trial | None
) -> _Written:
    """Write the file that is asked for, or the one that is chosen; with a trial, measure what it loses."""
    if config.precision == "int8" and not config.asked:
        operators = [node.op_type for node in read_proto(model.path).graph.node]
        layouts = layouts_worth_trying(config.provider, config.reduce_range, operators)
        written = _chosen(source, part, layouts, config, trial) if trial else _in_int8(source, part, layouts[0], config)
    else:
        written = _as_asked(source, part, config)
        if trial:
            written = replace(written, drop=_drop_within_limit(part, written, model, config, trial))
    return replace(written, drop_without_vnni=_drop_without_vnni(source, written, trial))


def _chosen(
    source: QuantizeSource, part: Path, layouts: Sequence[Layout], config: QuantizeConfig, trial: Trial
) -> _Written:
    """Choose a form by measuring, and put its file in place."""
    choice = choose(layouts, trial, config.methods, source.sensitivity)
    shutil.copyfile(choice.path, part)
    return _Written(
        form=choice.form,
        in_float=choice.form.in_float,
        speedup=choice.speedup,
        drop=choice.drop,
        hardest_layer=choice.hardest_layer,
        tried=choice.tried,
    )


def _as_asked(source: QuantizeSource, part: Path, config: QuantizeConfig) -> _Written:
    if config.precision == "int8":
        return _in_int8(source, part, layout_asked(config), config)
    return _Written(None, _written_otherwise(source, part, config))


def _in_int8(source: QuantizeSource, part: Path, layout: Layout, config: QuantizeConfig) -> _Written:
    form = Form(layout, config.methods[0])
    source.write(form, part)
    return _Written(form)


def _drop_within_limit(part: Path, written: _Written, model: OnnxModel, config: QuantizeConfig, trial: Trial) -> float:
    """Return how many points a file loses.

    Raises:
        ToolError: It cannot run on the provider, or none of its products is int8.
        GateMissedError: It loses more than `max_drop`.
    """
    title = written.form.title if written.form else config.precision
    if written.form and not multiplies_in_int8(read_proto(part).graph):
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
    return drop


def _written_otherwise(source: QuantizeSource, part: Path, config: QuantizeConfig) -> tuple[str, ...]:
    """Write a file that is not int8; return the names of nodes that stay in float32 beside what is excluded."""
    excluded = config.nodes_to_exclude
    if config.precision == "int4":
        write_int4(source.prepared, part, excluded)
        return ()
    if config.precision == "bfloat16":
        write_half(source.prepared, part, "bfloat16", excluded)
        return ()
    too_large = overflowing(onnx.load(source.prepared), source.extremes())
    write_half(source.prepared, part, "float16", (*excluded, *too_large))
    return tuple(name for name in too_large if name not in excluded)


def _verified(verify: Verify, model: OnnxModel, candidate: OnnxModel, written: _Written) -> Report:
    """Compare what was written with the original; the error of a miss also holds what was tried."""
    try:
        return verify(model, candidate)
    except GateMissedError as missed:
        tried = [
            form.model_copy(update={"verdict": UNLIKE}) if form.verdict == KEPT else form for form in written.tried
        ]
        raise GateMissedError(str(missed), [form.model_dump() for form in tried]) from missed


def _drop_without_vnni(source: QuantizeSource, written: _Written, trial: Trial | None) -> float | None:
    """Return what an int8 file loses where products saturate; None where nothing is measured or it is not int8."""
    if trial is None or written.form is None:
        return None
    saturated = source.saturated(written.form)
    return trial.drop_of(saturated) if saturated else written.drop


def _say_doubts(model: OnnxModel, data: Data, config: QuantizeConfig) -> None:
    train = data.split("train")
    calibration = train.take(spread(len(train), config.calibration_samples))
    for doubt in doubts(calibration, num_scored(model, data), preprocessing_of(model, data), config.max_drop):
        logger.warning("%s", doubt)


def _warn(written: _Written, config: QuantizeConfig) -> None:
    if written.speedup is not None and written.speedup < 1:
        logger.warning(
            "the %s file runs at %.2fx the speed of the float32 file: it does not help here",
            config.precision,
            written.speedup,
        )
    if written.drop_without_vnni is not None and written.drop_without_vnni > config.max_drop:
        logger.warning(
            "on x86 processors without VNNI, whose int8 multiply saturates, this file loses %.2f points (simulated); "
            "--portable makes one that does not",
            written.drop_without_vnni,
        )


def _write_metadata(path: Path, parent: OnnxModel, data: Data, config: QuantizeConfig, written: _Written) -> None:
    form = written.form and asdict(written.form) | {"layout": written.form.layout.model_dump()}
    done = step(
        "quantize",
        asdict(config) | {"kept": form, "left_in_float": written.in_float},
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
