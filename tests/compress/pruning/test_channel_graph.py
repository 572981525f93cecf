"""Channels are followed through splits, shuffles and joins; where they cannot be, what to ignore is named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.pruning.channel_cut import CutSettings, cut_groups, pruner_of
from compress.pruning.channel_groups import channel_groups, without
from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, example_inputs, num_params
from export.to_onnx import ExportConfig, export

MODELS = Path(__file__).parents[2] / "channel_models.py"


def load(name: str) -> TorchModel:
    return load_torch_model(f"{MODELS}:{name}", input_shape=(1, 4, 4))


def settings(*ignored: str, importance: str = "magnitude") -> CutSettings:
    return CutSettings(
        importance=importance, allocation="global", round_to=1, max_pruning_ratio=0.9, ignored=ignored, seed=0
    )


@pytest.mark.parametrize("block", ["Halves", "HoldsANumber", "Parts", "Uneven", "Shuffle"])
@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_silenced_channels_answer_like_cut_ones(block: str, share: float, importance: str) -> None:
    model = load(f"model,block={block}")
    model.module.eval()
    inputs = torch.randn(4, 1, 4, 4)
    model.module(inputs).square().sum().backward()
    looked_at = 0
    for group in channel_groups(model.module, model, settings("3.linear", importance=importance)):
        removed = round(share * group.width)
        with without(model.module, group, removed):
            silenced = model.module(inputs)
        left = (group.width - removed + 0.5) / group.width
        cut = cut_groups(model.module, model, settings("3.linear", importance=importance), {tuple(group.outputs): left})
        torch.testing.assert_close(silenced, cut(inputs))
        looked_at += 1
    assert looked_at


@pytest.mark.parametrize(
    ("name", "input_shape", "classifier", "layer"),
    [("words", (5,), "linear", "embedding"), ("model,block=Upsamples", (1, 4, 4), "3.linear", "2.0.up")],
)
def test_layers_whose_rows_are_no_channels_are_silenced_along_their_channels(
    name: str, input_shape: tuple[int, ...], classifier: str, layer: str
) -> None:
    model = load_torch_model(f"{MODELS}:{name}", input_shape=input_shape)
    inputs = example_inputs(model, 4)
    (group,) = [one for one in channel_groups(model.module, model, settings(classifier)) if layer in one.outputs]
    with without(model.module, group, group.width // 2):
        silenced = model.module(*inputs)
    cut = cut_groups(model.module, model, settings(classifier), {tuple(group.outputs): 0.5})
    torch.testing.assert_close(silenced, cut(*inputs))
    assert not torch.allclose(silenced, model.module(*inputs))


@pytest.mark.parametrize(
    "block",
    ["Parts", "Reckons", "HoldsItsWidth"]
    + [pytest.param(one, marks=pytest.mark.slow) for one in ("Halves", "Uneven", "Shuffle")],
)
def test_what_splits_runs_exports_and_rebuilds_when_narrower(block: str, tmp_path: Path) -> None:
    model = load(f"model,block={block}")
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    assert num_params(pruned.module) < 0.5 * num_params(model.module)
    export(pruned, tmp_path / "pruned.onnx", ExportConfig())
    save_checkpoint(pruned, tmp_path / "checkpoint")
    inputs = example_inputs(pruned, 3)
    torch.testing.assert_close(load_checkpoint(tmp_path / "checkpoint").module(*inputs), pruned.module(*inputs))


def test_parts_of_one_size_lose_the_same_channels() -> None:
    groups = channel_groups(load("model").module, load("model"), settings("3.linear"))
    stem = next(group for group in groups if "0" in group.outputs)
    assert (stem.width, stem.outputs["0"]) == (12, 2)


def test_blocks_that_split_and_join_do_not_take_paths_without_end() -> None:
    model = load("model,block=Shuffle,depth=12")
    with pruner_of(model.module, model, settings("14.linear"), model.module) as pruner:
        stem = model.module.get_submodule("0")
        group = pruner.DG.get_pruning_group(stem, pruner.DG.get_pruner_of_module(stem).prune_out_channels, [0])
    assert len(group.items) < 300


def test_what_attention_adds_to_its_scores_has_no_channels() -> None:
    model = load("biased")
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    assert pruned.module.get_parameter("1.bias").shape == (16, 16)
    assert pruned.module.get_submodule("1.query").in_features == 12


@pytest.mark.parametrize(
    ("block", "ignored"),
    [("Selects", "2.0.select"), ("Multiplies", "0")],
)
def test_channels_that_torch_pruning_loses_track_of_are_named(block: str, ignored: str) -> None:
    model = load(f"model,block={block}")
    with pytest.raises(ToolError, match=rf"loses track of the channels of .*come from.* --ignore {ignored}$"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    prune(model, PruneConfig(pruning_ratio=0.5, ignore=(ignored,)))


def test_layers_whose_weights_are_used_without_a_call_are_named() -> None:
    model = load("model,block=Uncalled,depth=2")
    with pytest.raises(
        ToolError, match=r"uses the weights of 2\.0\.conv, 3\.0\.conv without.* --ignore 2\.0 --ignore 3\.0$"
    ):
        prune(model, PruneConfig(pruning_ratio=0.5))


def test_what_is_not_in_the_graph_has_no_group() -> None:
    model = load("model")
    with (
        pruner_of(model.module, model, settings(), model.module) as pruner,
        pytest.raises(ValueError, match="is not in the graph"),
    ):
        pruner.DG.get_pruning_group(nn.Linear(2, 2), None, [0])
