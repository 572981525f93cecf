"""The search for the least damage at a latency: predict from the table, cut, time the real thing, correct, repeat."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel
from torch import nn

from compress.pruning.channel_cut import CutSettings, cut_groups, naming_all
from compress.pruning.channel_groups import ChannelGroup, channel_groups
from compress.pruning.damage import Change, damage_of
from compress.pruning.latency_allocation import LatencyTable, Option, Unit, choose, find_units, latency_table
from compress.pruning.residual_blocks import residual_blocks
from core.data import Split
from core.errors import GateMissedError
from core.layer_shape import layer_shapes
from core.measuring import Measuring, SpeedTarget, Timed
from core.progress import Progress
from core.torch_model import TorchModel, num_params

logger = logging.getLogger(__name__)

ATTEMPTS = 8  # models exported and timed
MOST_CHOICES = 40
CLOSE = 0.001  # of the model's time, between which two savings are the same
TOLERANCE = 0.02  # above the target, within which an attempt is taken
NEAR_MISS = 0.01  # below the target, within which an attempt is taken where none reaches it


class SearchStep(BaseModel, frozen=True):
    """One attempt.

    Attributes:
        predicted_speedup: From the table of layers; None where there is none.
        measured_speedup: On ONNX Runtime.
        latency_ms: What the attempt took there.
        params: Parameters left.
        damage: Divergence expected of it, in nats; None where it was not looked at.
    """

    predicted_speedup: float | None
    measured_speedup: float
    latency_ms: float
    params: int
    damage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The module that the search ended with, the blocks it leaves out, its timing, and all attempts."""

    module: nn.Module
    dropped: tuple[str, ...]
    timed: Timed
    steps: tuple[SearchStep, ...]


def search_latency(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    target: SpeedTarget,
    split: Split,
    measuring: Measuring,
    *,
    model_ms: float,
    num_samples: int,
    drop_blocks: bool,
    progress: Progress,
) -> Found:
    """Narrow groups and leave out blocks until the model is that much faster where it will run.

    Args:
        original: The model's module, with gradients where the importance needs them; left untouched.
        model: The model.
        settings: How channels are ranked, and what is ignored.
        target: How fast.
        split: Samples that damage is measured on; labels are not read.
        measuring: Times models and layers.
        model_ms: What the model takes as it is.
        num_samples: How many samples.
        drop_blocks: Whether blocks may go.
        progress: Told of every look and every attempt.

    Raises:
        ToolError: torch-pruning cannot follow the module, some of what is in it does not run when narrower, or a
            candidate cannot be exported.
        GateMissedError: The target is out of reach; the closest attempt is named.
    """
    groups = channel_groups(original, model, settings)
    _require_that_halves_run(original, model, settings, groups)
    blocks = residual_blocks(model, settings.ignored) if drop_blocks else ()
    table = latency_table(layer_shapes(model), groups, settings, measuring.layers, model_ms)

    def measure_damage(changes: Sequence[Change]) -> list[float]:
        return damage_of(changes, original, split, model.preprocessing, num_samples, progress)

    units = find_units(original, groups, blocks, table, measure_damage)
    return _attempts(_Search(original, model, settings, measuring, groups, table), target, units, progress)


def _require_that_halves_run(
    original: nn.Module, model: TorchModel, settings: CutSettings, groups: Sequence[ChannelGroup]
) -> None:
    """Raise `ToolError` with all modules that do not run when they are narrower, before anything is measured."""
    halves = {tuple(group.outputs): (group.width - group.width // 2 + 0.5) / group.width for group in groups}
    naming_all(model, settings, lambda own: cut_groups(original, model, own, halves))


@dataclass(frozen=True, slots=True)
class _Search:
    """What stays the same from attempt to attempt."""

    original: nn.Module
    model: TorchModel
    settings: CutSettings
    measuring: Measuring
    groups: Sequence[ChannelGroup]
    table: LatencyTable


def _attempts(search: _Search, target: SpeedTarget, units: Sequence[Unit], progress: Progress) -> Found:
    """Correct what is asked of the table by what was measured, until that is the target."""
    whole_ms = search.table.total_ms(search.groups, {}, ())
    low, high = 0.0, sum(max(option.saving_ms for option in unit) for unit in units)
    saving_ms = min(whole_ms * (1 - 1 / target.speedup), high)
    tried: list[_Attempt] = []
    left = [(0.0, 1.0)]  # the table's saving, and the share of its time that the model then takes
    for _ in range(MOST_CHOICES):
        chosen = choose(units, saving_ms)
        if chosen is None or not whole_ms or len(tried) == ATTEMPTS or (tried and high - low < CLOSE * whole_ms):
            break
        known = next((one for one in tried if one.chosen == chosen), None)
        attempt = known or _attempt(search, chosen)
        if known is None:
            tried.append(attempt)
            progress("search", len(tried), ATTEMPTS, "attempts")
        reach = target.reach(attempt.timed)
        if 1 <= reach <= 1 + TOLERANCE:
            break
        low, high = (max(low, saving_ms, chosen.saving_ms), high) if reach < 1 else (low, min(high, saving_ms))
        left.append((chosen.saving_ms, 1 / (reach * target.speedup)))
        saving_ms = _next_saving(left, 1 / target.speedup)
        if known or not low < saving_ms < high:
            saving_ms = (low + high) / 2
    best = _best(target, tried)
    if best is None:
        raise GateMissedError(_out_of_reach(search, target, tried), [one.step.model_dump() for one in tried])
    if target.reach(best.timed) < 1:
        logger.warning(
            "%s; it is taken, since it misses by no more than %g %%", target.missed_by(best.timed), 100 * NEAR_MISS
        )
    return Found(
        module=best.module, dropped=best.chosen.dropped, timed=best.timed, steps=tuple(one.step for one in tried)
    )


def _next_saving(left: Sequence[tuple[float, float]], wanted: float) -> float:
    """Return the saving that ought to leave a wanted share of the time, by the line through the nearest attempts.

    A table's savings may add up to more than the whole time: a layer that is narrowed on both sides is saved twice.

    Args:
        left: (saving, share of the time that was left) of each attempt, and of none.
        wanted: The share.
    """
    slower = sorted(one for one in left if one[1] > wanted)
    faster = sorted(one for one in left if one[1] <= wanted)
    (saving, share), (other, other_share) = slower[-1], (faster[0] if faster else slower[-2])
    if share == other_share:
        return (saving + other) / 2
    found = saving + (share - wanted / (1 + TOLERANCE / 2)) * (other - saving) / (share - other_share)
    if not faster:
        return found
    margin = (other - saving) / 10  # a line that bends would be followed in ever smaller steps
    return min(max(found, saving + margin), other - margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    chosen: Option
    module: nn.Module
    timed: Timed
    step: SearchStep


def _attempt(search: _Search, chosen: Option) -> _Attempt:
    """Cut as chosen, and time what is left."""
    groups, table = search.groups, search.table
    left = {
        tuple(group.outputs): (chosen.left[group.name] + 0.5) / group.width  # torch-pruning rounds down
        for group in groups
        if group.name in chosen.left
    }
    module = cut_groups(search.original, search.model, search.settings, left, chosen.dropped)
    timed = search.measuring.models(search.model, replace(search.model, module=module))
    step = SearchStep(
        predicted_speedup=table.total_ms(groups, {}, ()) / table.total_ms(groups, chosen.left, chosen.dropped),
        measured_speedup=timed.speedup,
        latency_ms=timed.candidate_ms,
        params=num_params(module),
        damage=chosen.damage,
    )
    logger.info(
        "tried %.2fx by the table: %.2fx as measured, %d parameters",
        step.predicted_speedup,
        step.measured_speedup,
        step.params,
    )
    return _Attempt(chosen=chosen, module=module, timed=timed, step=step)


def _best(target: SpeedTarget, tried: Sequence[_Attempt]) -> _Attempt | None:
    """Return the slowest attempt that is fast enough; where none is, the closest one, unless that is too far off."""
    enough = [one for one in tried if target.reach(one.timed) >= 1]
    if enough:
        return min(enough, key=lambda one: target.reach(one.timed))
    near = [one for one in tried if target.reach(one.timed) >= 1 - NEAR_MISS]
    return max(near, key=lambda one: target.reach(one.timed), default=None)


def _out_of_reach(search: _Search, target: SpeedTarget, tried: Sequence[_Attempt]) -> str:
    closest = max(tried, key=lambda one: target.reach(one.timed), default=None)
    if closest is None:
        return f"{target.speedup:.4g}x the speed is out of reach: nothing that may go saves time; ignore fewer modules"
    share = search.settings.max_pruning_ratio
    more = f"raise max_pruning_ratio {share:g}, " if share < 1 else ""
    return (
        f"{target.missed_by(closest.timed)}, with "
        f"{closest.step.params} parameters, {len(closest.chosen.dropped)} blocks left out and "
        f"{len(closest.chosen.left)} groups narrowed; {more}"
        "ignore fewer modules, or distil a smaller student"
    )
