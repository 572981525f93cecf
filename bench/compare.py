"""Several models in one table: latency, speedup, accuracy, cost and placement, in every setting asked for."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel

from bench.latency import Latency, Speedup, TimingConfig, Timings, latency, measure, round_spread, speedup
from bench.noise import Noise, noise, others_watched
from bench.placement import Placement, placement
from bench.process_cost import ProcessCost, process_cost
from bench.profile import NodeTime, profile
from bench.quality import Quality, QualityChange, quality, quality_change
from bench.runnable import Open, open_onnx_run, open_torch_run
from core.compatibility import check_reads, preprocessing_of
from core.data import Data
from core.errors import ToolError, require
from core.history import Step, digest_of
from core.machine import Machine, available_cores, package_versions, this_machine
from core.model import Model, model_digest
from core.onnx_model import OnnxModel
from core.predict import predict
from core.progress import Progress, no_progress
from core.result import Report
from core.sequence_length import sequence_length, with_sequence_length
from core.sessions import made_up_inputs, provider_name
from core.stated_input import with_sizes_of

BENCH_FORMAT_VERSION = "1.1"
TorchMode = Literal["eager", "compiled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig(TimingConfig):
    """How to measure, in one setting.

    Attributes:
        provider: Where the models run.
        threads: Threads of a session; 0 takes the cores this process may use.
        batch_size: Samples a run, for latency.
        sequence_length: Tokens of the made-up texts that latency is measured on; None takes the most that the model
            reads, which is what its ``max_length`` says.
        split: Split that accuracy is measured on.
        torch_modes: How torch modules run: ``eager``, ``compiled``; a row for each.
    """

    provider: str = "cpu"
    threads: int = 0
    batch_size: int = 1
    sequence_length: int | None = None
    split: str = "test"
    torch_modes: tuple[TorchMode, ...] = ("eager",)

    def __post_init__(self) -> None:
        TimingConfig.__post_init__(self)
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        require(
            self.sequence_length is None or self.sequence_length >= 1,
            f"sequence_length is {self.sequence_length}; it must be at least 1",
        )
        require(self.threads >= 0, f"threads is {self.threads}; it must not be negative")
        require(
            self.split in ("train", "validation", "test"), f"split is {self.split!r}; it is train, validation or test"
        )


class BenchRow(BaseModel, frozen=True):
    """One model in one setting.

    Attributes:
        name: The model.
        sha256: Digest of its file, or of a torch module's architecture and weights.
        runtime: ``onnxruntime``, ``torch eager`` or ``torch compiled``.
        provider: Where it ran, with how many threads, at which batch size.
        latency: The time of one run.
        throughput: Samples a second at this batch size, from the p50.
        size_bytes: The file's size; of a torch module its tensors'.
        speedup: Against the setting's first row; None for that row itself.
        quality: Figures on the split; None without data.
        change: The quality against the first model's; None for that model itself.
        cost: What the model costs a process of its own; None for a torch module.
        placement: Where its nodes ran; likewise.
        nodes: Its nodes with their times; likewise empty.
        history: The stages it went through.
    """

    name: str
    sha256: str
    runtime: str
    provider: str
    threads: int
    batch_size: int
    latency: Latency
    throughput: float
    size_bytes: int
    speedup: Speedup | None
    quality: Quality | None
    change: QualityChange | None
    cost: ProcessCost | None
    placement: Placement | None
    nodes: tuple[NodeTime, ...]
    history: tuple[Step, ...]

    @property
    def setting(self) -> tuple[str, int, int]:
        """Provider, threads and batch size, which rows that can be compared share."""
        return self.provider, self.threads, self.batch_size


class BenchReport(Report, frozen=True):
    """All rows, setting by setting, each setting's first row its baseline; and what they were measured with.

    `sequence_length` is that of the texts that latency was measured on, None where the models take none;
    `samples_digest` is of what was scored: the classes' names, and which one each sample is of.
    """

    format_version: str = BENCH_FORMAT_VERSION
    data: str | None
    samples_digest: str | None = None
    split: str | None
    sequence_length: int | None = None
    machine: Machine
    versions: dict[str, str]
    noise: Noise
    half_width: float
    sharp: bool
    rows: tuple[BenchRow, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What becomes a row: a model and how it runs."""

    name: str
    model: Model
    runtime: str


def sweep(
    config: BenchConfig, providers: Sequence[str], batch_sizes: Sequence[int], threads: Sequence[int]
) -> tuple[BenchConfig, ...]:
    """Return the config in every combination of these."""
    combinations = itertools.product(providers, batch_sizes, threads)
    return tuple(
        replace(config, provider=provider, batch_size=batch_size, threads=count)
        for provider, batch_size, count in combinations
    )


def bench(
    models: Sequence[Model],
    settings: Sequence[BenchConfig],
    data: Data | None = None,
    progress: Progress = no_progress,
) -> BenchReport:
    """Measure models side by side in every setting; the first is the baseline.

    Args:
        models: What to measure; torch modules run in torch.
        settings: Where and how; they differ in provider, threads and batch size.
        data: Gives accuracy; without it only speed, size and cost are measured.
        progress: Told of every round of the timing.

    Raises:
        ToolError: A model cannot run in a setting, or cannot read the data, or that has no labels; or a sequence length
            is asked for that a model cannot have.
    """
    if data:
        _check_scored(models, data, settings[0].split)
        models = [with_sizes_of(one, data) if isinstance(one, OnnxModel) else one for one in models]
    length = settings[0].sequence_length
    models = [with_sequence_length(model, length) for model in models] if length is not None else models
    entries = _entries(models, settings[0].torch_modes)
    timings = []
    with others_watched() as others:
        for config in settings:
            opens = [_open(entry, config) for entry in entries]
            timings.append(measure(opens, config, progress))
    scores = {
        provider: _scores(entries, provider, settings[0], data, progress) if data else [(None, None)] * len(entries)
        for provider in dict.fromkeys(config.provider for config in settings)
    }
    rows: list[BenchRow] = []
    for config, timed in zip(settings, timings, strict=True):
        for index, entry in enumerate(entries):
            rows.append(_row(entry, config, timed, index, *scores[config.provider][index]))
            progress("cost and placement", len(rows), len(settings) * len(entries), "models")
    return BenchReport(
        stage="bench",
        data=data.reference if data else None,
        samples_digest=_samples_digest(data, settings[0].split) if data else None,
        split=settings[0].split if data else None,
        sequence_length=max((one for one in map(sequence_length, models) if one is not None), default=None),
        machine=this_machine(),
        versions=package_versions(),
        noise=noise(max(round_spread(one.rounds_ms[0]) for one in timings), others[0]),
        half_width=settings[0].half_width,
        sharp=all(one.sharp for one in timings),
        rows=tuple(rows),
    )


def _check_scored(models: Sequence[Model], data: Data, split: str) -> None:
    """Check what the scores need: before the timing, which may take minutes."""
    if not data.split(split).is_labelled:
        raise ToolError(
            f"the {split} split of {data.reference} has no labels to score models by; give it some, or bench without "
            "data, which measures all but accuracy"
        )
    for model in models:
        check_reads(model, data)
        preprocessing_of(model, data)


def _samples_digest(data: Data, split: str) -> str:
    """Return what tells one scored split from another, wherever its files lie and whenever they were written."""
    return digest_of([data.labels, data.split(split).labels().tolist()])


def _entries(models: Sequence[Model], torch_modes: Sequence[TorchMode]) -> list[_Entry]:
    """List what becomes rows; a model given twice is told apart by a number."""
    seen: Counter[str] = Counter()
    entries = []
    for model in models:
        seen[model.name] += 1
        name = model.name if seen[model.name] == 1 else f"{model.name} ({seen[model.name]})"
        runtimes = ["onnxruntime"] if isinstance(model, OnnxModel) else [f"torch {mode}" for mode in torch_modes]
        entries += [_Entry(name, model, runtime) for runtime in runtimes]
    return entries


def _open(entry: _Entry, config: BenchConfig) -> Open:
    if isinstance(entry.model, OnnxModel):
        return open_onnx_run(entry.model, config.provider, config.threads, config.batch_size)
    return open_torch_run(
        entry.model,
        compiled=entry.runtime == "torch compiled",
        provider=config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
    )


def _scores(
    entries: Sequence[_Entry], provider: str, config: BenchConfig, data: Data, progress: Progress
) -> list[tuple[Quality, QualityChange | None]]:
    """Score every model once on a provider, and against the first."""
    found: list[tuple[Quality, QualityChange | None]] = []
    baseline = targets = None
    for index, entry in enumerate(entries):
        logits, targets = predict(entry.model, data, config.split, provider=provider)  # on all cores
        classes = logits.argmax(axis=1)
        baseline = classes if baseline is None else baseline
        found.append((quality(logits, targets), quality_change(baseline, classes, targets) if index else None))
        progress("score", index + 1, len(entries), "models")
    return found


def _row(
    entry: _Entry,
    config: BenchConfig,
    timed: Timings,
    index: int,
    quality: Quality | None,
    change: QualityChange | None,
) -> BenchRow:
    summary = latency(timed.rounds_ms[index], timed.warmup_runs[index])
    file = entry.model if isinstance(entry.model, OnnxModel) else None
    nodes = profile(file, config.provider, config.threads, config.batch_size) if file else ()
    return BenchRow(
        name=entry.name,
        sha256=model_digest(entry.model),
        runtime=entry.runtime,
        provider=config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
        latency=summary,
        throughput=1000 * config.batch_size / summary.p50_ms,
        size_bytes=_size_bytes(entry.model),
        speedup=speedup(timed.rounds_ms[0], timed.rounds_ms[index]) if index else None,
        quality=quality,
        change=change,
        cost=_cost(file, config) if file else None,
        placement=placement(nodes, config.provider) if file else None,
        nodes=nodes,
        history=entry.model.history,
    )


def _cost(model: OnnxModel, config: BenchConfig) -> ProcessCost:
    threads = config.threads or available_cores()
    return process_cost(model.path, provider_name(config.provider), threads, made_up_inputs(model, config.batch_size))


def _size_bytes(model: Model) -> int:
    if isinstance(model, OnnxModel):
        return model.size_bytes
    return sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
