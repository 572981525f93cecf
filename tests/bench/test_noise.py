"""Other processes are noticed."""

import time

import pytest

from bench import noise as noise_module
from bench.noise import noise, others_watched


def test_a_busy_neighbour_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100.0, 1000.0), (103.0, 1004.0)])
    monkeypatch.setattr(noise_module, "_busy_and_total", lambda: next(readings))
    with others_watched() as others:
        pass
    assert others[0] == pytest.approx(0.75, abs=0.01)


def test_our_own_work_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_module, "_busy_and_total", lambda: (noise_module._own(), time.monotonic()))
    with others_watched() as others:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert others[0] < 0.05


def test_the_machine_counts_our_work_as_busy() -> None:
    busy, total = noise_module._busy_and_total()
    own = time.process_time()
    while time.process_time() - own < 0.3:
        pass
    busy_after, total_after = noise_module._busy_and_total()
    assert total_after - total + 0.05 >= busy_after - busy > 0.2  # which are counted in ticks


@pytest.mark.parametrize(("spread", "others", "noisy"), [(0.01, 0.02, False), (0.08, 0.0, True), (0.0, 0.3, True)])
def test_either_figure_makes_a_machine_noisy(spread: float, others: float, noisy: bool) -> None:
    found = noise(spread, others)
    assert found.noisy is noisy
    assert f"{100 * spread:.1f} % off their median" in str(found)
    assert f"took {100 * others:.0f} % of the CPU" in str(found)
