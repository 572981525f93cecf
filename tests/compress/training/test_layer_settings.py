"""Freezing, rates of dropping, and other activations."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from small_runs import losses
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from compress.training.finetune import FinetuneConfig, finetune
from compress.training.layer_settings import set_stochastic_depth
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


def test_frozen_modules_stay_as_they_are(untrained: TorchModel, few_digits: Data) -> None:
    module = finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64, freeze=("0", "1"))).model.module
    before, after = untrained.module.state_dict(), module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("0.", "1.")) for name in changed)  # running statistics included
    assert any(name.startswith("3.") for name in changed)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("3.conv11",), r"there is no module '3.conv11' to freeze. Did you mean '3.conv\d'"),
        (("0", "1", "3", "6"), "freeze 0, 1, 3, 6 leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_said(
    freeze: tuple[str, ...], message: str, untrained: TorchModel, few_digits: Data
) -> None:
    with pytest.raises(ToolError, match=message):
        finetune(untrained, few_digits, FinetuneConfig(freeze=freeze))


def with_dropout(tiny: str, data: Data, tmp_path: Path) -> TorchModel:
    factory = tmp_path / "dropped.py"
    factory.write_text(
        "from timm.layers import DropPath\nfrom torch import nn\n"
        "def net(num_classes=10, in_chans=1):\n"
        "    drops = nn.Dropout(0.0), DropPath(0.0), DropPath(0.0)\n"
        "    return nn.Sequential(nn.Flatten(), *drops, nn.Linear(64, num_classes))\n"
    )
    return load_torch_model(f"{factory}:net", data)


@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_rates_of_dropping_are_set(name: str, tiny: str, few_digits: Data, tmp_path: Path) -> None:
    model = with_dropout(tiny, few_digits, tmp_path)
    without, with_it = losses(model, few_digits), losses(model, few_digits, **{name: 0.5})
    assert with_it[0] > without[0]


def test_stochastic_depth_of_timm_rises_to_what_was_asked() -> None:
    module = timm.create_model("convnext_atto", drop_path_rate=0.1)
    set_stochastic_depth(module, 0.4)
    rates = [layer.drop_prob for layer in module.modules() if isinstance(layer, DropPath)]
    assert len(rates) == 11  # the first of its twelve blocks has none
    assert rates == pytest.approx([0.4 * depth / 11 for depth in range(1, 12)])


def test_stochastic_depth_of_torchvision_rises_to_what_was_asked() -> None:
    module = torchvision.models.efficientnet_b0()
    set_stochastic_depth(module, 0.4)
    rates = [layer.p for layer in module.modules() if isinstance(layer, StochasticDepth)]
    assert rates == pytest.approx([0.4 * depth / 16 for depth in range(1, 17)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dropout", "the student has no dropout layer"),
        ("stochastic_depth", "no stochastic-depth layer .*drop_path_rate"),
    ],
)
def test_a_rate_without_its_layer_is_refused(name: str, message: str, untrained: TorchModel, few_digits: Data) -> None:
    with pytest.raises(ToolError, match=message):
        losses(untrained, few_digits, **{name: 0.5})


def test_another_activation_is_trained_and_remembered(tiny: str, few_digits: Data, tmp_path: Path) -> None:
    from core.checkpoint import load_checkpoint, save_checkpoint

    model = load_torch_model(f"{tiny}:plain", few_digits)
    trained = finetune(model, few_digits, FinetuneConfig(epochs=1, batch_size=64, activation="hardswish")).model
    assert isinstance(trained.module[1], nn.Hardswish)
    assert isinstance(model.module[1], nn.ReLU)
    save_checkpoint(trained, tmp_path / "out")
    assert isinstance(load_checkpoint(tmp_path / "out").module[1], nn.Hardswish)
