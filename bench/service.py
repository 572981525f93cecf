"""Service figures of an .onnx file: MLPerf LoadGen asks, ONNX Runtime answers.

LoadGen and its scenarios: Reddi et al. 2019, MLPerf Inference Benchmark (https://arxiv.org/abs/1911.02549).
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from bench.loadgen_process import SCENARIOS, Request, Run, loadgen, request_inputs
from core.errors import ToolError, did_you_mean, require
from core.machine import Machine, package_versions, this_machine
from core.onnx_model import OnnxModel
from core.progress import Progress, no_progress
from core.result import Report

TOLERANCE = 0.025  # how far the server's rate may lie below the least rate that misses, as a fraction
LOWEST_FRACTION = 1 / 16  # of the rate that single-stream suggests; below it an SLO counts as out of reach
MAX_TRIALS = 12
P50, P90, P99 = (f"result_{percent}.00_percentile_latency_ns" for percent in (50, 90, 99))  # LoadGen's names


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """What to measure, and for how long.

    Attributes:
        provider: Where the model runs.
        threads: Threads of the session; 0 takes the cores this process may use.
        scenarios: Some of single-stream, offline and server.
        slo_ms: Milliseconds that the server's p99 latency, queueing included, must not exceed; only server takes it.
        seconds: Least duration of a run of LoadGen; more where the p99 or the SLO needs it.
        batch_size: Samples a run in offline; the others answer samples one by one.
        sequence_length: Tokens of the made-up texts; None takes the most that the model reads.
        seed: Of LoadGen's random numbers: the server's arrival times.
    """

    provider: str = "cpu"
    threads: int = 0
    scenarios: tuple[str, ...] = ("single-stream", "offline")
    slo_ms: float | None = None
    seconds: float = 10.0
    batch_size: int = 1
    sequence_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.scenarios), f"scenarios is empty; give some of {', '.join(SCENARIOS)}")
        for name in self.scenarios:
            require(
                name in SCENARIOS,
                f"unknown scenario {name!r}.{did_you_mean(name, SCENARIOS)} It is one of {', '.join(SCENARIOS)}",
            )
        if "server" in self.scenarios:
            require(self.slo_ms is not None, "the server scenario needs slo_ms, the most its p99 latency may be")
        else:
            require(self.slo_ms is None, f"slo_ms is {self.slo_ms}, but only the server scenario takes one; add server")
        require(self.slo_ms is None or self.slo_ms > 0, f"slo_ms is {self.slo_ms}; it must be positive")
        require(self.threads >= 0, f"threads is {self.threads}; it must not be negative")
        require(self.seconds > 0, f"seconds is {self.seconds}; it must be positive")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        require(self.seed >= 0, f"seed is {self.seed}; it must not be negative")


class SingleStream(BaseModel, frozen=True):
    """Latency where each query waits for the one before, in milliseconds, over so many queries."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    queries: int


class Offline(BaseModel, frozen=True):
    """Throughput where all samples are there from the start, and how long they took."""

    samples_per_second: float
    batch_size: int
    seconds: float


class Trial(BaseModel, frozen=True):
    """One run of the server scenario.

    Attributes:
        rate: Of the Poisson process, in queries a second.
        completed_rate: Queries answered a second, from first to last: LoadGen's own figure of the run.
        p99_ms: Latency from when a query was due.
        ok: Whether that meets the SLO.
        queries: How many there were.
    """

    rate: float
    completed_rate: float
    p99_ms: float
    ok: bool
    queries: int


class Server(BaseModel, frozen=True):
    """The highest Poisson rate whose p99 latency meets the SLO.

    Attributes:
        slo_ms: The SLO in milliseconds.
        rate: Queries a second; None where none was found that meets it.
        p99_ms: At that rate.
        trials: In the order they were made; none where single-stream's p50 exceeds the SLO already.
    """

    slo_ms: float
    rate: float | None
    p99_ms: float | None
    trials: tuple[Trial, ...]


class ServiceReport(Report, frozen=True):
    """What was asked for (with server always single-stream too) and what it was measured with."""

    name: str
    sha256: str
    provider: str
    threads: int
    seed: int
    loadgen: str
    machine: Machine
    versions: dict[str, str]
    single_stream: SingleStream | None
    offline: Offline | None
    server: Server | None


def measure_service(model: OnnxModel, config: ServiceConfig, progress: Progress = no_progress) -> ServiceReport:
    """Measure a model under LoadGen's load.

    Every p99 is over `P99_SAMPLES` queries at least, which takes a slow model longer than `config.seconds`. On a GPU,
    copies of inputs and outputs count, as they do in a service.

    Args:
        model: What to measure, on made-up inputs.
        config: How.
        progress: Told of every scenario and of every trial of the server.

    Raises:
        ToolError: LoadGen is not installed, or the model cannot run there or at that batch size.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise ToolError("service figures need MLPerf LoadGen, which is not installed; pip install mlcommons-loadgen")
    wanted = {*config.scenarios, *(("single-stream",) if "server" in config.scenarios else ())}
    requests = {
        name: Request(
            scenario=name,
            seconds=config.seconds,
            seed=config.seed,
            batch_size=config.batch_size if name == "offline" else 1,
            sequence_length=config.sequence_length,
        )
        for name in SCENARIOS
        if name in wanted
    }
    for request in requests.values():
        request_inputs(model, request)  # refuses before anything runs
    figures = {}
    server = None
    with loadgen(model.path, config.provider, config.threads) as run:
        for name, request in requests.items():
            if name != "server":
                progress(name, 0, 1, "runs")
                figures[name] = _long_enough(run, request)
                progress(name, 1, 1, "runs")
            elif config.slo_ms is not None:
                server = _server(run, request, figures["single-stream"][P50] / 1e6, config.slo_ms, progress)
    return ServiceReport(
        stage="service",
        name=model.name,
        sha256=model.sha256,
        provider=config.provider,
        threads=config.threads,
        seed=config.seed,
        loadgen=next(iter(figures.values()))["loadgen_version"],
        machine=this_machine(),
        versions=package_versions(),
        single_stream=_single_stream(figures["single-stream"]) if "single-stream" in figures else None,
        offline=_offline(figures["offline"], config.batch_size) if "offline" in figures else None,
        server=server,
    )


def highest_rate(meets: Callable[[float], bool], start: float) -> float | None:
    """Return the highest rate found to meet the SLO: doubling or halving from `start`, then geometric bisection.

    Args:
        meets: Tries a rate.
        start: The first rate tried.

    Returns:
        A rate within `TOLERANCE` of one that misses, as far as `MAX_TRIALS` trials reach; None where all down to
        `LOWEST_FRACTION` of `start` miss.
    """
    passed, missed = 0.0, math.inf
    rate = start
    for _ in range(MAX_TRIALS):
        if meets(rate):
            passed = rate
        else:
            missed = rate
        if passed == 0:
            rate = missed / 2
            if rate < LOWEST_FRACTION * start:
                return None
        elif missed == math.inf:
            rate = 2 * passed
        elif missed <= passed * (1 + TOLERANCE):
            break
        else:
            rate = math.sqrt(passed * missed)
    return passed


def _long_enough(run: Run, request: Request) -> dict[str, Any]:
    """Run single-stream or offline; while LoadGen runs out of prepared queries too soon, again with more of them."""
    figures = run(request)
    while not figures["result_min_duration_met"]:
        key = "result_samples_per_second" if request.scenario == "offline" else "result_qps_with_loadgen_overhead"
        request = request.model_copy(update={"rate": max(2 * request.rate, 1.1 * figures[key])})
        figures = run(request)
    return figures


def _server(run: Run, request: Request, p50_ms: float, slo_ms: float, progress: Progress) -> Server:
    # At an overload of e, the last query of a run of length L waits e * L: a run this long fails any above TOLERANCE.
    seconds = max(request.seconds, slo_ms / 1000 / TOLERANCE)
    request = request.model_copy(update={"seconds": seconds, "slo_ns": round(slo_ms * 1e6)})
    trials: list[Trial] = []

    def meets(rate: float) -> bool:
        progress("server", len(trials), MAX_TRIALS, "trials")
        figures = run(request.model_copy(update={"rate": rate}))
        trial = Trial(
            rate=rate,
            completed_rate=figures["result_completed_samples_per_sec"],
            p99_ms=figures[P99] / 1e6,
            ok=figures["result_perf_constraints_met"],
            queries=figures["result_query_count"],
        )
        trials.append(trial)
        return trial.ok

    rate = highest_rate(meets, 1000 / p50_ms) if p50_ms <= slo_ms else None
    progress("server", MAX_TRIALS, MAX_TRIALS, "trials")
    p99_ms = next((trial.p99_ms for trial in trials if trial.rate == rate), None)
    return Server(slo_ms=slo_ms, rate=rate, p99_ms=p99_ms, trials=tuple(trials))


def _single_stream(figures: dict[str, Any]) -> SingleStream:
    return SingleStream(
        p50_ms=figures[P50] / 1e6,
        p90_ms=figures[P90] / 1e6,
        p99_ms=figures[P99] / 1e6,
        queries=figures["result_query_count"],
    )


def _offline(figures: dict[str, Any], batch_size: int) -> Offline:
    return Offline(
        samples_per_second=figures["result_samples_per_second"],
        batch_size=batch_size,
        seconds=figures["result_max_latency_ns"] / 1e9,
    )
