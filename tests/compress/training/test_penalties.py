"""Penalties on weights against sums written out."""

import pytest
import torch
from torch import nn

from compress.training.config import TrainConfig
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.penalties import penalty, scales_of, weights_of
from core.data import Data
from core.torch_model import TorchModel


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def test_biases_and_normalisation_are_spared() -> None:
    assert list(weights_of(net())) == ["0.weight", "3.weight"]


def test_frozen_weights_are_spared() -> None:
    module = net()
    module[0].requires_grad_(False)
    assert list(weights_of(module)) == ["3.weight"]


@pytest.mark.parametrize("name", ["l1", "l2_sp", "group_lasso", "bn_l1"])
def test_each_penalty_is_its_sum(name: str) -> None:
    module = net()
    weights = weights_of(module)
    start = {name: weight.detach() + 0.1 for name, weight in weights.items()}
    expected = {
        "l1": sum(float(weight.detach().abs().sum()) for weight in weights.values()),
        "l2_sp": sum(0.01 / 2 for weight in weights.values() for _ in weight.flatten()),
        "group_lasso": sum(
            sum(float(value) ** 2 for value in channel.flatten()) ** 0.5
            for weight in weights.values()
            for channel in weight
        ),
        "bn_l1": 3.0,  # the scales of a fresh batch norm are 1
    }
    assert float(penalty(module, start, TrainConfig(**{name: 3.0}))) == pytest.approx(3 * expected[name], rel=1e-5)


def test_growing_penalties_grow_with_the_run() -> None:
    module = net()
    config, constant = TrainConfig(bn_l1=2.0, growing_penalties=True), TrainConfig(bn_l1=2.0)
    assert [float(penalty(module, {}, config, share)) for share in (0.0, 0.5, 1.0)] == [0.0, 3.0, 6.0]
    assert float(penalty(module, {}, constant, 0.5)) == 6.0


def test_group_lasso_has_a_gradient_at_an_empty_channel() -> None:
    module = net()
    with torch.no_grad():
        module[0].weight[1] = 0
    penalty(module, {}, TrainConfig(group_lasso=1.0)).backward()
    assert module[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["l1", "l2_sp", "group_lasso", "bn_l1"])
def test_a_penalty_pulls_the_weights(name: str, untrained: TorchModel, few_digits: Data) -> None:
    def size(model: TorchModel) -> float:
        if name == "bn_l1":
            return sum(float(scale.abs().sum()) for scale in scales_of(model.module))
        start = weights_of(untrained.module)
        at = {key: torch.zeros_like(one) for key, one in start.items()} if name != "l2_sp" else start
        return sum(float((one - at[key]).square().sum()) for key, one in weights_of(model.module).items())

    config = {"epochs": 2, "batch_size": 32, "lr": 0.05, "weight_decay": 0}
    free, held = (
        finetune(untrained, few_digits, FinetuneConfig(**config, **extra)).model
        for extra in ({}, {name: {"l2_sp": 1.0, "bn_l1": 0.5}.get(name, 0.05)})
    )
    assert size(held) < 0.9 * size(free)
