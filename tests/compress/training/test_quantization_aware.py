"""Layers that round in training do what an int8 file does, and leave the model what it was."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torch.nn import functional

import stages
from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_layouts import fast_layout
from compress.quantization.int8_rounding import rounded_weight as rounded_as_in_a_file
from compress.training.finetune import FinetuneConfig
from compress.training.quantization_aware import fake_quantized_input, fake_quantized_weight, round_layers
from compress.training.speed_trial import Execution
from compress.training.step import prepare_loop
from core.data import Data
from core.errors import GateMissedError, InvalidValueError
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export
from stages import quantize_measured, quantize_trained


@pytest.mark.parametrize(("reduce_range", "highest"), [(False, 127), (True, 64)])
def test_weights_are_rounded_as_in_a_file(reduce_range: bool, highest: int) -> None:
    weight = torch.randn(8, 3, 3, 3) * torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    layout = fast_layout().model_copy(update={"reduce_range": reduce_range, "per_channel": True})
    found = fake_quantized_weight(weight, highest)
    np.testing.assert_allclose(found, rounded_as_in_a_file(weight.numpy(), node, layout), rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 3.0, -9.0])
def test_inputs_are_rounded_as_in_a_file(shift: float) -> None:
    values = torch.randn(64, 16) + shift
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    expected = (np.clip(np.rint(values.numpy() / scale) + zero, 0, 255) - zero) * scale
    # half-way cases may differ by one
    np.testing.assert_allclose(fake_quantized_input(values), expected, atol=1.01 * scale)
    assert (np.abs(fake_quantized_input(values).numpy() - expected) < 1e-5).mean() > 0.99


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, groups=1), nn.Conv1d(3, 4, 3)])
def test_a_layer_computes_with_what_it_rounds(layer: nn.Module) -> None:
    inputs = torch.randn(
        5, *(6,) * isinstance(layer, nn.Linear), *(3, *[9] * (layer.weight.ndim - 2)) * (layer.weight.ndim > 2)
    )
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    operations = {2: functional.linear, 3: functional.conv1d, 4: functional.conv2d}
    before = list(layer.state_dict())
    round_layers(layer, reduce_range=False)
    expected = operations[weight.ndim](fake_quantized_input(inputs), fake_quantized_weight(weight, 127), bias)
    torch.testing.assert_close(layer(inputs), expected)
    assert list(layer.state_dict()) == before
    torch.testing.assert_close(layer.state_dict()["weight"], weight, rtol=0, atol=0)


def test_the_gradient_passes_rounding() -> None:
    layer = nn.Linear(6, 4)
    round_layers(layer, reduce_range=False)
    inputs = torch.randn(5, 6)
    layer(inputs).sum().backward()
    expected = fake_quantized_input(inputs).sum(0).expand(4, -1)
    torch.testing.assert_close(dict(layer.named_parameters())["weight"].grad, expected)


@pytest.mark.parametrize(("reduce_range", "highest"), [(False, 127), (True, 64)])
def test_training_rounds_to_as_many_bits_as_asked(
    trained: TorchModel, few_digits: Data, reduce_range: bool, highest: int
) -> None:
    config = FinetuneConfig(quantization_aware=True, reduce_range=reduce_range)
    execution = Execution(precision="float32", channels_last=False, compile=False)
    loop = prepare_loop(trained, few_digits.split("train"), config, execution, lambda *_: torch.zeros(()))
    layers = [layer for layer in loop.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) > 3
    for layer in layers:
        weight = layer.weight.detach().flatten(1)
        codes = highest * weight / weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_rounding_of_no_training_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="reduce_range is of the rounding of quantization_aware training"):
        FinetuneConfig(reduce_range=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"reduce_range": True}, True), ({"weight_type": "uint8", "activation_type": "uint8"}, False)],
)
def test_training_is_told_the_files_bits(
    trained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, expected: bool
) -> None:
    told: list[bool | None] = []

    def missed(*_: object, **__: object) -> None:
        raise GateMissedError("it loses too much")

    def trained_with(student: TorchModel, teacher: TorchModel, data: Data, config: DistillConfig, **_: object) -> None:
        told.append(config.reduce_range)
        raise GateMissedError("trained")

    monkeypatch.setattr(stages, "quantize_measured", missed)
    monkeypatch.setattr(stages, "distill", trained_with)
    training = DistillConfig(quantization_aware=True)
    with pytest.raises(GateMissedError, match="trained"):
        quantize_trained(trained, digits, tmp_path / "x.onnx", QuantizeConfig(**settings), training, 1, lambda *_: None)
    assert told == [expected]


def test_training_leaves_a_model_that_does_not_round(trained: TorchModel, few_digits: Data) -> None:
    config = DistillConfig(quantization_aware=True, epochs=1, lr=0.001)
    made = distill(trained, trained, few_digits, config).model
    assert {type(one) for one in made.module.modules()} == {type(one) for one in trained.module.modules()}
    assert any((a != b).any() for a, b in zip(made.module.parameters(), trained.module.parameters(), strict=True))


@pytest.fixture(scope="module")
def one_channel_large(trained: TorchModel) -> TorchModel:
    """The digits' model with a channel four hundred times as large as need be, which the next layer undoes."""
    module = copy.deepcopy(trained.module)
    block = module.get_submodule("3")
    scale, after = block.get_parameter("bn1.weight"), block.get_parameter("conv2.weight")
    channel = int((scale.abs() * after.abs().amax((0, 2, 3))).argmax())
    with torch.no_grad():
        for parameter in block.get_submodule("bn1").parameters():
            parameter[channel] *= 400
        after[:, channel] /= 400
    return replace(trained, module=module)


@pytest.mark.slow
def test_training_mends_what_calibration_alone_loses(
    one_channel_large: TorchModel, digits: Data, tmp_path: Path
) -> None:
    config = QuantizeConfig(form="qdq", max_drop=20.0)
    whole = export(one_channel_large, tmp_path / "float32.onnx", ExportConfig(atol=1e-2)).model
    with pytest.raises(GateMissedError, match=r"loses [5-9]\d\.\d+ points, more than 20"):
        quantize_measured(whole, digits, tmp_path / "int8.onnx", config, 1, lambda *_: None)
    training = DistillConfig(quantization_aware=True, epochs=10, lr=0.003, batch_size=64)
    made = quantize_trained(one_channel_large, digits, tmp_path / "int8.onnx", config, training, 1, lambda *_: None)
    assert made.report.drop <= 20
    assert made.report.trained_epochs == 10
    assert [step.stage for step in made.model.history][-3:] == ["distill", "export", "quantize"]
    assert not (tmp_path / "int8.onnx.partial").exists()


@pytest.mark.slow
def test_nothing_is_trained_where_calibration_is_enough(trained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    training = DistillConfig(quantization_aware=True, epochs=1)
    config = QuantizeConfig(form="qdq", max_drop=5.0)
    made = quantize_trained(trained, few_digits, tmp_path / "int8.onnx", config, training, 1, lambda *_: None)
    assert made.report.trained_epochs == 0
    assert "distill" not in [step.stage for step in made.model.history]
    assert onnx.load(made.model.path).graph.node
