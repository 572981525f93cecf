"""Replacing activation layers."""

import pytest
import timm
import torch
from torch import nn

from core.activations import REPLACEMENTS, replace_activations
from core.errors import ToolError


@pytest.mark.parametrize("activation", REPLACEMENTS)
def test_every_activation_layer_is_replaced(activation: str) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Sequential(nn.GELU(), nn.Sigmoid()), nn.PReLU())
    replace_activations(module, activation)
    wanted = REPLACEMENTS[activation]
    assert [type(module[1]), type(module[2][0]), type(module[3])] == [wanted] * 3
    assert isinstance(module[2][1], nn.Sigmoid)  # a gate


def test_a_layer_that_stands_in_two_places_is_replaced_in_both() -> None:
    shared = nn.SiLU()
    module = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    replace_activations(module, "relu")
    assert [type(one) for one in module] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]


def test_the_layers_of_transformers_are_replaced() -> None:
    activations = pytest.importorskip("transformers.activations", reason="transformers is not installed")
    module = nn.Sequential(nn.Linear(2, 2), activations.GELUActivation())
    replace_activations(module, "relu")
    assert isinstance(module[1], nn.ReLU)


def test_a_model_from_timm_runs_with_relu() -> None:
    module = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    replace_activations(module, "relu")
    kinds = {type(one).__name__ for one in module.modules()}
    assert not kinds & {"Hardswish", "HardSwish", "SiLU", "Swish"}
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_functions_in_a_forward_cannot_be_replaced() -> None:
    with pytest.raises(ToolError, match="no activation layers to replace: its forward calls functions"):
        replace_activations(nn.Sequential(nn.Linear(2, 2)), "relu")
