"""The search ends at the target, by a clock that the test makes up; what it leaves out and narrows is rebuilt."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import write_bert, write_texts
from torch import nn

from compress.pruning.prune import PruneConfig, PruneReport, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError, ToolError
from core.layer_shape import LayerShape, layer_shapes
from core.measuring import Measuring, Timed
from core.model_reference import load_torch_model
from core.predict import logits_of
from core.result import Result
from core.torch_model import TorchModel, example_inputs

OVERHEAD_MS = 0.05  # of a layer
STEP = 8  # channels that the kernels of the made-up machine compute at once
VIT = "timm:test_vit,img_size=32,patch_size=8,depth=2,num_heads=4"
DEPTHWISE = "timm:test_efficientnet"
GROUPED = "timm:regnetx_002,depth=4,w0=16,wa=28.8,wm=2.0,zero_init_last=false"


def layer_ms(shape: LayerShape) -> float:
    rounded_in, rounded_out = (-(-width // STEP) * STEP for width in (shape.in_channels, shape.out_channels))
    return rounded_in * rounded_out / shape.groups / 1000


def model_ms(model: TorchModel) -> float:
    return sum(layer_ms(shape) + OVERHEAD_MS for shape in layer_shapes(model).values())


def a_clock() -> tuple[Measuring, list[TorchModel]]:
    timed: list[TorchModel] = []

    def models(first: TorchModel, second: TorchModel) -> Timed:
        timed.append(second)
        return Timed(model_ms(first), model_ms(second), model_ms(first) / model_ms(second))

    def layers(shapes: Sequence[LayerShape]) -> list[float]:
        return [layer_ms(shape) for shape in shapes]

    return Measuring(models, layers), timed


@pytest.fixture(scope="module")
def deep(tiny: str, digits: Data) -> TorchModel:
    return load_torch_model(f"{tiny}:deep", digits)


def pruned(model: TorchModel, data: Data, **settings: Any) -> Result[TorchModel, PruneReport]:
    return prune(model, PruneConfig(sensitivity_samples=32, **settings), data=data, measuring=a_clock()[0])


@pytest.mark.parametrize("speedup", [1.3, 2.0, 3.0])
def test_the_search_ends_at_the_target(speedup: float, deep: TorchModel, digits: Data) -> None:
    result = pruned(deep, digits, speedup=speedup)
    assert speedup * 0.99 <= result.report.measured_speedup <= speedup * 1.1
    assert model_ms(deep) / model_ms(result.model) == pytest.approx(result.report.measured_speedup)


def test_a_latency_is_met(deep: TorchModel, digits: Data) -> None:
    wanted = model_ms(deep) / 2
    assert wanted * 0.9 <= model_ms(pruned(deep, digits, latency_ms=wanted).model) <= wanted * 1.01


@pytest.mark.parametrize("allocation", ["latency", "uniform"])
def test_a_latency_is_met_by_the_pruned_model_when_the_machine_has_slowed_down(
    allocation: str, deep: TorchModel, digits: Data
) -> None:
    wanted = model_ms(deep) / 2
    config = PruneConfig(latency_ms=wanted, sensitivity_samples=32, allocation=allocation)
    report = prune(deep, config, data=digits, measuring=slower_after_a_look(1.25)).report
    assert wanted * 0.7 <= report.latency_ms[1] <= wanted * 1.01


@pytest.mark.parametrize("allocation", ["latency", "uniform"])
def test_a_latency_out_of_reach_names_the_closest(allocation: str, deep: TorchModel, digits: Data) -> None:
    config = PruneConfig(latency_ms=model_ms(deep) / 2, sensitivity_samples=32, allocation=allocation)
    with pytest.raises(GateMissedError, match=r"[\d.]+ ms is out of reach: [\d.]+ ms is the closest"):
        prune(deep, config, data=digits, measuring=slower_after_a_look(100.0))


@pytest.mark.parametrize("allocation", ["latency", "uniform"])
def test_what_was_tried_is_in_milliseconds_and_factors(allocation: str, deep: TorchModel, digits: Data) -> None:
    with pytest.raises(GateMissedError) as caught:
        pruned(deep, digits, speedup=100.0, allocation=allocation)
    for row in caught.value.tried:
        assert row["measured_speedup"] == pytest.approx(model_ms(deep) / row["latency_ms"])
        assert "reached" not in row


def slower_after_a_look(factor: float) -> Measuring:
    clock, timed = a_clock()

    def models(first: TorchModel, second: TorchModel) -> Timed:
        found = clock.models(first, second)
        slower = factor if len(timed) > 1 else 1.0
        return Timed(slower * found.baseline_ms, slower * found.candidate_ms, found.speedup)

    return Measuring(models, clock.layers)


def test_a_latency_that_is_there_already_says_so(deep: TorchModel, digits: Data) -> None:
    with pytest.raises(ToolError, match=r"the model takes .+ ms as it is; 1000 ms asks for nothing to go"):
        pruned(deep, digits, latency_ms=1000.0)


def test_widths_stand_where_the_kernels_have_steps(deep: TorchModel, digits: Data) -> None:
    model = pruned(deep, digits, speedup=1.5, drop_blocks=False).model
    widths = [one.weight.shape[0] for one in model.module.modules() if isinstance(one, nn.Conv2d)]
    assert all(width % STEP == 0 for width in widths)
    assert min(widths) < 32


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"max_pruning_ratio": 0.3, "speedup": 1.15}, {24, 32}), ({"round_to": 16, "speedup": 1.5}, {16, 32})],
    ids=["max_pruning_ratio", "round_to"],
)
def test_widths_are_those_the_settings_allow(
    settings: dict[str, Any], allowed: set[int], deep: TorchModel, digits: Data
) -> None:
    report = pruned(deep, digits, drop_blocks=False, **settings).report
    assert report.layers
    assert {layer.channels_left for layer in report.layers} <= allowed


def test_a_speedup_beyond_the_share_that_may_go_is_out_of_reach(deep: TorchModel, digits: Data) -> None:
    with pytest.raises(GateMissedError, match=r"3x the speed is out of reach: .* raise max_pruning_ratio 0\.3"):
        pruned(deep, digits, speedup=3.0, max_pruning_ratio=0.3, drop_blocks=False)


@pytest.mark.parametrize(
    "more",
    [",kind=GRU"] + [pytest.param(one, marks=pytest.mark.slow) for one in ("", ",num_layers=2,bidirectional=true")],
)
def test_recurrent_layers_are_narrowed(more: str, tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:recurrent{more}", digits)
    result = pruned(model, digits, speedup=1.3, ignore=("embed",))
    assert result.report.measured_speedup >= 1.29
    assert result.model.module.get_submodule("rnn").hidden_size < 16


@pytest.mark.parametrize("speedup", [3.0, 3.5, 4.0, 5.0])
def test_layers_narrowed_on_both_sides_are_no_reason_to_stop_short(speedup: float, digits: Data) -> None:
    """Each side's saving is of the whole layer, so that they add up to more than there is."""
    model = load_torch_model(DEPTHWISE, digits, input_shape=(1, 32, 32))
    assert speedup * 0.99 <= pruned(model, digits, speedup=speedup).report.measured_speedup <= speedup * 1.1


@pytest.mark.parametrize(
    ("name", "speedup", "narrower"),
    [(VIT, 1.5, "attn.qkv"), (VIT, 3.0, "attn.qkv"), (DEPTHWISE, 2.0, "conv_dw"), (GROUPED, 2.0, "conv2.conv")],
    ids=["attention", "attention and blocks", "depthwise", "grouped"],
)
def test_transformers_and_grouped_convolutions_reach_the_target_and_rebuild(
    name: str, speedup: float, narrower: str, digits: Data, tmp_path: Path
) -> None:
    model = load_torch_model(name, digits, input_shape=(1, 32, 32))
    reaches_and_rebuilds(model, digits, speedup, narrower, tmp_path)


@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_a_text_model_reaches_the_target_and_rebuilds(speedup: float, tmp_path: Path) -> None:
    texts = load_data(str(write_texts(tmp_path / "texts")))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    model = load_torch_model(f"hf:{write_bert(tmp_path / 'bert', **sizes)}", texts)
    reaches_and_rebuilds(model, texts, speedup, "attention.self.query", tmp_path)


def reaches_and_rebuilds(model: TorchModel, data: Data, speedup: float, narrower: str, folder: Path) -> None:
    """Also that layers whose path ends so are among the narrower ones."""
    found = pruned(model, data, speedup=speedup)
    assert found.report.allocation == "latency"
    assert speedup * 0.99 <= model_ms(model) / model_ms(found.model) <= speedup * 1.1
    assert any(layer.name.endswith(narrower) for layer in found.report.layers)
    save_checkpoint(found.model, folder / "pruned")
    inputs = example_inputs(found.model, 3)
    logits = logits_of(found.model)(inputs)
    assert logits.shape == logits_of(model)(inputs).shape
    assert torch.equal(logits_of(load_checkpoint(folder / "pruned"))(inputs), logits)


@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_whole_heads_go_for_a_measured_speed(speedup: float, digits: Data, tmp_path: Path) -> None:
    model = load_torch_model(VIT, digits, input_shape=(1, 32, 32))
    found = pruned(model, digits, speedup=speedup, allocation="uniform", prune_heads=True)
    assert speedup <= model_ms(model) / model_ms(found.model) <= speedup * 1.3
    for block in range(2):
        attention = found.model.module.get_submodule(f"blocks.{block}.attn")
        assert attention.num_heads < 4
        assert (attention.head_dim, attention.qkv.out_features) == (16, 3 * 16 * attention.num_heads)
    save_checkpoint(found.model, tmp_path / "pruned")
    inputs = example_inputs(found.model, 3)
    assert torch.equal(load_checkpoint(tmp_path / "pruned").module(*inputs), found.model.module(*inputs))


def test_blocks_go_where_that_costs_least(deep: TorchModel, digits: Data) -> None:
    module = copy.deepcopy(deep.module)
    with torch.no_grad():
        for block in (2, 4):
            module.blocks[block].bn2.weight.zero_()
            module.blocks[block].bn2.bias.zero_()
    report = pruned(replace(deep, module=module), digits, speedup=1.4).report
    assert {"blocks.2", "blocks.4"} <= set(report.dropped_blocks)


def test_blocks_stay_when_they_must(deep: TorchModel, digits: Data) -> None:
    assert pruned(deep, digits, speedup=1.5, drop_blocks=False).report.dropped_blocks == ()
    kept = pruned(deep, digits, speedup=1.5, ignore=("blocks.2", "blocks.4.conv1")).report.dropped_blocks
    assert not {"blocks.2", "blocks.4"} & set(kept)


def test_a_model_without_blocks_rebuilds_to_bit_equal_outputs(deep: TorchModel, digits: Data, tmp_path: Path) -> None:
    once = pruned(deep, digits, speedup=1.5).model
    twice = prune(once, PruneConfig(pruning_ratio=0.3)).model
    again = pruned(twice, digits, speedup=1.2).model
    inputs = torch.randn(3, 1, 8, 8)
    for index, model in enumerate((once, twice, again)):
        save_checkpoint(model, tmp_path / str(index))
        assert torch.equal(load_checkpoint(tmp_path / str(index)).module(inputs), model.module(inputs))


@pytest.mark.parametrize("name", ["told_more", "shared_block"])
def test_a_block_that_is_told_more_or_run_twice_goes_and_stays_away(
    name: str, tiny: str, digits: Data, tmp_path: Path
) -> None:
    model = load_torch_model(f"{tiny}:{name}", digits)
    found = pruned(model, digits, speedup=1.3, max_pruning_ratio=0.01)  # so that channels cannot go instead
    assert found.report.dropped_blocks
    save_checkpoint(found.model, tmp_path / "pruned")
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(load_checkpoint(tmp_path / "pruned").module(inputs), found.model.module(inputs))


def test_pruning_in_steps_counts_from_the_baseline(deep: TorchModel, digits: Data) -> None:
    half_way = pruned(deep, digits, speedup=1.5).model
    config = PruneConfig(speedup=2.0, sensitivity_samples=32)
    report = prune(half_way, config, data=digits, measuring=a_clock()[0], baseline=deep).report
    assert 1.98 <= report.baseline_speedup < 2.2
    assert report.measured_speedup < 1.5


@pytest.mark.parametrize("target", ["speedup", "macs_ratio"])
def test_out_of_reach_of_a_baseline_says_what_its_factors_count_from(
    target: str, deep: TorchModel, digits: Data
) -> None:
    half_way = pruned(deep, digits, speedup=1.5).model
    config = PruneConfig(**{target: 50.0}, max_pruning_ratio=0.5, sensitivity_samples=32)
    with pytest.raises(GateMissedError, match=r"counted from the model as it is, at 1\.\d+x its baseline\)$"):
        prune(half_way, config, data=digits, measuring=a_clock()[0], baseline=deep)


@pytest.mark.parametrize("target", ["speedup", "macs_ratio", "params_ratio"])
def test_a_factor_that_is_reached_already_says_so(target: str, deep: TorchModel, digits: Data) -> None:
    half_way = pruned(deep, digits, speedup=1.5).model
    config = PruneConfig(**{target: 1.01})
    with pytest.raises(ToolError, match=rf"at 1\.\d+x its baseline as it is; {target} 1.01 asks for nothing to go"):
        prune(half_way, config, data=digits, measuring=a_clock()[0], baseline=deep)


@pytest.mark.parametrize("target", [{"latency_ms": 1.0}, {"pruning_ratio": 0.5}], ids=["latency_ms", "pruning_ratio"])
def test_a_baseline_is_for_factors(target: dict[str, float], deep: TorchModel, digits: Data) -> None:
    with pytest.raises(ToolError, match=rf"{next(iter(target))} is no factor, .* leave out the baseline"):
        prune(deep, PruneConfig(**target), data=digits, measuring=a_clock()[0], baseline=deep)


def test_a_measured_target_needs_a_stopwatch(deep: TorchModel, digits: Data) -> None:
    with pytest.raises(ToolError, match="latency_ms is measured, and nothing to measure with was given"):
        prune(deep, PruneConfig(latency_ms=1.0), data=digits)


@pytest.mark.parametrize(
    ("measured", "taken"), [((1.985, 2.015), 2.015), ((1.985, 1.99, 1.982), 1.99)], ids=["reached", "near"]
)
def test_an_attempt_that_reaches_the_target_goes_before_one_that_nearly_does(
    measured: tuple[float, ...], taken: float, deep: TorchModel, digits: Data, caplog: pytest.LogCaptureFixture
) -> None:
    speedups = itertools.chain((1.0,), measured, itertools.repeat(measured[-1]))

    def models(first: TorchModel, second: TorchModel) -> Timed:
        speedup = next(speedups)
        return Timed(1.0, 1 / speedup, speedup)

    measuring = Measuring(models, a_clock()[0].layers)
    report = prune(deep, PruneConfig(speedup=2.0, sensitivity_samples=32), data=digits, measuring=measuring).report
    assert report.measured_speedup == taken
    assert ("2x the speed is out of reach: 1.99x is the closest; it is taken" in caplog.text) == (taken < 2)


def test_a_speedup_out_of_reach_names_the_closest(deep: TorchModel, digits: Data) -> None:
    with pytest.raises(
        GateMissedError,
        match=r"100x the speed is out of reach: [\d.]+x is the closest, with \d+ parameters, \d+ blocks left out",
    ) as caught:
        pruned(deep, digits, speedup=100.0)
    assert {"predicted_speedup", "measured_speedup", "params", "damage"} <= set(caught.value.tried[0])


def test_where_nothing_saves_time_the_closest_is_the_model_itself(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:cnn,width=4", digits)  # less than the kernels compute at once
    with pytest.raises(
        GateMissedError, match=r"2x the speed is out of reach: 1.00x is the closest, with .* 0 groups narrowed"
    ) as caught:
        pruned(model, digits, speedup=2.0, drop_blocks=False)
    assert [row["measured_speedup"] for row in caught.value.tried] == [1.0]


def test_without_data_there_is_no_damage_to_measure(deep: TorchModel) -> None:
    with pytest.raises(ToolError, match="the latency allocation measures damage on samples; give --data"):
        prune(deep, PruneConfig(speedup=2.0), measuring=a_clock()[0])


@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic"])
def test_the_other_allocations_go_by_the_stopwatch_too(allocation: str, deep: TorchModel, digits: Data) -> None:
    report = pruned(deep, digits, speedup=2.0, allocation=allocation).report
    assert report.measured_speedup >= 2.0
    assert len(report.search) > 1


def test_a_model_is_not_timed_twice(deep: TorchModel, digits: Data) -> None:
    measuring, timed = a_clock()
    report = prune(deep, PruneConfig(speedup=2.0, sensitivity_samples=32), data=digits, measuring=measuring).report
    assert len(timed) == len(report.search) + 1


def test_the_model_that_went_in_is_untouched(deep: TorchModel, digits: Data) -> None:
    before = {name: tensor.clone() for name, tensor in deep.module.state_dict().items()}
    pruned(deep, digits, speedup=2.0)
    after = deep.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
