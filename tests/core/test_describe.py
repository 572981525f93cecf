"""Descriptions of either carrier, against counts made by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from core.describe import describe, num_macs
from core.history import step
from core.model_reference import load_torch_model
from core.onnx_model import open_onnx
from core.references import file_sha256
from core.torch_model import torch_digest


def test_a_torch_model_is_described(factory_file: Path) -> None:
    model = load_torch_model(f"{factory_file}:mlp", input_shape=(5,))
    model = replace(model, history=(step("finetune", {}, parent=""), step("prune", {}, parent="")))
    found = describe(model)
    assert (found.stage, found.kind, found.name) == ("inspect", "torch", model.name)
    assert found.sha256 == torch_digest(model)
    assert found.inputs == ("input (5,) float32",)
    assert found.params == (5 * 4 + 4) + (4 * 3 + 3)
    assert found.operators == {"Linear": 2, "ReLU": 1}
    assert found.labels == ("0", "1", "2")
    assert found.history == ("finetune", "prune")
    assert found.outputs == ("logits (3,) float32",)
    assert (found.size_bytes, found.opset) == (None, None)


def test_macs_of_a_convolution_are_those_of_its_formula() -> None:
    convolution = torch.nn.Conv2d(3, 7, 3, padding=1, bias=False)
    model = load_torch_model("timm:test_resnet", input_shape=(3, 32, 32))
    assert num_macs(model, convolution) == 3 * 7 * 3 * 3 * 32 * 32


def test_counting_leaves_the_model_as_it_was(factory_file: Path) -> None:
    model = load_torch_model(f"{factory_file}:cnn", input_shape=(1, 8, 8))
    before, modes = torch_digest(model), [module.training for module in model.module.modules()]
    describe(model)
    assert torch_digest(model) == before
    assert [module.training for module in model.module.modules()] == modes
    assert not any(module._forward_hooks for module in model.module.modules())


def test_an_onnx_file_is_described(linear_onnx: Callable[..., Path]) -> None:
    path = linear_onnx()
    found = describe(open_onnx(path))
    assert (found.kind, found.name, found.sha256) == ("onnx", str(path), file_sha256(path))
    assert found.inputs == ("x ('N', 5) float32",)
    assert found.outputs == ("y ('N', 3) float32",)
    assert (found.params, found.opset, found.size_bytes) == (15, 20, path.stat().st_size)
    assert found.operators == {"MatMul": 1}
    assert (found.macs, found.preprocessing, found.labels, found.history) == (None, None, (), ())


def test_a_description_survives_json(linear_onnx: Callable[..., Path]) -> None:
    found = describe(open_onnx(linear_onnx()))
    assert type(found).model_validate_json(found.model_dump_json()) == found
