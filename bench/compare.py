"""Several .onnx files in one table: latency, throughput, size, speedup to the first, accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from bench.latency import Latency, measure_latencies
from core.data import Data
from core.errors import require
from core.machine import Machine, package_versions, this_machine
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.progress import Progress, no_progress
from core.result import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """How to measure.

    Attributes:
        provider: Where the models run.
        threads: Threads of a session; 0 takes the cores this process may use.
        batch_size: Samples a run, for latency.
        warmup: Untimed runs at the start of each round.
        iterations: Timed runs of each model in all.
        rounds: Rounds of the interleaving.
        split: Split that accuracy is measured on.
    """

    provider: str = "cpu"
    threads: int = 0
    batch_size: int = 1
    warmup: int = 10
    iterations: int = 700
    rounds: int = 10
    split: str = "test"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        require(self.iterations >= 1, f"iterations is {self.iterations}; it must be at least 1")
        require(self.rounds >= 1, f"rounds is {self.rounds}; it must be at least 1")
        require(self.threads >= 0, f"threads is {self.threads}; it must not be negative")
        require(
            self.split in ("train", "validation", "test"), f"split is {self.split!r}; it is train, validation or test"
        )


class BenchRow(BaseModel, frozen=True):
    """One model.

    Attributes:
        name: The file.
        sha256: Its digest.
        latency: Percentiles of one run's time.
        throughput: Samples a second at this batch size, from the p50.
        size_bytes: The file's size.
        speedup: The first model's p50 over this one's.
        accuracy: Top-1 on the split, in percent; None without data.
        samples: Samples it was measured on.
    """

    name: str
    sha256: str
    latency: Latency
    throughput: float
    size_bytes: int
    speedup: float
    accuracy: float | None
    samples: int | None


class BenchReport(Report, frozen=True):
    """The table and what it was measured with."""

    provider: str
    threads: int
    batch_size: int
    data: str | None
    split: str | None
    machine: Machine
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]


def bench(
    models: Sequence[OnnxModel], config: BenchConfig, data: Data | None = None, progress: Progress = no_progress
) -> BenchReport:
    """Measure models side by side; the first is the baseline.

    Args:
        models: What to measure.
        config: How.
        data: Gives accuracy; without it only speed and size are measured.
        progress: Told of every block of the timing.

    Raises:
        ToolError: A model cannot run on the provider, or cannot read the data.
    """
    latencies = measure_latencies(
        [model.path for model in models],
        provider=config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
        warmup=config.warmup,
        iterations=config.iterations,
        rounds=config.rounds,
        progress=progress,
    )
    rows = tuple(
        _row(model, latency, latencies[0], config, data) for model, latency in zip(models, latencies, strict=True)
    )
    return BenchReport(
        stage="bench",
        provider=config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
        data=data.reference if data else None,
        split=config.split if data else None,
        machine=this_machine(),
        versions=package_versions(),
        rows=rows,
    )


def _row(model: OnnxModel, latency: Latency, baseline: Latency, config: BenchConfig, data: Data | None) -> BenchRow:
    measured = samples = None
    if data is not None:
        logits, targets = predict(model, data, config.split, provider=config.provider)
        measured, samples = accuracy(logits, targets), len(targets)
    return BenchRow(
        name=model.name,
        sha256=model.sha256,
        latency=latency,
        throughput=1000 * config.batch_size / latency.p50_ms,
        size_bytes=model.size_bytes,
        speedup=baseline.p50_ms / latency.p50_ms,
        accuracy=measured,
        samples=samples,
    )
