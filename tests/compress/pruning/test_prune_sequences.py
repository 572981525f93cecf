"""Attention and recurrent layers are pruned like convolutions: they run, answer as if silenced, and rebuild."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from compress.pruning.channel_cut import CutSettings, cut_groups
from compress.pruning.channel_groups import channel_groups, without
from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.data import Data
from core.errors import ToolError
from core.layer_shape import LayerShape
from core.measuring import Measuring, Timed
from core.model_reference import load_torch_model
from core.pruning_plan import PassOn
from core.torch_model import TorchModel, example_inputs, num_params
from export.to_onnx import ExportConfig, export

MODELS = {
    "vit": "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,depth=2,num_classes=10",
    "text": "{tiny}:text",
    "lstm": "{tiny}:recurrent",
    "deep lstm in both directions": "{tiny}:recurrent,num_layers=2,bidirectional=true",
    "gru": "{tiny}:recurrent,kind=GRU,num_layers=2",
}
SHAPES = {"vit": (3, 32, 32), "text": (12,)}


def load(name: str, tiny: str) -> TorchModel:
    return load_torch_model(MODELS[name].format(tiny=tiny), input_shape=SHAPES.get(name, (1, 8, 8)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "text" else pytest.mark.slow) for name in MODELS]
)
def test_a_half_goes_and_the_rest_exports_and_rebuilds(name: str, tiny: str, tmp_path: Path) -> None:
    model = load(name, tiny)
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    assert num_params(pruned.module) < 0.6 * num_params(model.module)
    export(pruned, tmp_path / "pruned.onnx", ExportConfig())
    save_checkpoint(pruned, tmp_path / "checkpoint")
    inputs = example_inputs(pruned, 3)
    again = load_checkpoint(tmp_path / "checkpoint")
    torch.testing.assert_close(again.module(*inputs), pruned.module(*inputs))


@pytest.mark.parametrize("name", MODELS)
def test_silenced_channels_answer_like_cut_ones(name: str, tiny: str) -> None:
    model = load(name, tiny)
    classifier = "head"
    settings = CutSettings(
        importance="magnitude", allocation="global", round_to=1, max_pruning_ratio=0.9, ignored=(classifier,), seed=0
    )
    inputs = example_inputs(model, 3)
    looked_at = 0
    for group in channel_groups(model.module, model, settings):
        if any("norm" in path for path in group.outputs):
            continue  # a norm over fewer channels answers otherwise
        with without(model.module, group, group.width // 2):
            silenced = model.module(*inputs)
        share = (group.width - group.width // 2 + 0.5) / group.width
        cut = cut_groups(model.module, model, settings, {tuple(group.outputs): share})
        torch.testing.assert_close(silenced, cut(*inputs), rtol=1e-4, atol=1e-5)
        looked_at += 1
    assert looked_at


def test_heads_keep_their_number_and_lose_their_width(tiny: str) -> None:
    pruned = prune(load("vit", tiny), PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    attention = pruned.module.get_submodule("blocks.0.attn")
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (3, 32, 96)
    assert attention.qkv.out_features == 3 * 96
    text = prune(load("text", tiny), PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    attention = text.module.get_submodule("layers.0.attention")
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (4, 4, 16)


@pytest.mark.parametrize(
    ("ratio", "most", "left"), [(0.34, 0.9, 2), (0.5, 0.9, 1), (0.9, 0.9, 1), (0.5, 0.5, 2), (0.3, 0.3, 3)]
)
def test_whole_heads_go_but_for_one_within_the_share_that_may(tiny: str, ratio: float, most: float, left: int) -> None:
    config = PruneConfig(pruning_ratio=ratio, max_pruning_ratio=most, allocation="uniform", prune_heads=True)
    pruned = prune(load("vit", tiny), config).model
    for block in range(2):
        attention = pruned.module.get_submodule(f"blocks.{block}.attn")
        assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (left, 64, 64 * left)
        assert attention.qkv.out_features == 3 * 64 * left


def test_blocks_of_attention_may_be_left_out_while_others_get_narrower(tiny: str) -> None:
    model = load("vit", tiny)
    settings = CutSettings(
        importance="magnitude", allocation="latency", round_to=1, max_pruning_ratio=0.9, ignored=("head",), seed=0
    )
    cut = cut_groups(model.module, model, settings, {("blocks.0.attn.qkv",): 0.5}, dropped=("blocks.1",))
    assert isinstance(cut.get_submodule("blocks.1"), PassOn)
    assert cut.get_submodule("blocks.0.attn").head_dim == 32
    assert cut(*example_inputs(model, 2)).shape == (2, 10)


def test_heads_go_in_equal_shares_only() -> None:
    with pytest.raises(ValueError, match="prune_heads takes the same share of every attention"):
        PruneConfig(pruning_ratio=0.5, prune_heads=True)


def test_what_does_not_run_when_narrower_is_named(tiny: str) -> None:
    model = load_torch_model(f"{tiny}:keeps_a_width", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"does not run with fewer channels, in its module '1'.*--ignore 1$"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    several = load_torch_model(f"{tiny}:keeps_a_width,kept=3", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"fewer channels in 1, 3, 5, .*--ignore 1 --ignore 3 --ignore 5$"):
        prune(several, PruneConfig(pruning_ratio=0.5, allocation="uniform"))
    rest = load_torch_model(f"{tiny}:keeps_a_width,depth=2", input_shape=(1, 8, 8))
    assert prune(rest, PruneConfig(pruning_ratio=0.5, ignore=("1",))).report.layers


def test_what_does_not_run_when_narrower_is_named_before_anything_is_timed(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:keeps_a_width,kept=2", digits)
    timed: list[LayerShape] = []

    def time_layers(layers: Sequence[LayerShape]) -> list[float]:
        timed.extend(layers)
        return [1.0] * len(layers)

    measuring = Measuring(lambda *_: Timed(1.0, 1.0, 1.0), layers=time_layers)
    with pytest.raises(ToolError, match=r"--ignore 1 --ignore 3$"):
        prune(model, PruneConfig(speedup=2.0, sensitivity_samples=2), data=digits, measuring=measuring)
    assert not timed


def test_a_whole_model_that_does_not_run_when_narrower_asks_for_layers(tiny: str) -> None:
    model = load_torch_model(f"{tiny}:keeps_a_width_itself", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"--ignore LAYER, of each layer whose channels its own forward counts on$"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    assert prune(model, PruneConfig(pruning_ratio=0.5, ignore=("1",))).report.layers
