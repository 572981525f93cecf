"""The exported file computes what the module computes, at any batch, and explains itself."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compress.prune import PruneConfig, prune
from core.errors import GateMissedError, ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_parity_at_any_batch_size(trained: TorchModel, exported: OnnxModel, batch_size: int) -> None:
    inputs = torch.randn(batch_size, 1, 8, 8)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        expected = trained.module(inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def test_a_pruned_model_exports_at_its_new_widths(trained: TorchModel, tmp_path: Path) -> None:
    pruned = prune(trained, PruneConfig(pruning_ratio=0.5, allocation="uniform")).model
    made = export(pruned, tmp_path / "pruned.onnx", ExportConfig()).model
    shapes = [tuple(one.dims) for one in onnx.load(made.path).graph.initializer if len(one.dims) == 4]
    assert shapes == [(8, 1, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3)]
    assert [step.stage for step in made.history] == ["finetune", "prune", "export"]


def test_batch_norm_is_folded(exported: OnnxModel) -> None:
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(exported.path).graph.node]


def test_the_file_explains_itself(trained: TorchModel, exported: OnnxModel) -> None:
    assert exported.preprocessing == trained.preprocessing
    assert exported.labels == trained.labels
    assert [spec.name for spec in exported.inputs] == ["input"]
    assert exported.inputs[0].shape == ("batch", 1, 8, 8)
    assert exported.outputs[0].name == "logits"
    assert exported.history[:-1] == trained.history
    onnx.checker.check_model(exported.path)


def test_the_opset_is_the_one_asked_for(untrained: TorchModel, tmp_path: Path) -> None:
    assert export(untrained, tmp_path / "model.onnx", ExportConfig(opset=18)).model.opset == 18


def test_the_module_that_cannot_be_traced_is_named(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:untraceable", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"cannot trace .*tiny_models.py:untraceable in its module '1\.1'"):
        export(model, tmp_path / "model.onnx", ExportConfig())
    assert list(tmp_path.iterdir()) == []


def test_code_that_fixes_the_batch_is_refused(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:fixed_batch", input_shape=(1, 8, 8))
    with pytest.raises(ToolError, match=r"fixes the batch at 2|cannot trace"):
        export(model, tmp_path / "model.onnx", ExportConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_misses_parity_does_not_take_its_name(untrained: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(GateMissedError, match="does not match"):
        export(untrained, tmp_path / "model.onnx", ExportConfig(atol=0, rtol=0))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_force(untrained: TorchModel, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("precious")
    with pytest.raises(ToolError, match="exists already; pass --force"):
        export(untrained, output, ExportConfig())
    assert output.read_text() == "precious"


def test_the_module_is_untouched(trained: TorchModel, tmp_path: Path) -> None:
    before = {name: tensor.stride() for name, tensor in trained.module.state_dict().items()}
    export(trained, tmp_path / "model.onnx", ExportConfig())
    assert {name: tensor.stride() for name, tensor in trained.module.state_dict().items()} == before
