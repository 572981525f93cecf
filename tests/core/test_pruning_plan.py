"""The plan that turns an original architecture into its pruned form."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.errors import ToolError
from core.pruning_plan import PruningPlan, architecture, difference, drop, replay


def block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 2, bias=False)
    )


def through_json(plan: PruningPlan) -> PruningPlan:
    return PruningPlan.model_validate_json(plan.model_dump_json())


def test_a_model_differs_from_itself_in_nothing() -> None:
    assert difference(architecture(block(8)), architecture(block(8))) == PruningPlan()


def test_training_mode_is_not_part_of_an_architecture() -> None:
    assert architecture(block(8).eval()) == architecture(block(8).train())


def test_the_difference_names_changed_attributes_and_shapes_only() -> None:
    plan = difference(architecture(block(8)), architecture(block(5)))
    assert plan.attributes == {
        "0": {"out_channels": 5},
        "1": {"num_features": 5},
        "3": {"in_features": 180},
    }
    assert plan.shapes == {
        "0.weight": (5, 3, 3, 3),
        "0.bias": (5,),
        **{f"1.{name}": (5,) for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": (2, 180),
    }


def test_a_replayed_plan_gives_the_pruned_architecture_and_loads_its_weights() -> None:
    pruned, rebuilt = block(5).eval(), block(8).eval()
    replay(rebuilt, through_json(difference(architecture(rebuilt), architecture(pruned))))
    assert architecture(rebuilt) == architecture(pruned)
    rebuilt.load_state_dict(pruned.state_dict())
    inputs = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(inputs), pruned(inputs))
    assert repr(rebuilt) == repr(pruned)


def test_parameters_stay_parameters_and_buffers_stay_buffers() -> None:
    rebuilt = block(8)
    rebuilt[0].bias.requires_grad_(False)
    replay(rebuilt, PruningPlan(shapes={"0.bias": (5,), "1.running_mean": (5,)}))
    assert dict(rebuilt.named_parameters())["0.bias"].shape == (5,)
    assert not rebuilt[0].bias.requires_grad
    assert dict(rebuilt.named_buffers())["1.running_mean"].shape == (5,)


def test_tuples_survive_json() -> None:
    plan = through_json(difference(architecture(nn.Conv2d(3, 4, 3)), architecture(nn.Conv2d(3, 4, 5))))
    rebuilt = nn.Conv2d(3, 4, 3)
    replay(rebuilt, plan)
    assert rebuilt.kernel_size == (5, 5)


def test_a_list_is_a_list_again_and_a_tuple_a_tuple() -> None:
    pruned, rebuilt = block(5), block(8)
    for module, width in ((pruned, 5), (rebuilt, 8)):
        module.sizes, module.pair = [width, 1], (width, 1)
    replay(rebuilt, through_json(difference(architecture(rebuilt), architecture(pruned))))
    assert (rebuilt.sizes, rebuilt.pair) == ([5, 1], (5, 1))


def test_a_block_left_out_passes_on_its_input_whatever_else_it_is_told_wherever_it_stands() -> None:
    shared = nn.ReLU()
    module = nn.Sequential(shared, nn.Flatten(), shared)
    drop(module, ("0",))
    inputs = -torch.ones(2, 3)
    assert torch.equal(module(inputs), inputs)
    assert torch.equal(module[2](inputs, torch.zeros(1), bias=None), inputs)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        pytest.param(
            PruningPlan(attributes={"0": {"out_channels": 5}, "9": {"out_channels": 5}}),
            "names the module '9', which the rebuilt model does not have; its source has changed",
            id="module",
        ),
        pytest.param(
            PruningPlan(attributes={"0": {"out_channels": 5}}, shapes={"0.weight": (5, 3, 3, 3), "9.bias": (5,)}),
            "names the tensor '9.bias', which the rebuilt model does not have; its source has changed",
            id="tensor",
        ),
    ],
)
def test_a_plan_for_another_model_is_refused_before_anything_changes(plan: PruningPlan, said: str) -> None:
    module = block(8)
    before = architecture(module)
    with pytest.raises(ToolError, match=said):
        replay(module, plan)
    assert architecture(module) == before


@pytest.mark.parametrize("make", [lambda: block(4), lambda: nn.ParameterList([torch.zeros(3)])])
def test_only_plain_attributes_are_recorded(make: Callable[[], nn.Module]) -> None:
    module = make()
    module.helper = object()
    module.note = "kept"
    recorded = architecture(module).attributes[""]
    assert "helper" not in recorded
    assert recorded["note"] == "kept"
