"""Timing returns what was asked for; how fast is measured in perf/, not here."""

import numpy as np
import pytest

from bench.latency import P99_SAMPLES, measure_latencies, measure_speedup, summary
from core.errors import ToolError
from core.onnx_model import OnnxModel


def test_percentiles_are_those_of_the_sample() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1, 1001)).tolist()
    found = summary(times)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((500.5, 900.1, 990.01))
    assert found.iterations == 1000


@pytest.mark.parametrize(("count", "has_p99"), [(P99_SAMPLES - 1, False), (P99_SAMPLES, True)])
def test_a_p99_needs_its_sample(count: int, has_p99: bool) -> None:
    assert (summary([1.0] * count).p99_ms is not None) is has_p99


def test_every_model_gets_its_iterations(exported: OnnxModel, quantized: OnnxModel) -> None:
    seen = []
    found = measure_latencies(
        [exported.path, quantized.path],
        iterations=31,
        rounds=3,
        warmup=1,
        threads=1,
        progress=lambda text, done, total, unit: seen.append((done, total)),
    )
    assert [one.iterations for one in found] == [31, 31]
    assert all(0 < one.p50_ms <= one.p90_ms for one in found)
    assert seen == [(index, 6) for index in range(1, 7)]


def test_a_larger_batch_takes_longer(exported: OnnxModel) -> None:
    small, large = (
        measure_latencies([exported.path], batch_size=size, iterations=20, rounds=2, threads=1)[0] for size in (1, 256)
    )
    assert large.p50_ms > small.p50_ms


def test_a_speedup_is_a_ratio_of_medians(exported: OnnxModel) -> None:
    found = measure_speedup(exported, exported, provider="cpu", threads=1, batch_size=1)
    assert 0.3 < found < 3


def test_an_unknown_provider_is_refused(exported: OnnxModel) -> None:
    with pytest.raises(ToolError, match=r"unknown provider 'cdua'. Did you mean 'cuda'"):
        measure_latencies([exported.path], provider="cdua")
