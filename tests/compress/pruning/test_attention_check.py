"""Attention whose heads are not known, or whose scores change their scale, is not cut without a word."""

from pathlib import Path

import pytest
import torch
from tiny_text import write_distilbert

from compress.pruning.prune import PruneConfig, prune
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, example_inputs

MODELS = Path(__file__).parents[2] / "channel_models.py"


def load(name: str) -> TorchModel:
    return load_torch_model(f"{MODELS}:{name}", input_shape=(1, 4, 4))


@pytest.mark.parametrize(
    "names", ["query-key-value", "q_lin-k_lin-v_lin", "query_proj-key_proj-value_proj", "wq-wk-wv"]
)
def test_heads_of_known_names_lose_the_same_channels(names: str) -> None:
    attention = prune(load(f"attention,names={names}"), PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    block = attention.module.get_submodule("1")
    assert (block.num_heads, block.head_dim) == (4, 3)
    assert block.get_submodule(names.split("-")[0]).out_features == 12


def test_how_little_may_go_is_no_matter() -> None:
    config = PruneConfig(pruning_ratio=0.25, max_pruning_ratio=0.3, allocation="uniform")
    attention = prune(load("attention,names=query-key-value"), config).model
    assert attention.module.get_submodule("1").num_heads == 4


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_attention_of_other_names_is_named(ratio: float) -> None:
    """At these ratios whole heads are left, so that it would run."""
    model = load("attention,names=first-second-third")
    with pytest.raises(ToolError, match=r"computes something else with fewer channels in 1: .*--ignore 1$"):
        prune(model, PruneConfig(pruning_ratio=ratio, allocation="uniform"))
    with pytest.raises(ToolError, match="computes something else with fewer channels in 1:"):
        prune(model, PruneConfig(pruning_ratio=ratio, allocation="uniform", prune_heads=True))
    ignoring = PruneConfig(pruning_ratio=ratio, allocation="uniform", ignore=("1",))
    assert [layer.name for layer in prune(model, ignoring).report.layers] == ["2"]


@pytest.mark.parametrize("scale", ["width", "tensor"])
def test_attention_that_divides_by_its_present_width_is_named(scale: str) -> None:
    model = load(f"attention,scale={scale}")
    with pytest.raises(ToolError, match=r"scores are divided by a width .*--ignore 1$"):
        prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform"))
    whole_heads = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform", prune_heads=True)).model
    assert whole_heads.module.get_submodule("1").num_heads == 2


def test_a_softmax_over_channels_may_lose_some() -> None:
    model = load("channel_attention")
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    assert pruned.module.get_submodule("1.qkv").out_features == 3 * 12
    assert torch.isfinite(pruned.module(*example_inputs(pruned, 2))).all()


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_heads_of_distilbert_lose_the_same_channels(ratio: float, tmp_path: Path) -> None:
    """It reshapes to heads as wide as before, of whose channels a cut across heads would leave whole ones."""
    model = load_torch_model(f"hf:{write_distilbert(tmp_path / 'bert', dropout=0.0)},max_length=16")
    pruned = prune(model, PruneConfig(pruning_ratio=ratio, allocation="uniform")).model
    attention = pruned.module.get_submodule("distilbert.transformer.layer.0.attention")
    assert (attention.n_heads, attention.attention_head_size) == (4, round(8 * (1 - ratio)))
    assert attention.get_submodule("q_lin").out_features == round(32 * (1 - ratio))
