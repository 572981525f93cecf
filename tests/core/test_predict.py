"""Logits from either carrier over a split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from bench.runnable import open_torch_run
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.onnx_model import open_onnx
from core.predict import accuracy, logits_of, predict
from core.preprocessing import normalise
from core.torch_model import TorchModel, example_inputs

MakeOnnx = Callable[..., Path]
SAMPLES = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
TARGETS = np.arange(10) % 3


@pytest.fixture
def floats(tmp_path: Path) -> Data:
    np.savez(tmp_path / "floats.npz", x_test=SAMPLES, y_test=TARGETS)
    return load_data(str(tmp_path / "floats.npz"))


@pytest.fixture
def mlp(factory_file: Path) -> TorchModel:
    """A network (N, 5) -> (N, 3)."""
    return load_torch_model(f"{factory_file}:mlp", input_shape=(5,))


def test_a_torch_model_is_run_over_the_whole_split_in_order(untrained: TorchModel, digits: Data) -> None:
    logits, targets = predict(untrained, digits, "test", batch_size=100)
    raw = digits.split("test").samples.fetch(digits.split("test").indices.tolist(), untrained.preprocessing)
    with torch.no_grad():
        expected = untrained.module(*normalise(raw, untrained.preprocessing)).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(targets, digits.split("test").labels().numpy())


@pytest.mark.parametrize("batch", ["N", 5, 1])
def test_an_onnx_file_is_run_over_the_whole_split(linear_onnx: MakeOnnx, floats: Data, batch: int | str) -> None:
    logits, targets = predict(open_onnx(linear_onnx(batch=batch)), floats, "test", batch_size=4)
    np.testing.assert_allclose(logits, SAMPLES @ np.arange(15).reshape(5, 3), rtol=1e-4, atol=1e-4)
    assert np.array_equal(targets, TARGETS)


def test_a_fixed_batch_that_does_not_divide_the_split_is_explained(linear_onnx: MakeOnnx, floats: Data) -> None:
    with pytest.raises(ToolError, match="batch"):
        predict(open_onnx(linear_onnx(batch=4)), floats, "test")


def test_a_limit_bounds_the_samples(linear_onnx: MakeOnnx, floats: Data) -> None:
    logits, targets = predict(open_onnx(linear_onnx()), floats, "test", limit=3)
    assert (len(logits), targets.tolist()) == (3, [TARGETS[0], TARGETS[4], TARGETS[9]])


def test_a_model_of_other_classes_is_told(linear_onnx: MakeOnnx, floats: Data) -> None:
    with pytest.raises(
        ToolError, match=r"linear\.onnx returns outputs of shape \(4,\) .*floats\.npz has 3 classes, and a classifier"
    ):
        predict(open_onnx(linear_onnx(num_classes=4)), floats, "test")


def test_a_model_of_other_inputs_is_told(linear_onnx: MakeOnnx, floats: Data) -> None:
    with pytest.raises(ToolError, match=r"cannot run the model on inputs of shape \(10, 5\)"):
        predict(open_onnx(linear_onnx(num_features=6)), floats, "test")


def test_a_torch_model_of_other_inputs_is_told(factory_file: Path, floats: Data) -> None:
    model = load_torch_model(f"{factory_file}:mlp,num_features=6", input_shape=(6,))
    with pytest.raises(ToolError, match="mlp"):
        predict(model, floats, "test")


def test_a_split_that_is_absent_is_named(linear_onnx: MakeOnnx, floats: Data) -> None:
    with pytest.raises(ToolError, match=r"floats\.npz has no validation split"):
        predict(open_onnx(linear_onnx()), floats, "validation")


def test_an_onnx_file_without_shapes_is_run(linear_onnx: MakeOnnx, floats: Data) -> None:
    path = linear_onnx()
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    assert predict(open_onnx(path), floats, "test")[0].shape == (10, 3)


def test_logits_do_not_follow_later_changes_of_the_module(mlp: TorchModel) -> None:
    run = logits_of(mlp)
    before = run((torch.ones(2, 5),))
    torch.nn.init.zeros_(mlp.module[2].weight)
    assert torch.equal(run((torch.ones(2, 5),)), before)
    assert not before.requires_grad


@pytest.mark.parametrize(("targets", "percent"), [([0, 1, 1, 0], 100), ([0, 0, 1, 0], 75), ([1, 0, 0, 1], 0)])
def test_accuracy_is_the_share_of_highest_logits(targets: list[int], percent: float) -> None:
    logits = np.array([[2, 1], [0, 5], [-2, -1], [1, 0]], np.float32)
    assert accuracy(logits, np.array(targets)) == percent


def test_a_network_of_volumes_is_run(python_file: Callable[[str], Path]) -> None:
    """Its weights have five axes; channels last is a layout of four."""
    file = python_file(
        "from torch import nn\ndef net(num_classes=3):\n"
        "    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    model = load_torch_model(f"{file}:net", input_shape=(1, 4, 4, 4))
    inputs = example_inputs(model, 2)
    torch.testing.assert_close(logits_of(model)(inputs), model.module(*inputs))
    open_torch_run(model, compiled=False, provider="cpu", threads=1, batch_size=2)()()


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_file_of_other_floats_is_fed_them_and_returns_float32(
    linear_onnx: MakeOnnx, floats: Data, dtype: int
) -> None:
    logits, targets = predict(open_onnx(linear_onnx(dtype=dtype)), floats, "test")
    expected, _ = predict(open_onnx(linear_onnx()), floats, "test")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.1)
    assert targets.tolist() == TARGETS.tolist()


@pytest.mark.parametrize("num_right", [9187, 9176, 9154])
def test_accuracy_is_rounded_once(num_right: int) -> None:
    """So that a limit of so many percent is met exactly."""
    logits, targets = np.tile(np.float32([1, 0]), (10_000, 1)), (np.arange(10_000) >= num_right).astype(np.int64)
    assert accuracy(logits, targets) == num_right / 100
