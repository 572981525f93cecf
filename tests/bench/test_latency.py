"""Timing returns what was asked for; how fast is measured in perf/, not here."""

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from bench.intervals import P90_SAMPLES, P99_SAMPLES
from bench.latency import (
    TimingConfig,
    _goes_on,
    latency,
    measure,
    measure_against,
    round_spread,
    speedup,
    threads_spin,
    warm_up,
)
from bench.runnable import Open
from core.onnx_model import OnnxModel


def busy(milliseconds: float, opened: list[float] | None = None) -> Open:
    """Opens a model that takes as long as it is told."""

    def run() -> None:
        until = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < until:
            pass

    def open_() -> Callable[[], None]:
        if opened is not None:
            opened.append(milliseconds)
        return run

    return open_


def test_percentiles_are_those_of_the_sample() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1.0, 1001))
    found = latency(np.split(times, 10), 7)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((500.5, 900.1, 990.01))
    assert found.iterations == 1000
    assert found.warmup_runs == 7
    assert len(found.round_p50_ms) == 10
    assert (found.percentiles_ms[0], found.percentiles_ms[50], found.percentiles_ms[100]) == (1, 500.5, 1000)
    assert found.p50_interval_ms is not None
    assert found.p50_interval_ms[0] < 500.5 < found.p50_interval_ms[1]


@pytest.mark.parametrize(
    ("count", "has_p90", "has_p99"),
    [
        (P90_SAMPLES - 1, False, False),
        (P90_SAMPLES, True, False),
        (P99_SAMPLES - 1, True, False),
        (P99_SAMPLES, True, True),
    ],
)
def test_a_percentile_needs_its_sample(count: int, has_p90: bool, has_p99: bool) -> None:
    found = latency([np.ones(count)], 1)
    assert (found.p90_ms is not None, found.p99_ms is not None) == (has_p90, has_p99)
    assert found.p99_interval_ms is None


def test_every_model_gets_its_iterations_and_is_opened_anew_in_every_round() -> None:
    opened: list[float] = []
    seen: list[tuple[int, int]] = []
    config = TimingConfig(iterations=30, rounds=3, max_rounds=3)
    found = measure(
        [busy(0.1, opened), busy(0.2, opened)], config, lambda text, done, total, unit: seen.append((done, total))
    )
    assert all(one.size >= 10 for times in found.rounds_ms for one in times)
    assert [len(times) for times in found.rounds_ms] == [3, 3]
    assert sorted(opened) == [0.1] * 3 + [0.2] * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_rounds_are_added_until_the_ratio_is_sharp_or_the_rounds_run_out() -> None:
    blunt = measure([busy(0.1), busy(0.1)], TimingConfig(iterations=8, rounds=8, max_rounds=9, half_width=1e-9))
    assert len(blunt.rounds_ms[0]) == 9
    assert not blunt.sharp
    sharp = measure([busy(0.1), busy(0.1)], TimingConfig(iterations=80, rounds=8, max_rounds=20, half_width=0.5))
    assert len(sharp.rounds_ms[0]) == 8
    assert sharp.sharp


def test_a_slow_model_stops_at_the_time_limit_with_fewer_iterations() -> None:
    found = measure([busy(20.0)], TimingConfig(iterations=700, rounds=4, max_seconds=0.4))
    assert sum(one.size for one in found.rounds_ms[0]) < 100


def test_a_slow_model_is_measured_as_long_as_asked_for_and_nothing_is_said_of_it_that_needs_more() -> None:
    """Its first round takes longer than the whole time, after which there is none."""
    opened: list[float] = []
    found = measure([busy(30.0, opened), busy(30.0)], TimingConfig(max_seconds=0.1))
    assert opened == [30.0]
    assert [len(times) for times in found.rounds_ms] == [1, 1]
    assert found.rounds_ms[0][0].size == 2
    assert not found.sharp
    assert speedup(*found.rounds_ms).interval is None
    assert latency(found.rounds_ms[0], 1).p50_interval_ms is None


@pytest.mark.parametrize(
    ("done", "spent_s", "sharp", "goes_on"),
    [
        (1, 4.9, False, True),
        (1, 5.1, False, False),  # a second would end after 10 seconds
        (4, 7.9, True, True),
        (4, 8.1, True, False),
        (5, 1.0, True, False),
        (5, 1.0, False, True),
        (9, 1.0, False, False),
    ],
)
def test_rounds_are_as_many_as_are_wanted_and_fit(done: int, spent_s: float, sharp: bool, goes_on: bool) -> None:
    config = TimingConfig(rounds=5, max_rounds=9, max_seconds=10.0)
    assert _goes_on(done, 5, spent_s, config, sharp=sharp) == goes_on


def test_warm_up_goes_on_while_runs_get_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = iter([20.0] * 3 + [12.0] * 3 + [8.0] * 3 + [5.0] * 100)
    monkeypatch.setattr("bench.latency._timed", lambda _, count: np.array([next(milliseconds) for _ in range(count)]))
    count, steady_ms = warm_up(lambda: None)
    assert count >= 10
    assert steady_ms == 5.0


def test_what_is_twice_as_slow_is_called_slower() -> None:
    found = measure([busy(0.2), busy(0.4)], TimingConfig(iterations=80, rounds=8, max_rounds=8))
    verdict = speedup(*found.rounds_ms)
    assert verdict.verdict == "slower"
    assert verdict.interval is not None
    assert verdict.interval[0] <= verdict.ratio * 1.05
    assert 0.3 < verdict.ratio < 0.8


def test_turns_side_by_side_tell_models_apart_though_the_machine_drifts() -> None:
    random = np.random.default_rng(0)
    machine = [np.exp(random.normal(0, 0.3, (12, 1))) for _ in range(20)]
    first, second = ([drift * ms * np.ones((12, 3)) for drift in machine] for ms in (1.0, 1.03))
    found = speedup(first, second)
    assert found.verdict == "slower"
    assert found.interval == pytest.approx((1 / 1.03, 1 / 1.03))


def test_turns_are_as_many_for_all_and_longer_for_the_fast() -> None:
    found = measure([busy(0.1), busy(1.0)], TimingConfig(iterations=20, rounds=1, max_rounds=1))
    fast, slow = (times[0] for times in found.rounds_ms)
    assert len(fast) == len(slow) >= 5
    assert fast.shape[1] > slow.shape[1]


def test_the_spread_of_rounds_is_relative() -> None:
    assert round_spread([np.full(5, value) for value in (9.0, 10.0, 11.0)]) == pytest.approx(0.1)


def test_a_speedup_is_a_ratio_of_medians(exported: OnnxModel) -> None:
    found = measure_against(exported, [exported, exported], provider="cpu", threads=1, batch_size=1)
    assert all(0.3 < one.speedup < 3 for one in found)
    assert found[0].baseline_ms == found[1].baseline_ms > 0


@pytest.mark.parametrize(
    "values", [{"iterations": 0}, {"rounds": 0}, {"max_rounds": 0}, {"half_width": 0.0}, {"max_seconds": 0.0}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TimingConfig(**values)


def test_no_turn_starts_while_threads_of_another_model_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    spinning, left, seen = 0, 0, []

    def spins() -> bool:
        nonlocal spinning
        spinning -= 1
        return spinning >= 0

    def leaves_threads_spinning() -> None:
        nonlocal spinning, left
        spinning, left = 5, left + 1

    monkeypatch.setattr("bench.latency.threads_spin", spins)
    looks = partial(lambda: seen.append(spinning > 0))
    measure([lambda: leaves_threads_spinning, lambda: looks], TimingConfig(iterations=10, rounds=1, max_rounds=1))
    assert min(left, len(seen)) >= 10
    assert not any(seen)


def test_a_thread_that_spins_is_noticed() -> None:
    thread = threading.Thread(target=busy(300.0)())
    thread.start()
    noticed = [threads_spin() for _ in range(10)]
    thread.join()
    assert any(noticed)
    assert not all(threads_spin() for _ in range(20))
