"""The exported file computes what the module computes, at any batch, and explains itself."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import core.external_data
from bench.runnable import open_onnx_run
from compress.pruning.prune import PruneConfig, prune
from compress.quantization.quantize import QuantizeConfig, quantize
from core.data import Data
from core.describe import describe
from core.errors import GateMissedError, ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, verify


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


@pytest.mark.parametrize("opset", [18, 23, *(pytest.param(one, marks=pytest.mark.slow) for one in (19, 20, 21, 22))])
def test_the_opset_is_the_one_asked_for(untrained: TorchModel, tmp_path: Path, opset: int) -> None:
    config = ExportConfig(opset=opset, input="uint8", returns="top-3")
    assert export(untrained, tmp_path / "model.onnx", config).model.opset == opset
    assert [one.version for one in onnx.load(tmp_path / "model.onnx").opset_import if one.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_the_exporter_does_not_make_is_refused(opset: int) -> None:
    with pytest.raises(ValueError, match=f"opset is {opset}; the exporter makes 18 to 23"):
        ExportConfig(opset=opset)


def test_weights_that_do_not_fit_lie_beside_the_file(
    trained: TorchModel, exported: OnnxModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.external_data, "PROTOBUF_LIMIT_BYTES", 1000)
    output = tmp_path / "big.onnx"
    made = export(trained, output, ExportConfig()).model
    assert sorted(one.name for one in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert made.data_files == (tmp_path / "big.onnx.data",)
    assert verify(exported, made, VerifyConfig()).misses == ()
    assert verify(trained, made, VerifyConfig(atol=1e-12)).located is not None
    assert describe(made).params == describe(exported).params
    with pytest.raises(ToolError, match=r"has more weights than the .* GB that an int8 file can be made of"):
        quantize(made, digits, tmp_path / "int8.onnx", QuantizeConfig())
    before = contents(tmp_path)
    with pytest.raises(ToolError, match=r"big\.onnx exists already; pass --force"):
        export(trained, output, ExportConfig())
    with pytest.raises(GateMissedError, match="does not match"):
        export(trained, output, ExportConfig(atol=0, rtol=0), force=True)
    assert contents(tmp_path) == before
    monkeypatch.undo()
    export(trained, output, ExportConfig(), force=True)
    assert [one.name for one in tmp_path.iterdir()] == ["big.onnx"]


def contents(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


@pytest.mark.slow
def test_a_model_over_2_gb_is_exported_and_read(tiny: str, tmp_path: Path) -> None:
    """Needs some 15 GB of memory."""
    model = load_torch_model(f"{tiny}:wide", input_shape=(16384,))
    made = export(model, tmp_path / "wide.onnx", ExportConfig(batch_sizes=(1, 2))).model
    assert made.size_bytes > 2**31
    assert made.path.stat().st_size < 2**20
    assert describe(made).params == 2 * 16384**2 + 2 * 16384 + 16384 * 10 + 10
    assert latency_of(made) > 0


def latency_of(model: OnnxModel) -> float:
    run = open_onnx_run(model, "cpu", 1, 1)()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


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


def test_attention_of_five_axes_is_exported(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:windowed", input_shape=(1, 8, 8))
    assert export(model, tmp_path / "model.onnx", ExportConfig()).report.verify.misses == ()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("LSTM", ",bidirectional=true"), pytest.param("GRU", ",num_layers=2", marks=pytest.mark.slow)],
)
def test_recurrent_layers_are_exported(tiny: str, tmp_path: Path, kind: str, settings: str) -> None:
    model = load_torch_model(f"{tiny}:recurrent,kind={kind}{settings}", input_shape=(1, 8, 8))
    made = export(model, tmp_path / "model.onnx", ExportConfig())
    assert kind in [node.op_type for node in onnx.load(made.model.path).graph.node]
    assert [one.samples for one in made.report.verify.comparisons] == [1, 2, 7]
