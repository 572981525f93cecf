"""Fair timing: models side by side in short turns, in rounds that each open them anew, until the ratios are sharp.

A shared machine is faster in one second than in the next, by tens of percents; two turns a few milliseconds apart meet
the same machine, so that their ratio tells the models apart.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel

from bench.intervals import (
    P90_SAMPLES,
    P99_SAMPLES,
    FloatArray,
    Interval,
    Verdict,
    centre,
    percentile_interval,
    signed_rank_interval,
    speed_verdict,
)
from bench.runnable import Open, open_onnx_run
from core.errors import require
from core.measuring import Timed
from core.onnx_model import OnnxModel
from core.progress import Progress, no_progress

IDLE_MS = 10.0  # a while long enough to see whether threads spin: the kernel counts a thread's time in ticks of 4 ms
IDLE_RATIO = 0.2  # of a core's time over that while, under which no thread of ours spins
MAX_IDLE_WAITS = 50
SETTLE_MS = 6.0  # untimed at the start of a turn: caches fill, and the core is awake again
STEADY_RATIO = 0.98  # warm-up ends when a window is no faster than this share of the best before it
MAX_WARMUP_WINDOWS = 20
WINDOW_MS = 10.0
WARMUP_RATIO = 0.5  # of a round's share of the time, at most, where models are slow


@dataclass(frozen=True, slots=True)
class _Pace:
    """How many turns a model gets in a round, at least, and how long one is."""

    turns: int
    turn_ms: float


CLOSE = _Pace(turns=12, turn_ms=5.0)
APART = _Pace(turns=5, turn_ms=20.0)  # where every turn has to wait for another model's threads to stop spinning


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingConfig:
    """How long to measure.

    Attributes:
        iterations: Least timed runs of each model, as far as `max_seconds` allows.
        rounds: Least rounds to spread them over, likewise; every round opens the models anew.
        max_rounds: Rounds after which measuring stops though the speedups are not sharp.
        half_width: Half-width of the speedups' intervals, as a share, at which measuring stops.
        max_seconds: Time that all rounds take at most; the first is run whatever it takes. Slow models get fewer, and
            with too few there is no interval.
        seed: Seeds the order of turns.
    """

    iterations: int = 700
    rounds: int = 20
    max_rounds: int = 80
    half_width: float = 0.01
    max_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations is {self.iterations}; it must be at least 1")
        require(self.rounds >= 1, f"rounds is {self.rounds}; it must be at least 1")
        require(self.max_rounds >= 1, f"max_rounds is {self.max_rounds}; it must be at least 1")
        require(self.half_width > 0, f"half_width is {self.half_width}; it must be above 0")
        require(self.max_seconds > 0, f"max_seconds is {self.max_seconds}; it must be above 0")


AGAINST = TimingConfig(iterations=400, rounds=10, max_rounds=20)
"""Of `measure_against`, which stages compare models by on their way."""


class Latency(BaseModel, frozen=True):
    """The time of one run.

    Attributes:
        p50_ms: Median, in milliseconds; likewise p90 and p99, None where the sample is too small for them.
        p50_interval_ms: Its 95 % interval, None for fewer than 5 rounds; likewise p90 and p99.
        iterations: Timed runs.
        warmup_runs: Untimed runs until the time was steady, in the first round.
        round_p50_ms: Median of each round.
        percentiles_ms: Percentiles 0 to 100.
    """

    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    p50_interval_ms: Interval | None
    p90_interval_ms: Interval | None
    p99_interval_ms: Interval | None
    iterations: int
    warmup_runs: int
    round_p50_ms: tuple[float, ...]
    percentiles_ms: tuple[float, ...]


class Speedup(BaseModel, frozen=True):
    """One model's speed against another's, from the same rounds.

    Attributes:
        ratio: The centre of the rounds' ratios, the other's time over this one's. On a machine that is now fast, now
            slow, it says more than the ratio of the two p50s, which may have met different seconds.
        interval: Its 99 % interval; None where there are too few rounds.
        verdict: ``faster`` or ``slower`` where the whole interval says so, beyond what copies of one file differ by.
    """

    ratio: float
    interval: Interval | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Timings:
    """What was timed: for each model, the times of each round in milliseconds.

    Attributes:
        rounds_ms: rounds_ms[model][round] is an array of times, (turns, runs); a round has as many turns of each model.
        warmup_runs: Of each model, in the first round.
        sharp: Whether all speedups are known to the half-width asked for.
    """

    rounds_ms: tuple[tuple[FloatArray, ...], ...]
    warmup_runs: tuple[int, ...]
    sharp: bool


def measure(models: Sequence[Open], config: TimingConfig, progress: Progress = no_progress) -> Timings:
    """Time models in turns.

    A round opens every model anew, since where its memory lies moves a model's time by a percent and stays for as long
    as it is open. Within a round the models take short turns in random order, so that what slows the machine meets all
    of them. Rounds are added until the speedups to the first model are as sharp as asked for.

    Args:
        models: Each opens a model and returns the function that runs it once.
        config: How long.
        progress: Told of every round.
    """
    random = np.random.default_rng(config.seed)
    rounds: list[list[FloatArray]] = [[] for _ in models]
    warmups = [0] * len(models)
    started = time.monotonic()
    num_rounds, index, sharp = min(config.rounds, config.iterations), 0, False
    share_s = config.max_seconds / num_rounds
    while not index or _goes_on(index, num_rounds, time.monotonic() - started, config, sharp=sharp):
        began = time.monotonic()
        runs: list[Callable[[], object]] = [lambda: None] * len(models)
        for model in random.permutation(len(models)):
            runs[model] = models[model]()
        steady = [warm_up(run, WARMUP_RATIO * share_s / len(models)) for run in runs]
        if index == 0:
            warmups = [count for count, _ in steady]
        wait = any(_leaves_threads_spinning(run) for run in runs)
        left_ms = 1000 * (share_s - (time.monotonic() - began))
        wanted = math.ceil(config.iterations / num_rounds)
        turns, counts = _turns([run_ms for _, run_ms in steady], wanted, left_ms, APART if wait else CLOSE)
        for model, times in enumerate(_round(runs, turns, counts, random, wait=wait)):
            rounds[model].append(times)
        del runs
        index += 1
        sharp = _sharp(rounds, config.half_width)
        progress("measure", index, max(index, num_rounds), "rounds")
    return Timings(tuple(tuple(times) for times in rounds), tuple(warmups), sharp)


def _goes_on(done: int, num_rounds: int, spent_s: float, config: TimingConfig, *, sharp: bool) -> bool:
    """Tell whether another round is wanted, and fits into the time if it takes as long as those that are done."""
    is_wanted = done < num_rounds or (not sharp and done < config.max_rounds)
    return is_wanted and spent_s * (done + 1) / done <= config.max_seconds


def warm_up(run: Callable[[], object], max_seconds: float = math.inf) -> tuple[int, float]:
    """Run until the time is steady: until a window of runs is no longer faster than those before it.

    Args:
        run: Runs the model once.
        max_seconds: Time after which no further window begins.

    Returns:
        How many runs it took, and the median time of the last window's in milliseconds.
    """
    _wait_for_idle_threads()
    until = time.monotonic() + max_seconds
    best, count = math.inf, 0
    median = _timed(run, 1)[0]  # the first run allocates
    for _ in range(MAX_WARMUP_WINDOWS):
        if time.monotonic() > until:
            break
        size = min(100, max(3, int(WINDOW_MS / median)))
        median = float(np.median(_timed(run, size)))
        count += size
        if median > STEADY_RATIO * best:
            break
        best = min(best, median)
    return count + 1, median


def latency(rounds_ms: Sequence[FloatArray], warmup_runs: int) -> Latency:
    """Sum up the times of one model."""
    rounds_ms = [one.ravel() for one in rounds_ms]
    times = np.concatenate(rounds_ms)
    enough = {50: True, 90: len(times) >= P90_SAMPLES, 99: len(times) >= P99_SAMPLES}
    values = {percent: float(np.percentile(times, percent)) if ok else None for percent, ok in enough.items()}
    intervals = {percent: percentile_interval(rounds_ms, percent) if ok else None for percent, ok in enough.items()}
    return Latency(
        p50_ms=float(np.median(times)),
        p90_ms=values[90],
        p99_ms=values[99],
        p50_interval_ms=intervals[50],
        p90_interval_ms=intervals[90],
        p99_interval_ms=intervals[99],
        iterations=len(times),
        warmup_runs=warmup_runs,
        round_p50_ms=tuple(float(np.median(one)) for one in rounds_ms),
        percentiles_ms=tuple(float(value) for value in np.percentile(times, range(101))),
    )


def speedup(baseline_ms: Sequence[FloatArray], candidate_ms: Sequence[FloatArray]) -> Speedup:
    """Compare two models timed in the same rounds, arrays of (turns, runs)."""
    ratios = _log_ratios(baseline_ms, candidate_ms)
    found = signed_rank_interval(ratios)
    interval = (math.exp(found[0]), math.exp(found[1])) if found else None
    return Speedup(ratio=math.exp(centre(ratios)), interval=interval, verdict=speed_verdict(interval))


def round_spread(rounds_ms: Sequence[FloatArray]) -> float:
    """Return how far a round's median is off typically: the median deviation from the median, as a share."""
    medians = np.array([np.median(one) for one in rounds_ms])
    return float(np.median(np.abs(medians / np.median(medians) - 1)))


def measure_against(
    baseline: OnnxModel,
    candidates: Sequence[OnnxModel],
    *,
    provider: str,
    threads: int,
    batch_size: int,
    half_width: float = 0.015,
) -> list[Timed]:
    """Time models in the same rounds as a first, until their ratios are known to a half-width or 20 rounds are over.

    Raises:
        ToolError: A model cannot run there.
    """
    opens = [open_onnx_run(model, provider, threads, batch_size) for model in (baseline, *candidates)]
    config = replace(AGAINST, half_width=half_width, max_seconds=30.0 * len(opens))
    first, *others = measure(opens, config).rounds_ms
    return [Timed(_p50_ms(first), _p50_ms(one), speedup(first, one).ratio) for one in others]


def _turns(run_ms: Sequence[float], wanted: int, left_ms: float, pace: _Pace) -> tuple[int, list[int]]:
    """Return how many turns a round has, and each model's runs in one: the wanted runs, as far as the time allows."""
    counts = [min(wanted, max(2, int(pace.turn_ms / one))) for one in run_ms]
    turns = max(min(wanted, pace.turns), *(math.ceil(wanted / count) for count in counts))
    turn_ms = sum(max(SETTLE_MS, one) + count * one for one, count in zip(run_ms, counts, strict=True))
    return max(1, min(turns, int(left_ms / turn_ms))), counts


def _round(
    runs: Sequence[Callable[[], object]], turns: int, counts: Sequence[int], random: np.random.Generator, *, wait: bool
) -> list[FloatArray]:
    """Give every model its turns, in a new order each time."""
    times: list[list[list[float]]] = [[] for _ in runs]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(turns):
            for model in random.permutation(len(runs)):
                if wait:
                    _wait_for_idle_threads()
                _settle(runs[model])
                times[model].append(_timed(runs[model], counts[model]))
    finally:
        if collecting:
            gc.enable()
    return [np.array(one) for one in times]


def _settle(run: Callable[[], object]) -> None:
    until = time.perf_counter() + SETTLE_MS / 1000
    run()
    while time.perf_counter() < until:
        run()


def _leaves_threads_spinning(run: Callable[[], object]) -> bool:
    run()
    return threads_spin()


def _wait_for_idle_threads() -> None:
    """Wait until no thread of this process spins: idle threads of ONNX Runtime's other sessions do, for 40 ms."""
    for _ in range(MAX_IDLE_WAITS):
        if not threads_spin():
            break


def threads_spin() -> bool:
    """Wait a moment, and tell whether a thread of this process used the processor meanwhile."""
    before = time.process_time()
    time.sleep(IDLE_MS / 1000)
    return time.process_time() - before >= IDLE_RATIO * IDLE_MS / 1000


def _timed(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def _p50_ms(rounds_ms: Sequence[FloatArray]) -> float:
    return float(np.median(np.concatenate([one.ravel() for one in rounds_ms])))


def _log_ratios(baseline_ms: Sequence[FloatArray], candidate_ms: Sequence[FloatArray]) -> list[float]:
    """Return the logarithm of the ratio in each round: the median of its turns' ratios."""
    return [
        float(np.median(np.log(np.median(first, axis=1) / np.median(second, axis=1))))
        for first, second in zip(baseline_ms, candidate_ms, strict=True)
    ]


def _sharp(rounds: Sequence[Sequence[FloatArray]], half_width: float) -> bool:
    """Tell whether every speedup to the first model is known to the half-width."""
    for candidate in rounds[1:]:
        found = signed_rank_interval(_log_ratios(rounds[0], candidate))
        if found is None or (found[1] - found[0]) / 2 > half_width:
            return False
    return True
