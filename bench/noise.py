"""Whether the machine was quiet enough for what was measured on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from pydantic import BaseModel

NOISY_SPREAD_RATIO = 0.05
NOISY_OTHERS_RATIO = 0.1


class Noise(BaseModel, frozen=True):
    """How quiet the machine was.

    Attributes:
        round_spread_ratio: How far a round's median of the baseline is off typically, as a share; the worst setting's.
        others_cpu_ratio: Share of the machine's CPU time that other processes took meanwhile, the hypervisor included.
        noisy: Whether either is beyond what a quiet machine shows.
    """

    round_spread_ratio: float
    others_cpu_ratio: float
    noisy: bool

    def __str__(self) -> str:
        return (
            f"the baseline's rounds are {100 * self.round_spread_ratio:.1f} % off their median, other processes took "
            f"{100 * self.others_cpu_ratio:.0f} % of the CPU"
        )


@contextmanager
def others_watched() -> Iterator[list[float]]:
    """Yield a list that holds, at the end of the block, the share of CPU time that others took during it."""
    found: list[float] = []
    before, own_before = _busy_and_total(), _own()
    yield found
    after, own_after = _busy_and_total(), _own()
    total = after[1] - before[1]
    others = (after[0] - before[0]) - (own_after - own_before)
    found.append(min(1.0, max(0.0, others / total)) if total > 0 else 0.0)


def noise(round_spread_ratio: float, others_cpu_ratio: float) -> Noise:
    """Judge both figures."""
    noisy = round_spread_ratio > NOISY_SPREAD_RATIO or others_cpu_ratio > NOISY_OTHERS_RATIO
    return Noise(round_spread_ratio=round_spread_ratio, others_cpu_ratio=others_cpu_ratio, noisy=noisy)


def _busy_and_total() -> tuple[float, float]:
    times = psutil.cpu_times()
    total = sum(times[:8]) if len(times) > 8 else sum(times)  # Linux counts guests within user
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
