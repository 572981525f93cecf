"""Other processes are noticed."""

import subprocess
import sys
import time

import pytest

from bench.noise import noise, others_watched
from core.machine import available_cores


def test_a_busy_neighbour_is_noticed() -> None:
    code = "import time\nuntil = time.time() + 1.5\nwhile time.time() < until: pass"
    neighbours = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(available_cores())]
    with others_watched() as others:
        time.sleep(1.0)
    for neighbour in neighbours:
        neighbour.wait()
    assert others[0] > 0.5


def test_our_own_work_does_not_count() -> None:
    with others_watched() as alone:
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until:
            pass
    with others_watched() as idle:
        time.sleep(1.0)
    assert alone[0] <= idle[0] + 0.3


@pytest.mark.parametrize(("spread", "others", "noisy"), [(0.01, 0.02, False), (0.08, 0.0, True), (0.0, 0.3, True)])
def test_either_figure_makes_a_machine_noisy(spread: float, others: float, noisy: bool) -> None:
    found = noise(spread, others)
    assert found.noisy is noisy
    assert f"{100 * spread:.1f} % off their median" in str(found)
    assert f"took {100 * others:.0f} % of the CPU" in str(found)
