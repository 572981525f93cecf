"""How a stage learns what its model takes on ONNX Runtime: handed in, since `compress` exports and times nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from core.layer_shape import TimeLayers
from core.torch_model import TorchModel


class Timed(NamedTuple):
    """Two models timed side by side.

    Attributes:
        baseline_ms: The first one's p50.
        candidate_ms: The second one's.
        speedup: The first's over the second's, from interleaved rounds.
    """

    baseline_ms: float
    candidate_ms: float
    speedup: float


@dataclass(frozen=True, slots=True)
class SpeedTarget:
    """How fast a model is to be.

    Attributes:
        speedup: Factor by which its time is to fall.
        latency_ms: What it is to take; None where the factor is what was asked for.
    """

    speedup: float
    latency_ms: float | None = None

    def reach(self, timed: Timed) -> float:
        """Return the candidate's speed as a share of the target's: 1 or more reaches it."""
        return timed.speedup / self.speedup if self.latency_ms is None else self.latency_ms / timed.candidate_ms

    def missed_by(self, closest: Timed) -> str:
        """Say that the target is out of reach, and what the closest was."""
        if self.latency_ms is None:
            return f"{self.speedup:.4g}x the speed is out of reach: {closest.speedup:.2f}x is the closest"
        return f"{self.latency_ms:.4g} ms is out of reach: {closest.candidate_ms:.4g} ms is the closest"


@dataclass(frozen=True, slots=True)
class Measuring:
    """What times a model as it will be deployed: on its provider, at its threads, batch and precision.

    Attributes:
        models: Exports two torch models, quantizes them where they are to be int8, and times them interleaved.
        layers: Times single layers.
    """

    models: Callable[[TorchModel, TorchModel], Timed]
    layers: TimeLayers
