"""Dynamic int8, four-bit matrices and half precision: right, small, and told where they cannot serve."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_layouts import layouts_worth_trying
from compress.quantization.quantize import QuantizeReport, quantize
from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel
from core.predict import predict
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export


class Flattened(nn.Module):
    """Digits as rows of 64, then three products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Rows(nn.Module):
    """Reads a digit row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


@pytest.fixture(scope="module")
def products(untrained: TorchModel, digits: Data) -> TorchModel:
    torch.manual_seed(0)  # the seed of a test comes after this
    start = replace(untrained, module=Flattened())
    return finetune(start, digits, FinetuneConfig(epochs=6, batch_size=64, lr=0.1, crop_padding=0)).model


@pytest.fixture(scope="module")
def matrices(products: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(products, tmp_path_factory.mktemp("matrices") / "float32.onnx", ExportConfig()).model


def made(
    model: OnnxModel, data: Data, folder: Path, *, measured: bool = True, **settings: object
) -> tuple[OnnxModel, QuantizeReport]:
    clock = (lambda _, files: [2.0 for _ in files]) if measured else None
    config = QuantizeConfig(calibration_samples=64, **settings)
    result = quantize(model, data, folder / "small.onnx", config, measure_speedups=clock)
    return result.model, result.report


def agreement(first: OnnxModel, second: OnnxModel, data: Data) -> float:
    return float((predict(first, data, "test")[0].argmax(1) == predict(second, data, "test")[0].argmax(1)).mean())


def matrix_values(model: OnnxModel) -> np.ndarray:
    """Return all that the file's matrices hold, as float32, in their order."""
    found = [one for one in onnx.load(model.path).graph.initializer if len(one.dims) == 2]
    return np.concatenate([numpy_helper.to_array(one).astype(np.float32).ravel() for one in found])


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


def test_dynamic_int8_rounds_every_product(matrices: OnnxModel, digits: Data, tmp_path: Path) -> None:
    model, report = made(matrices, digits, tmp_path, form="dynamic", max_drop=5.0)
    assert operators(model).count("MatMulInteger") == 3
    assert agreement(matrices, model, digits) > 0.97
    assert report.calibration_method is None
    assert report.drop_without_vnni is not None
    assert model.size_bytes < matrices.size_bytes / 2.5


def test_a_product_that_is_excluded_stays_in_float(matrices: OnnxModel, digits: Data, tmp_path: Path) -> None:
    first = next(node.name for node in onnx.load(matrices.path).graph.node if node.op_type == "Gemm")
    for number, settings in enumerate([{"form": "dynamic"}, {"precision": "int4"}, {"precision": "float16"}]):
        (tmp_path / str(number)).mkdir()
        excluded, folder = (first,), tmp_path / str(number)
        model, report = made(matrices, digits, folder, nodes_to_exclude=excluded, max_drop=5.0, **settings)
        weights = [one for one in onnx.load(model.path).graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
        assert any(list(one.dims) in ([64, 96], [96, 64]) for one in weights)
        assert report.left_in_float == excluded


def test_dynamic_int8_is_tried_where_matrices_are_multiplied() -> None:
    def forms(*operators: str) -> list[str]:
        return [layout.form for layout in layouts_worth_trying("cpu", None, operators)]

    assert "dynamic" in forms("Conv", "MatMul", "Gemm")
    assert "dynamic" in forms("LSTM")
    assert "dynamic" not in forms("Conv", "Conv", "Gemm")


@pytest.mark.slow
def test_a_dynamic_lstm_keeps_seven_bits(untrained: TorchModel, digits: Data, tmp_path: Path) -> None:
    start = replace(untrained, module=Rows())
    trained = finetune(start, digits, FinetuneConfig(epochs=3, batch_size=64, lr=0.1, crop_padding=0)).model
    model = export(trained, tmp_path / "float32.onnx", ExportConfig()).model
    small, _ = made(model, digits, tmp_path, form="dynamic", reduce_range=False, max_drop=5.0)
    graph = onnx.load(small.path).graph
    assert "DynamicQuantizeLSTM" in operators(small)
    codes = [numpy_helper.to_array(one) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(one.astype(int)).max() for one in codes) <= 64
    assert agreement(model, small, digits) > 0.95


def test_int4_keeps_matrices_in_four_bits(matrices: OnnxModel, digits: Data, tmp_path: Path) -> None:
    model, report = made(matrices, digits, tmp_path, precision="int4", max_drop=5.0)
    assert operators(model).count("MatMulNBits") == 3
    assert model.precision == "int4"
    assert model.size_bytes < matrices.size_bytes / 3
    assert agreement(matrices, model, digits) > 0.94
    assert (report.precision, report.layout, report.drop_without_vnni) == ("int4", None, None)
    assert report.measured_speedup == 2.0


def test_int4_needs_a_matrix(untrained: TorchModel, digits: Data, tmp_path: Path) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

    model = export(replace(untrained, module=Mean().eval()), tmp_path / "float32.onnx", ExportConfig()).model
    with pytest.raises(ToolError, match="no product with a constant matrix, which is what int4 keeps in four bits"):
        made(model, digits, tmp_path, precision="int4")
    assert not (tmp_path / "small.onnx").exists()


def test_float16_halves_the_file(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    model, report = made(exported, digits, tmp_path, precision="float16")
    assert model.precision == "float16"
    assert [spec.dtype for spec in (*model.inputs, *model.outputs)] == ["float32", "float32"]
    assert agreement(exported, model, digits) > 0.99
    assert report.left_in_float == ()


def test_what_overflows_in_float16_stays_in_float32(products: TorchModel, digits: Data, tmp_path: Path) -> None:
    module = Flattened()
    module.load_state_dict(products.module.state_dict())
    with torch.no_grad():
        module.layers[0].weight *= 1e5
        module.layers[0].bias *= 1e5
        module.layers[2].weight /= 1e5
    large = export(replace(products, module=module.eval()), tmp_path / "float32.onnx", ExportConfig(atol=1e-2)).model
    model, report = made(large, digits, tmp_path, precision="float16")
    assert agreement(large, model, digits) > 0.99
    gemms = [node.name for node in onnx.load(large.path).graph.node if node.op_type == "Gemm"]
    assert set(gemms[:2]) <= set(report.left_in_float)
    assert gemms[2] not in report.left_in_float


def test_bfloat16_needs_a_provider_that_has_it(matrices: OnnxModel, digits: Data, tmp_path: Path) -> None:
    model, report = made(matrices, digits, tmp_path, precision="bfloat16", measured=False)
    assert (model.precision, report.drop) == ("bfloat16", None)
    weights = {one.data_type for one in onnx.load(model.path).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in weights
    assert onnx.TensorProto.FLOAT16 not in weights
    assert matrix_values(model) == pytest.approx(matrix_values(matrices), rel=2**-8)
    (tmp_path / "measured").mkdir()
    with pytest.raises(ToolError, match=r"the file in bfloat16 cannot be used on --provider cpu: .*cannot load it on"):
        made(matrices, digits, tmp_path / "measured", precision="bfloat16")
    assert not list((tmp_path / "measured").iterdir())


def test_a_file_that_loses_too_much_is_not_written(hard: tuple[OnnxModel, Data], tmp_path: Path) -> None:
    with pytest.raises(
        GateMissedError, match=r"qdq, per channel, (7-bit weights, )?minmax loses \d+\.\d+ points, more than 1; raise"
    ):
        made(*hard, tmp_path, form="qdq")
    assert not list(tmp_path.iterdir())


def test_the_settings_of_int8_are_refused_elsewhere() -> None:
    with pytest.raises(ToolError, match="precision is int4; form, reduce_range is for int8"):
        QuantizeConfig(precision="int4", form="qdq", reduce_range=True)


def test_a_smaller_file_is_refused(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    model, _ = made(exported, digits, tmp_path, precision="float16")
    with pytest.raises(ToolError, match=r"is float16 already; give the float32 file it was made from"):
        quantize(model, digits, tmp_path / "again.onnx", QuantizeConfig())
