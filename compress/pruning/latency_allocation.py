"""How much to take from where, for the least damage at a latency: a knapsack over measured milliseconds.

Like HALP (Shen et al. 2021, https://arxiv.org/abs/2110.10811), with two differences: damage is not a sum of importances
but measured, as the divergence of the answers without the channels; and whole residual blocks may go.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from torch import nn

from compress.pruning.channel_cut import CutSettings
from compress.pruning.channel_graph import least_kept
from compress.pruning.channel_groups import ChannelGroup, without
from compress.pruning.damage import Change
from compress.pruning.residual_blocks import passed_over
from core.layer_shape import LayerShape, TimeLayers
from core.module_paths import is_inside

CELLS = 2000  # of the knapsack
LEAST_GAIN = 0.01  # of a group's time, below which a narrower width is no option
MAX_WIDTHS = 8  # options of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One thing that can be done to a unit.

    Attributes:
        saving_ms: Time it saves.
        damage: Divergence it causes, in nats.
        left: Group -> sets of channels that stay.
        dropped: Blocks left out.
    """

    saving_ms: float = 0.0
    damage: float = 0.0
    left: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


Unit = tuple[Option, ...]
"""Options of which exactly one is taken; the first changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What the layers of a model cost at the widths in question.

    Attributes:
        shapes: Of the unpruned model's layers, by path.
        widths: Of each group, by name: the numbers of sets that may stay.
        ms: Of each layer at each shape asked for.
        overhead_ms: What the model takes beyond its layers, for each of them.
    """

    shapes: Mapping[str, LayerShape]
    widths: Mapping[str, Sequence[int]]
    ms: Mapping[LayerShape, float]
    overhead_ms: float

    def saving_ms(self, group: ChannelGroup, num_left: int) -> float:
        """Return the time saved by narrowing one group, all others being whole."""
        return sum(
            self.ms[self.shapes[path]] - self.ms[narrowed(self.shapes[path], path, {group.name: num_left}, [group])]
            for path in {**group.outputs, **group.inputs}
            if path in self.shapes
        )

    def total_ms(self, groups: Sequence[ChannelGroup], left: Mapping[str, int], dropped: Sequence[str]) -> float:
        """Return the time of the model with groups narrowed and blocks left out, as far as the table knows it.

        A layer narrowed on both sides was not timed: it is taken to cost the product of both shares.
        """
        total = 0.0
        for path, shape in self.shapes.items():
            if any(is_inside(path, block) for block in dropped):
                continue
            whole = self.ms[shape]
            share = 1.0
            for group in groups if whole else ():
                if group.name in left and (path in group.outputs or path in group.inputs):
                    share *= self.ms[narrowed(shape, path, left, [group])] / whole
            total += whole * share + self.overhead_ms
        return total


def latency_table(
    shapes: Mapping[str, LayerShape],
    groups: Sequence[ChannelGroup],
    settings: CutSettings,
    time_layers: TimeLayers,
    model_ms: float,
) -> LatencyTable:
    """Time every layer at every width that a group may take.

    Args:
        shapes: Of the unpruned model.
        groups: What may be narrowed.
        settings: How far, and to multiples of what.
        time_layers: Times layers where the model is to run.
        model_ms: What the whole unpruned model takes there.
    """
    asked = dict.fromkeys(shapes.values())
    widths = {group.name: _widths(group, settings) for group in groups}
    for group in groups:
        for num_left in widths[group.name]:
            for path in {**group.outputs, **group.inputs}:
                if path in shapes:
                    asked[narrowed(shapes[path], path, {group.name: num_left}, [group])] = None
    ms = dict(zip(asked, time_layers(list(asked)), strict=True))
    layers_ms = sum(ms[shape] for shape in shapes.values())
    overhead_ms = max(0.0, model_ms - layers_ms) / max(len(shapes), 1)
    return LatencyTable(shapes=shapes, widths=widths, ms=ms, overhead_ms=overhead_ms)


def narrowed(shape: LayerShape, path: str, left: Mapping[str, int], groups: Sequence[ChannelGroup]) -> LayerShape:
    """Return a layer's shape after groups were narrowed."""
    gone_in = gone_out = 0
    for group in groups:
        gone = group.width - left.get(group.name, group.width)
        gone_in += gone * group.inputs.get(path, 0)
        gone_out += gone * group.outputs.get(path, 0)
    if shape.groups == shape.in_channels == shape.out_channels > 1:  # depthwise: what goes in comes out
        width = shape.out_channels - max(gone_in, gone_out)
        return shape.model_copy(update={"in_channels": width, "out_channels": width, "groups": width})
    return shape.model_copy(
        update={"in_channels": shape.in_channels - gone_in, "out_channels": shape.out_channels - gone_out}
    )


def find_units(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    blocks: Sequence[str],
    table: LatencyTable,
    measure_damage: Callable[[Sequence[Change]], list[float]],
) -> tuple[Unit, ...]:
    """Measure what each option costs in answers, and return the choices that are independent of one another."""
    options = [(group, option) for group in groups for option in _timed_options(group, table)]
    changes: list[Change] = [
        partial(without, module, group, group.width - option.left[group.name]) for group, option in options
    ]
    damage = measure_damage([*changes, *(partial(passed_over, module, block) for block in blocks)])
    measured = {group.name: [Option()] for group in groups}
    for (group, option), harm in zip(options, damage, strict=False):
        measured[group.name].append(replace(option, damage=harm))
    by_group = {name: _worthwhile(found) for name, found in measured.items()}
    units = []
    for block, harm in zip(blocks, damage[len(options) :], strict=True):
        unit: Unit = (Option(),)
        for group in groups:
            if all(is_inside(path, block) for path in _layers(group)):
                unit = _both(unit, by_group.pop(group.name))
        saving = sum(
            table.ms[shape] + table.overhead_ms for path, shape in table.shapes.items() if is_inside(path, block)
        )
        units.append(_worthwhile([*unit, Option(saving_ms=saving, damage=harm, dropped=(block,))]))
    return (*units, *by_group.values())


def choose(units: Sequence[Unit], saving_ms: float) -> Option | None:
    """Take an option of each unit, so that together they save so much with the least damage; None where they cannot."""
    if sum(max(option.saving_ms for option in unit) for unit in units) < saving_ms:
        return None
    if saving_ms <= 0:
        return Option()
    cell = saving_ms / CELLS
    least = np.full(CELLS + 1, np.inf)  # damage at which so many cells are saved
    least[0] = 0.0
    taken = np.zeros((len(units), CELLS + 1), np.int64)
    for row, unit in enumerate(units):
        after = np.full(CELLS + 1, np.inf)
        for index, option in enumerate(unit):
            gained = min(int(option.saving_ms / cell), CELLS)
            source = np.arange(CELLS + 1 - gained)
            source[-1] += least[len(source) - 1 :].argmin()  # the last cell holds every saving at or above the target
            damage = least[source] + option.damage
            is_better = damage < after[gained:]
            after[gained:][is_better] = damage[is_better]
            taken[row, gained:][is_better] = index * (CELLS + 1) + source[is_better]
        least = after
    cells, chosen = CELLS, Option()
    while not np.isfinite(least[cells]):  # rounding down each saving may have cost the last cells
        cells -= 1
    for row in reversed(range(len(units))):
        index, cells = divmod(int(taken[row, cells]), CELLS + 1)
        chosen = _joined(chosen, units[row][index])
    return chosen


def _widths(group: ChannelGroup, settings: CutSettings) -> list[int]:
    """Return the numbers of sets worth timing, among those that the settings allow.

    They leave multiples of 8 channels, or of 4 in a narrow group.
    """
    channels = max(group.outputs.values(), default=1)
    unit = 8 if group.width * channels > 16 else 4
    rounded = (settings.round_to // math.gcd(settings.round_to, each) for each in group.outputs.values())
    step = math.lcm(max(1, unit // channels), *rounded)
    while group.width / step > MAX_WIDTHS + 1:
        step *= 2
    least = least_kept(group.width, settings.max_pruning_ratio)
    return [width for width in range(step, group.width, step) if width >= least]


def _timed_options(group: ChannelGroup, table: LatencyTable) -> list[Option]:
    """Return the widths that save time against every wider one."""
    whole = sum(table.ms[table.shapes[path]] for path in _layers(group) if path in table.shapes)
    best, found = 0.0, []
    for num_left in reversed(table.widths[group.name]):
        saving = table.saving_ms(group, num_left)
        if saving > best + LEAST_GAIN * whole:
            best = saving
            found.append(Option(saving_ms=saving, left={group.name: num_left}))
    return found


def _worthwhile(options: Sequence[Option]) -> Unit:
    """Drop what saves no more than another that does less damage."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.damage, -one.saving_ms)):
        if not found or option.saving_ms > found[-1].saving_ms:
            found.append(option)
    return tuple(found) if found and found[0].saving_ms == 0 else (Option(), *found)


def _both(one: Unit, other: Unit) -> Unit:
    return _worthwhile([_joined(first, second) for first in one for second in other])


def _joined(one: Option, other: Option) -> Option:
    return Option(
        saving_ms=one.saving_ms + other.saving_ms,
        damage=one.damage + other.damage,
        left=one.left | other.left,
        dropped=(*one.dropped, *other.dropped),
    )


def _layers(group: ChannelGroup) -> list[str]:
    return [*group.outputs, *(path for path in group.inputs if path not in group.outputs)]
