"""The sensitivity report ranks what matters above what does not, and its plot opens offline."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.pruning.ranking import RankingConfig
from compress.pruning.sensitivity import SHARES, pruning_sensitivity, sensitivity_plot
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel

FEW = RankingConfig(sensitivity_samples=64)


def test_more_channels_gone_is_more_damage(trained: TorchModel, digits: Data) -> None:
    report = pruning_sensitivity(trained, FEW, digits)
    assert {group.name for group in report.groups} >= {"3.conv1"}
    for group in report.groups:
        assert group.removed == tuple(round(share * 16) for share in SHARES)
        assert group.damage[0] < group.damage[-1]
    assert report.samples == 64
    (inner,) = [group for group in report.groups if group.name == "3.conv1"]
    assert inner.layers == ("3.conv1", "3.bn1", "3.conv2")


def test_a_block_that_adds_nothing_does_no_damage(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:deep", digits)
    with torch.no_grad():
        model.module.blocks[2].bn2.weight.zero_()
        model.module.blocks[2].bn2.bias.zero_()
    damage = {block.name: block.damage for block in pruning_sensitivity(model, FEW, digits).blocks}
    assert damage.pop("blocks.2") == pytest.approx(0, abs=1e-6)
    assert len(damage) == 5
    assert min(damage.values()) > 1e-4


def test_the_model_that_went_in_is_untouched(trained: TorchModel, digits: Data) -> None:
    before = {name: tensor.clone() for name, tensor in trained.module.state_dict().items()}
    pruning_sensitivity(trained, FEW, digits)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.module.state_dict().items())


def test_the_plot_is_one_page_that_names_every_layer(trained: TorchModel, digits: Data) -> None:
    page = sensitivity_plot(pruning_sensitivity(trained, FEW, digits))
    assert "3.conv1" in page
    assert 'src="http' not in page


def test_gradients_need_labels(trained: TorchModel, digits: Data, tmp_path: Path) -> None:
    np.savez(tmp_path / "unlabelled.npz", x_train=digits.train.samples.array[:400, 0].numpy())
    unlabelled = load_data(str(tmp_path / "unlabelled.npz"))
    with pytest.raises(ToolError, match="has no labels, which the gradients of 'taylor' come from"):
        pruning_sensitivity(trained, RankingConfig(importance="taylor"), unlabelled)
