"""Groups name what shares channels; without some of them the model answers as if they were cut."""

import pytest
import timm
import torch
from torch import nn

from compress.pruning.channel_cut import CutSettings, cut_groups
from compress.pruning.channel_groups import channel_groups, without
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


def settings(*ignored: str) -> CutSettings:
    return CutSettings(
        importance="magnitude", allocation="global", round_to=1, max_pruning_ratio=0.9, ignored=ignored, seed=0
    )


def test_layers_that_share_channels_are_one_group(trained: TorchModel) -> None:
    groups = {group.name: group for group in channel_groups(trained.module, trained, settings("6"))}
    inner = groups["3.conv1"]
    assert inner.width == 16
    assert inner.outputs == {"3.conv1": 1, "3.bn1": 1}
    assert inner.inputs == {"3.conv2": 1}
    stream = next(group for name, group in groups.items() if name != "3.conv1")
    assert {"0", "1", "3.conv2", "3.bn2"} == set(stream.outputs)
    assert stream.inputs["6"] == 4  # 2 x 2 pixels are flattened


def test_ignored_channels_are_in_no_group(trained: TorchModel) -> None:
    groups = channel_groups(trained.module, trained, settings("6", "0"))
    assert [group.name for group in groups] == ["3.conv1"]


@pytest.mark.parametrize("name", ["3.conv1", "0"])
@pytest.mark.parametrize("num_removed", [3, 12])
def test_silenced_channels_answer_like_cut_ones(name: str, num_removed: int, trained: TorchModel) -> None:
    group = next(one for one in channel_groups(trained.module, trained, settings("6")) if name in one.outputs)
    inputs = torch.randn(4, 1, 8, 8)
    whole = trained.module(inputs)
    with without(trained.module, group, num_removed):
        silenced = trained.module(inputs)
    share = (group.width - num_removed + 0.5) / group.width
    cut = cut_groups(trained.module, trained, settings("6"), {tuple(group.outputs): share})
    torch.testing.assert_close(silenced, cut(inputs))
    assert not torch.allclose(silenced, whole)
    assert torch.equal(trained.module(inputs), whole)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002"])
def test_grouped_and_depthwise_convolutions_go_with_their_groups(name: str) -> None:
    model = load_torch_model(f"timm:{name},num_classes=10", input_shape=(3, 64, 64))
    classifier = next(path for path, one in model.module.named_modules() if one is model.module.get_classifier())
    groups = channel_groups(model.module, model, settings(classifier))
    convolutions = {path for path, one in model.module.named_modules() if isinstance(one, nn.Conv2d) and one.groups > 1}
    narrowed = [group for group in groups if convolutions & set(group.outputs)]
    assert narrowed
    for group in narrowed[:3]:
        cut = cut_groups(
            model.module, model, settings(classifier), {tuple(group.outputs): (group.width // 2 + 0.5) / group.width}
        )
        for path in convolutions & set(group.outputs):
            before, after = model.module.get_submodule(path), cut.get_submodule(path)
            removed = group.width - group.width // 2
            assert after.out_channels == before.out_channels - removed * group.outputs[path]


def test_the_module_that_cannot_be_followed_is_named(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:gradientless", digits)
    with pytest.raises(ToolError, match=r"cannot follow .*gradientless in its module '1\.1'.*--ignore 1\.1"):
        channel_groups(model.module, model, settings())


def test_timm_has_the_names_that_tests_use() -> None:
    assert {"mobilenetv3_small_050", "regnetx_002"} <= set(timm.list_models())
