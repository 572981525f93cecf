"""How much to cut for a target: a share of channels, fewer MACs or parameters, or a speed that is measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from compress.pruning.channel_cut import CutSettings, cut_share
from compress.pruning.latency_search import SearchStep, search_latency
from core.data import Data
from core.describe import num_macs
from core.errors import GateMissedError, ToolError
from core.measuring import Measuring, SpeedTarget, Timed
from core.progress import Progress
from core.torch_model import TorchModel, num_params

BISECTION_STEPS = 9
WORDS = {"macs_ratio": "fewer MACs", "params_ratio": "fewer parameters"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A module with less in it, and how that was found."""

    module: nn.Module
    ratio: float | None = None
    dropped: tuple[str, ...] = ()
    search: tuple[SearchStep, ...] = ()
    timed: Timed | None = None


def cut_to_size(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    kind: str,
    target: float,
    progress: Progress,
) -> Cut:
    """Remove a share of the channels, or as many as the model is to be smaller by.

    Raises:
        GateMissedError: The target cannot be reached within the settings' `max_pruning_ratio`.
    """
    if kind == "pruning_ratio":
        return Cut(module=cut_share(original, model, settings, target), ratio=target)

    def missed(closest: float) -> str:
        return f"{target:.4g}x {WORDS[kind]} is out of reach: {closest:.2f}x is the closest"

    ratio, module = _bisect(original, model, settings, size_reach(kind, model), target, missed, progress)
    return Cut(module=module, ratio=ratio)


def cut_to_speed(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    target: SpeedTarget,
    own_ms: float,
    data: Data | None,
    measuring: Measuring,
    *,
    num_samples: int,
    drop_blocks: bool,
    progress: Progress,
) -> Cut:
    """Remove what makes the model, which takes `own_ms`, as fast as it is to be.

    Raises:
        ToolError: The allocation is ``latency`` and there is no data.
        GateMissedError: The target cannot be reached within the settings' `max_pruning_ratio`.
    """
    if settings.allocation != "latency":
        return _cut_by_stopwatch(original, model, settings, target, measuring, progress)
    if data is None:
        raise ToolError("the latency allocation measures damage on samples; give --data")
    found = search_latency(
        original,
        model,
        settings,
        target,
        data.split("train"),
        measuring,
        model_ms=own_ms,
        num_samples=num_samples,
        drop_blocks=drop_blocks,
        progress=progress,
    )
    return Cut(module=found.module, dropped=found.dropped, search=found.steps, timed=found.timed)


def size_reach(kind: str, model: TorchModel) -> Callable[[nn.Module], float]:
    """Return the function that says by what factor a cut module is smaller."""
    if kind == "macs_ratio":
        macs = num_macs(model, model.module)
        return lambda module: macs / num_macs(model, module)
    params = num_params(model.module)
    return lambda module: params / num_params(module)


def _cut_by_stopwatch(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    target: SpeedTarget,
    measuring: Measuring,
    progress: Progress,
) -> Cut:
    """Bisect the share of channels for a measured speed."""
    timed: dict[nn.Module, Timed] = {}
    steps: list[SearchStep] = []

    def reach(module: nn.Module) -> float:
        now = timed[module] = measuring.models(model, replace(model, module=module))
        steps.append(
            SearchStep(
                predicted_speedup=None,
                measured_speedup=now.speedup,
                latency_ms=now.candidate_ms,
                params=num_params(module),
            )
        )
        return target.reach(now)

    def missed(_: float) -> str:
        return target.missed_by(max(timed.values(), key=target.reach))

    try:
        ratio, module = _bisect(original, model, settings, reach, 1.0, missed, progress)
    except GateMissedError as error:
        ratios = [one["pruning_ratio"] for one in error.tried]
        rows = [
            {"pruning_ratio": ratio} | step.model_dump(exclude_none=True)
            for ratio, step in zip(ratios, steps, strict=True)
        ]
        raise GateMissedError(str(error), rows) from error
    return Cut(module=module, ratio=ratio, timed=timed[module], search=tuple(steps))


def _bisect(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    reach: Callable[[nn.Module], float],
    target: float,
    missed: Callable[[float], str],
    progress: Progress,
) -> tuple[float, nn.Module]:
    """Bisect the pruning ratio for the least cut that reaches the target; `missed` tells how close it came."""
    low, high = 0.0, settings.max_pruning_ratio
    best: tuple[float, nn.Module] | None = None
    tried: list[dict[str, float]] = []
    for attempt in range(BISECTION_STEPS):
        is_last = best is None and attempt + 1 == BISECTION_STEPS
        middle = high if is_last else (low + high) / 2
        module = cut_share(original, model, settings, middle)
        reached = reach(module)
        tried.append({"pruning_ratio": middle, "reached": reached, "params": num_params(module)})
        if reached >= target:
            high, best = middle, (middle, module)
        else:
            low = middle
        progress("prune", attempt + 1, BISECTION_STEPS, "attempts")
    if best is None:
        raise GateMissedError(
            f"{missed(max(one['reached'] for one in tried))} within "
            f"max_pruning_ratio {settings.max_pruning_ratio}; raise that or ignore fewer modules",
            tried,
        )
    return best
