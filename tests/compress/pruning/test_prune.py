"""Pruning removes what it says, keeps the output's shape, and rebuilds from its plan."""

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.data import Data
from core.describe import num_macs
from core.errors import GateMissedError, ToolError
from core.measuring import Measuring, Timed
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, num_params


def widths(model: TorchModel) -> dict[str, int]:
    return {
        path: module.weight.shape[0]
        for path, module in model.module.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    }


@pytest.mark.parametrize("importance", ["magnitude", "bn", "lamp", "fpgm", "taylor", "hessian", "random"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic"])
def test_each_importance_removes_channels_and_keeps_the_output(
    trained: TorchModel, digits: Data, importance: str, allocation: str
) -> None:
    config = PruneConfig(pruning_ratio=0.5, importance=importance, allocation=allocation)
    result = prune(trained, config, data=digits)
    assert num_params(result.model.module) < num_params(trained.module)
    assert result.model.module(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    assert result.report.macs == (num_macs(trained, trained.module), num_macs(result.model, result.model.module))


def test_uniform_pruning_takes_exactly_its_share_of_each_layer(trained: TorchModel) -> None:
    result = prune(trained, PruneConfig(pruning_ratio=0.25, allocation="uniform"))
    assert widths(result.model) == {"0": 12, "3.conv1": 12, "3.conv2": 12, "6": 10}
    assert {layer.name: layer.channels_left for layer in result.report.layers} == {
        "0": 12,
        "3.conv1": 12,
        "3.conv2": 12,
    }


def test_magnitude_removes_the_channels_of_least_norm(untrained: TorchModel, digits: Data, tiny: str) -> None:
    model = load_torch_model(f"{tiny}:cnn", digits)
    with torch.no_grad():
        model.module[3].conv1.weight[[2, 5, 11]] *= 1e-4
        model.module[3].conv2.weight[:, [2, 5, 11]] *= 1e-4
        model.module[3].bn1.weight[[2, 5, 11]] *= 1e-4
    kept = [index for index in range(16) if index not in (2, 5, 11)]
    expected = model.module[3].conv1.weight[kept].detach().clone()
    config = PruneConfig(pruning_ratio=3 / 16, allocation="uniform", ignore=("0", "3.conv2"))
    pruned = prune(model, config).model
    assert torch.equal(pruned.module[3].conv1.weight, expected)


def test_round_to_keeps_multiples(trained: TorchModel) -> None:
    result = prune(trained, PruneConfig(pruning_ratio=0.3, round_to=8))
    assert all(width % 8 == 0 for path, width in widths(result.model).items() if path != "6")


def test_an_ignored_module_stays_whole(trained: TorchModel) -> None:
    result = prune(trained, PruneConfig(pruning_ratio=0.5, ignore=("3.conv1",)))
    assert widths(result.model)["3.conv1"] == 16


def test_a_ratio_that_leaves_some_layers_nothing_to_lose_is_met(trained: TorchModel) -> None:
    assert 1.05 <= prune(trained, PruneConfig(macs_ratio=1.05)).report.macs_ratio < 1.2


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_a_macs_target_is_met_and_not_far_overshot(trained: TorchModel, ratio: float) -> None:
    report = prune(trained, PruneConfig(macs_ratio=ratio)).report
    assert ratio <= report.macs_ratio < ratio * 1.35


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_a_target_of_parameters_is_met_and_not_far_overshot(trained: TorchModel, ratio: float) -> None:
    before, after = prune(trained, PruneConfig(params_ratio=ratio)).report.params
    assert ratio <= before / after < ratio * 1.35


@pytest.mark.parametrize(("target", "words"), [("macs_ratio", "fewer MACs"), ("params_ratio", "fewer parameters")])
def test_a_target_out_of_reach_says_how_close_it_came(trained: TorchModel, target: str, words: str) -> None:
    with pytest.raises(GateMissedError, match=rf"50x {words} is out of reach: \d+\.\d+x is the closest") as caught:
        prune(trained, PruneConfig(**{target: 50}, max_pruning_ratio=0.5))
    reached = [row["reached"] for row in caught.value.tried]
    assert f"{max(reached):.2f}x is the closest" in str(caught.value)
    assert len(reached) == len({row["pruning_ratio"] for row in caught.value.tried}) > 3


@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic"])
@pytest.mark.parametrize(
    ("ratio", "most", "round_to", "least_left"),
    [(0.9, 0.9, 1, 2), (0.3, 0.3, 8, 16), (0.6, 0.9, 16, 16), (0.5, 0.9, 6, 6), (0.9, 0.9, 3, 3)],
)
def test_no_layer_loses_more_than_its_share(
    trained: TorchModel, allocation: str, ratio: float, most: float, round_to: int, least_left: int
) -> None:
    """Nor for the sake of multiples; where those ask for more than may go, fewer channels go, or none."""
    config = PruneConfig(pruning_ratio=ratio, max_pruning_ratio=most, round_to=round_to, allocation=allocation)
    if least_left == 16:
        with pytest.raises(ToolError, match="nothing was removed"):
            prune(trained, config)
        return
    left = [layer.channels_left for layer in prune(trained, config).report.layers]
    assert min(left) == least_left
    assert all(one % round_to == 0 for one in left)


def test_a_share_beyond_what_a_layer_may_lose_is_refused() -> None:
    with pytest.raises(ToolError, match=r"pruning_ratio is 0\.95, above max_pruning_ratio 0\.9; raise that too"):
        PruneConfig(pruning_ratio=0.95)


def test_no_layer_is_emptied(trained: TorchModel) -> None:
    result = prune(trained, PruneConfig(pruning_ratio=0.95, max_pruning_ratio=1.0))
    assert min(widths(result.model).values()) >= 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_pruned_checkpoint_reloads_to_bit_equal_outputs(trained: TorchModel, tmp_path: Path, times: int) -> None:
    model = trained
    for _ in range(times):
        model = prune(model, PruneConfig(pruning_ratio=0.3)).model
    save_checkpoint(model, tmp_path / "pruned")
    reloaded = load_checkpoint(tmp_path / "pruned")
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.equal(model.module(inputs), reloaded.module(inputs))
    assert reloaded.history == model.history
    assert [step.stage for step in reloaded.history] == ["finetune", *["prune"] * times]


def test_pruning_twice_in_a_process_gives_the_same(trained: TorchModel) -> None:
    one, other = (prune(trained, PruneConfig(pruning_ratio=0.4)).model for _ in range(2))
    assert one.plan == other.plan
    assert torch.equal(one.module(torch.ones(1, 1, 8, 8)), other.module(torch.ones(1, 1, 8, 8)))


def test_the_model_that_went_in_is_untouched(trained: TorchModel, digits: Data) -> None:
    inputs = torch.randn(2, 1, 8, 8)
    before = trained.module(inputs)
    prune(trained, PruneConfig(pruning_ratio=0.5, importance="taylor"), data=digits)
    assert torch.equal(trained.module(inputs), before)
    assert all(parameter.grad is None for parameter in trained.module.parameters())


def test_re_estimated_statistics_mend_what_pruning_broke(trained: TorchModel, digits: Data) -> None:
    before, cut, mended = prune(trained, PruneConfig(pruning_ratio=0.3), data=digits).report.accuracy
    assert before > 80
    assert mended > cut


def test_without_data_the_statistics_of_batch_norm_are_said_to_be_old(
    trained: TorchModel, digits: Data, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    prune(trained, PruneConfig(macs_ratio=1.5))
    assert "batch-norm statistics are those of the unpruned model: give --data" in caplog.text
    caplog.clear()
    prune(trained, PruneConfig(macs_ratio=1.5), data=digits)
    prune(load_torch_model(f"{tiny}:plain", input_shape=(1, 8, 8)), PruneConfig(pruning_ratio=0.5))
    assert "batch-norm" not in caplog.text


def test_frozen_layers_are_narrowed_and_stay_frozen(tiny: str, digits: Data, tmp_path: Path) -> None:
    """As in a factory that trains a new head only."""
    model = load_torch_model(f"{tiny}:frozen", digits)
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform", importance="taylor"), data=digits)
    assert {layer.name for layer in pruned.report.layers} == {"0", "3.conv1", "3.conv2"}
    save_checkpoint(pruned.model, tmp_path / "pruned")
    for module in (pruned.model.module, load_checkpoint(tmp_path / "pruned").module):
        trains = [name for name, one in module.named_parameters() if one.requires_grad]
        assert trains == ["6.weight", "6.bias"]


def test_what_was_measured_is_reported(trained: TorchModel) -> None:
    measuring = Measuring(lambda original, pruned: Timed(2.0, 1.6, 1.25), layers=lambda shapes: [])
    report = prune(trained, PruneConfig(pruning_ratio=0.3), measuring=measuring).report
    assert (report.measured_speedup, report.latency_ms) == (1.25, (2.0, 1.6))


def test_a_module_to_ignore_that_does_not_exist_suggests_the_nearest(trained: TorchModel) -> None:
    with pytest.raises(ToolError, match=r"no module '3.conv3' to ignore. Did you mean '3.conv\d'"):
        prune(trained, PruneConfig(pruning_ratio=0.5, ignore=("3.conv3",)))


def test_the_module_that_cannot_be_followed_is_named(tiny: str) -> None:
    model = load_torch_model(f"{tiny}:gradientless", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"cannot follow .*gradientless in its module '1\.1'.*--ignore 1\.1"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    around = prune(model, PruneConfig(pruning_ratio=0.5, ignore=("1.1",))).report
    assert [layer.name for layer in around.layers] == ["4.conv1"]  # what it reads and what it makes stays


def test_a_model_whose_own_forward_cannot_be_followed_is_told_so(tiny: str) -> None:
    model = load_torch_model(f"{tiny}:gradientless_itself", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"cannot follow .*gradientless_itself: .*; what its own forward does"):
        prune(model, PruneConfig(pruning_ratio=0.5))


def test_ignoring_a_list_of_blocks_ignores_each(tiny: str) -> None:
    """The list itself is never called."""
    model = load_torch_model(f"{tiny}:gradientless_blocks", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"cannot follow .*--ignore blocks\.0$"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform", ignore=("blocks",)))
    assert [layer.name for layer in pruned.report.layers] == ["stem", "inner"]
    assert pruned.model.history[-1].config["ignore"] == ["blocks"]


def test_an_ignored_block_keeps_its_inputs_and_an_ignored_layer_its_outputs(trained: TorchModel, tiny: str) -> None:
    model = load_torch_model(f"{tiny}:deep", input_shape=(1, 8, 8))
    block = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform", ignore=("blocks.2",)))
    assert {layer.name for layer in block.report.layers} == {f"blocks.{index}.conv1" for index in (0, 1, 3, 4, 5)}
    layer = prune(trained, PruneConfig(pruning_ratio=0.5, allocation="uniform", ignore=("3.conv1",)))
    assert (layer.model.module[3].conv1.in_channels, layer.model.module[3].conv1.out_channels) == (8, 16)


def test_a_model_whose_classifier_cannot_be_told_asks_for_it(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:logits_from_nowhere", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"cannot tell which layer of .* makes its 20 logits; name it with --ignore"):
        prune(model, PruneConfig(pruning_ratio=0.5))
    assert prune(model, PruneConfig(pruning_ratio=0.5, ignore=("0.6",))).report.macs_ratio > 1


@pytest.mark.parametrize("values", [{"round_to": 64}, {"importance": "bn"}], ids=["round_to", "no batch norm"])
def test_a_cut_that_removes_nothing_says_so(tiny: str, digits: Data, values: dict[str, Any]) -> None:
    name = "cnn" if "round_to" in values else "plain"
    with pytest.raises(ToolError, match="nothing was removed: raise the pruning ratio"):
        prune(load_torch_model(f"{tiny}:{name}", digits), PruneConfig(pruning_ratio=0.1, **values))


def test_a_slower_model_is_warned_of(trained: TorchModel, caplog: pytest.LogCaptureFixture) -> None:
    measuring = Measuring(lambda original, pruned: Timed(0.7, 1.0, 0.7), layers=lambda shapes: [])
    prune(trained, PruneConfig(pruning_ratio=0.3), measuring=measuring)
    assert "runs at 0.70x the speed on ONNX Runtime: give --speedup in place of a share" in caplog.text


def test_taylor_without_data_says_so(trained: TorchModel) -> None:
    with pytest.raises(ToolError, match="'taylor' needs the gradient of the loss on samples; give --data"):
        prune(trained, PruneConfig(pruning_ratio=0.5, importance="taylor"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give one of pruning_ratio, macs_ratio, params_ratio, speedup, latency_ms"),
        ({"pruning_ratio": 0.5, "speedup": 2.0}, "give one of"),
        ({"pruning_ratio": 1.0}, r"pruning_ratio is 1.0; it must be in \(0, 1\)"),
        ({"speedup": 0.5}, "speedup is 0.5; it must be above 1"),
        ({"macs_ratio": 1.0}, "macs_ratio is 1.0; it must be above 1"),
        ({"latency_ms": 0.0}, "latency_ms is 0.0; it must be positive"),
        ({"pruning_ratio": 0.5, "allocation": "latency"}, "allocation 'latency' goes by speedup or latency_ms, not"),
        ({"speedup": 2.0, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"speedup": 2.0, "sensitivity_samples": 1}, "sensitivity_samples is 1; it must be at least 2"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**values)
