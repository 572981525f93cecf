"""Latency of ONNX Runtime sessions, measured interleaved."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from core.onnx_model import OnnxModel, open_onnx
from core.progress import Progress, no_progress
from core.sessions import made_up_inputs, open_session, run_session

P99_SAMPLES = 662  # MLPerf LoadGen's least sample for a p99 at 99 % confidence; fewer say nothing about it


class Latency(BaseModel, frozen=True):
    """Percentiles of one run's time, in milliseconds; p99 is None where the sample is too small for one."""

    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    iterations: int


def measure_latencies(
    paths: Sequence[Path],
    *,
    provider: str = "cpu",
    threads: int = 0,
    batch_size: int = 1,
    warmup: int = 10,
    iterations: int = 700,
    rounds: int = 10,
    progress: Progress = no_progress,
) -> list[Latency]:
    """Time models round-robin: every round gives each of them a session, a warm-up and a share of the iterations.

    Only one session is alive at a time, since the idle threads of others spin and would slow the one being timed.

    Args:
        paths: The .onnx files.
        provider: Where they run.
        threads: Threads of a session; 0 takes the cores this process may use.
        batch_size: Samples a run.
        warmup: Untimed runs at the start of each round.
        iterations: Timed runs of each model in all.
        rounds: Rounds to spread them over.
        progress: Told of every block.

    Raises:
        ToolError: A model cannot run there.
    """
    inputs = [made_up_inputs(open_onnx(path), batch_size) for path in paths]
    times_ms: list[list[float]] = [[] for _ in paths]
    rounds = min(rounds, iterations)
    for round_index in range(rounds):
        num_runs = iterations // rounds + (round_index < iterations % rounds)
        for index, path in enumerate(paths):
            session = open_session(path, provider, threads)
            for _ in range(warmup):
                run_session(session, *inputs[index])
            feed = dict(zip([value.name for value in session.get_inputs()], inputs[index], strict=True))
            for _ in range(num_runs):
                started = time.perf_counter_ns()
                session.run(None, feed)
                times_ms[index].append((time.perf_counter_ns() - started) / 1e6)
            del session
            progress("measure", round_index * len(paths) + index + 1, rounds * len(paths), "blocks")
    return [summary(times) for times in times_ms]


def summary(times_ms: Sequence[float]) -> Latency:
    """Return the percentiles of a sample of times in milliseconds."""
    p50, p90, p99 = np.percentile(times_ms, (50, 90, 99))
    return Latency(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99) if len(times_ms) >= P99_SAMPLES else None,
        iterations=len(times_ms),
    )


def measure_speedup(
    baseline: OnnxModel, candidate: OnnxModel, *, provider: str, threads: int, batch_size: int
) -> float:
    """Return the baseline's p50 over the candidate's, from interleaved runs."""
    first, second = measure_latencies(
        [baseline.path, candidate.path],
        provider=provider,
        threads=threads,
        batch_size=batch_size,
        iterations=300,
        rounds=6,
    )
    return first.p50_ms / second.p50_ms
