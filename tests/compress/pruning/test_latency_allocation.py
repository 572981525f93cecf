"""The knapsack finds the least damage, and the table knows what narrower layers cost."""

import itertools

import numpy as np
import pytest

from compress.pruning.channel_cut import CutSettings, cut_groups
from compress.pruning.channel_groups import channel_groups
from compress.pruning.latency_allocation import Option, choose, latency_table
from core.data import Data
from core.layer_shape import layer_shapes
from core.model_reference import load_torch_model

SETTINGS = CutSettings(
    importance="magnitude", allocation="global", round_to=1, max_pruning_ratio=0.9, ignored=("6",), seed=0
)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    units = [
        (Option(), *(Option(saving_ms=save, damage=harm) for save, harm in random.uniform(0.1, 1, (3, 2))))
        for _ in range(5)
    ]
    wanted = 2.0
    found = choose(units, wanted)
    best = min(
        sum(option.damage for option in options)
        for options in itertools.product(*units)
        if sum(option.saving_ms for option in options) >= wanted
    )
    assert found.saving_ms >= wanted * 0.99
    assert found.damage <= best * 1.02


def test_what_cannot_be_saved_is_not_chosen() -> None:
    units = [(Option(), Option(saving_ms=1.0, damage=0.1))]
    assert choose(units, 1.5) is None
    assert choose(units, 1.0).saving_ms == 1.0
    assert choose([(Option(),)], 0.0) == Option()


def test_layers_that_take_no_time_are_no_trouble(tiny: str, digits: Data) -> None:
    """The profiler tells whole microseconds."""
    model = load_torch_model(f"{tiny}:cnn", digits)
    groups = channel_groups(model.module, model, SETTINGS)
    table = latency_table(layer_shapes(model), groups, SETTINGS, lambda shapes: [0.0 for _ in shapes], 1.0)
    left = {group.name: group.width // 2 for group in groups}
    assert table.total_ms(groups, left, ()) == pytest.approx(1.0)


def test_the_table_knows_what_a_narrowed_model_costs(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:cnn", digits)
    groups = channel_groups(model.module, model, SETTINGS)

    def times(shapes: list) -> list[float]:
        return [shape.in_channels * shape.out_channels / 1000 for shape in shapes]

    shapes = layer_shapes(model)
    whole = sum(times(list(shapes.values())))
    table = latency_table(shapes, groups, SETTINGS, times, model_ms=whole + 0.4)
    assert table.total_ms(groups, {}, ()) == pytest.approx(whole + 0.4)
    left = {group.name: group.width // 2 for group in groups}
    cut = cut_groups(model.module, model, SETTINGS, {tuple(group.outputs): 0.51 for group in groups})
    assert {path: cut.get_submodule(path).weight.shape[0] for path in ("0", "3.conv1")} == {
        "0": 8,
        "3.conv1": 8,
    }
    shapes_after = {
        path: (layer.weight.shape[1], layer.weight.shape[0]) for path in shapes for layer in [cut.get_submodule(path)]
    }
    expected = sum(first * second / 1000 for first, second in shapes_after.values()) + 0.4
    assert table.total_ms(groups, left, ()) == pytest.approx(expected)
    inside = sum(shapes[path].in_channels * shapes[path].out_channels for path in ("3.conv1", "3.conv2")) / 1000
    assert table.total_ms(groups, {}, ("3",)) == pytest.approx(whole + 0.4 - inside - 2 * 0.1)
