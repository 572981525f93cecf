"""Static int8 quantization of an ONNX file, in the form that measures fastest where the file will run."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from pydantic import SerializeAsAny

from compress.calibration import Method, Ranges, Seen, observe, ranges_of
from compress.int8_choice import Form, Trial, Tried, choose, drop_against
from compress.int8_file import prepare, write_int8
from compress.int8_layouts import ElementType, FileForm, Layout, fast_layout, layouts_worth_trying, saturates
from compress.int8_sensitivity import LayerDamage, int8_sensitivity
from core.data import Data, Split, spread
from core.errors import ToolError, did_you_mean, require
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx, read_proto
from core.predict import check_reads, preprocessing_of
from core.preprocessing import Preprocessing, normalise
from core.progress import Progress, no_progress
from core.result import Report, Result
from core.sessions import FloatArray, open_session, run_session
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

MeasureSpeedup = Callable[[OnnxModel, OnnxModel], float]
"""Speedup of the second file over the first, measured on ONNX Runtime."""
Verify = Callable[[OnnxModel, OnnxModel], Report]
"""Compares the second file with the first; raises `GateMissedError` when it is too far off."""

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
CALIBRATION_BATCH = 32
SENSITIVITY_SAMPLES = 64


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
        with _source(model, data, config, progress) as source:
            if config.asked or measure_speedup is None:
                choice = None
                form = Form(layouts[0], source.methods[0])
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
                choice = choose(layouts, trial, source.methods, source.sensitivity)
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
    with _source(model, data, config, progress) as source:
        form = Form(layout, source.methods[0])
        return Int8SensitivityReport(
            stage="sensitivity",
            layout=layout,
            calibration_method=form.method,
            samples=min(SENSITIVITY_SAMPLES, len(data.split("train"))),
            layers=tuple(source.sensitivity(form)),
        )


@contextmanager
def _source(model: OnnxModel, data: Data, config: QuantizeConfig, progress: Progress) -> Iterator["_Source"]:
    """Check that a file can be quantized on these samples, and yield it as it is quantized."""
    if model.is_quantized:
        raise ToolError(f"{model.path} is quantized already; give the float32 file it was made from")
    proto = read_proto(model.path)
    _check_nodes(proto, config.nodes_to_exclude)
    check_reads(model, data)
    preprocessing = preprocessing_of(model, data)
    _check_runs(model, data, preprocessing)
    with tempfile.TemporaryDirectory() as scratch:
        yield _Source(prepare(proto, Path(scratch)), model, data, preprocessing, config, progress)


class _Source:
    """A float32 file as it is quantized; its samples are run once for minmax, and once for all other methods."""

    def __init__(
        self,
        prepared: Path,
        model: OnnxModel,
        data: Data,
        preprocessing: Preprocessing,
        config: QuantizeConfig,
        progress: Progress,
    ) -> None:
        self.folder = prepared.parent
        self.methods = (config.calibration_method,) if config.calibration_method else METHODS
        self._prepared = prepared
        self._excluded = config.nodes_to_exclude
        self._batches = _Batches(model, data, preprocessing, config.calibration_samples)
        self._few = _Batches(model, data, preprocessing, SENSITIVITY_SAMPLES)
        self._progress = progress
        self._seen: dict[bool, dict[str, Seen]] = {}

    def write(self, form: Form, to: Path) -> None:
        """Write the file in a form."""
        write_int8(self._prepared, to, self._ranges(form.method), form.layout, (*self._excluded, *form.in_float))

    def sensitivity(self, form: Form) -> Sequence[LayerDamage]:
        """Return what each layer loses in a form."""
        return int8_sensitivity(
            onnx.load(self._prepared),
            self._ranges(form.method),
            form.layout,
            list(self._few),
            lambda done, total: self._progress("sensitivity", done, total, "layers"),
        )

    def _ranges(self, method: Method) -> Ranges:
        histograms = method != "minmax"
        if histograms not in self._seen:
            self._seen[histograms] = observe(
                onnx.load(self._prepared),
                self._batches,
                lambda done: self._progress("calibrate", done, len(self._batches), "batches"),
                histograms=histograms,
            )
        return ranges_of(self._seen[histograms], method)


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


def _layout(config: QuantizeConfig) -> Layout:
    """Return the layout that is asked for, the rest of it being what is fast."""
    asked = config.asked
    if config.activation_type and config.weight_type:
        return Layout(**{"reduce_range": saturates(config.weight_type)} | asked, reason="as asked for")
    chosen = fast_layout(config.provider)
    return chosen.model_copy(update=asked | {"reason": f"{chosen.reason}; {', '.join(asked)} as asked for"})


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
