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
class Measuring:
    """What times a model as it will be deployed: on its provider, at its threads, batch and precision.

    Attributes:
        models: Exports two torch models, quantizes them where they are to be int8, and times them interleaved.
        layers: Times single layers.
    """

    models: Callable[[TorchModel, TorchModel], Timed]
    layers: TimeLayers
