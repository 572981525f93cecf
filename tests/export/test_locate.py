"""A wrong operator planted in an exported file is located to the module it came from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from onnx import numpy_helper

from core.checkpoint import save_checkpoint
from core.errors import GateMissedError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel, explain, open_onnx
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, require_verified, verify

Edit = Callable[[onnx.GraphProto], None]


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change an initializer."""

    def edit(graph: onnx.GraphProto) -> None:
        one = next(one for one in graph.initializer if one.name == name)
        one.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(one)).astype(np.float32), name))

    return edit


def operator(tensor: str, becomes: str) -> Edit:
    """Let another operator make a tensor."""

    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if tensor in node.output).op_type = becomes

    return edit


def epsilon(index: int, value: float) -> Edit:
    """Change the epsilon of the layer normalisation at `index`."""

    def edit(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == "LayerNormalization"][index]
        next(one for one in node.attribute if one.name == "epsilon").f = value

    return edit


def edited(model: OnnxModel, path: Path, edit: Edit) -> OnnxModel:
    proto = onnx.load(model.path)
    edit(proto.graph)
    onnx.save(proto, path)
    return open_onnx(path)


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(np.arange(array.size).reshape(array.shape) == 0, value, array)


@pytest.mark.parametrize(
    ("edit", "module", "named"),
    [
        pytest.param(
            weight("3.conv2.weight", lambda array: array * 1.05),
            "3.bn2",
            r"the first tensor that differs is '\w+' of module 3\.bn2 \(BatchNorm2d\), made by Conv with "
            r"3\.conv2\.weight.*: max_abs_err \d",
            id="a weight whose batch norm is folded in",
        ),
        pytest.param(
            operator("relu_1", "LeakyRelu"),
            "3",
            r"'relu_1' of module 3 \(Residual\), made by LeakyRelu: max_abs_err",
            id="an operator",
        ),
        pytest.param(
            operator("add", "Sub"), "3", r"'add' of module 3 \(Residual\), made by Sub", id="the residual addition"
        ),
        pytest.param(
            weight("6.bias", lambda array: array + 0.1),
            "6",
            r"'logits' of module 6 \(Linear\), made by Gemm with 6\.weight, 6\.bias: max_abs_err 0\.1",
            id="the last layer",
        ),
        pytest.param(
            weight("3.conv1.weight", first(np.nan)),
            "3.bn1",
            r"the first tensor that is not finite is '\w+' of module 3\.bn1 \(BatchNorm2d\), made by Conv",
            id="NaN",
        ),
        pytest.param(
            weight("0.weight", first(np.inf)),
            "1",
            r"the first tensor that is not finite is '\w+' of module 1 \(BatchNorm2d\), made by Conv",
            id="infinity",
        ),
    ],
)
def test_a_planted_mistake_is_located(
    trained: TorchModel, exported: OnnxModel, tmp_path: Path, edit: Edit, module: str, named: str
) -> None:
    report = verify(trained, edited(exported, tmp_path / "wrong.onnx", edit), VerifyConfig(batch_sizes=(2,)))
    assert report.located is not None
    assert report.located.module == module
    with pytest.raises(GateMissedError, match=named):
        require_verified(report)
    assert type(report).model_validate_json(text := report.model_dump_json()).model_dump_json() == text


def test_a_wrong_normalisation_is_the_inputs(trained: TorchModel, tmp_path: Path) -> None:
    model = export(trained, tmp_path / "uint8.onnx", ExportConfig(input="uint8", returns="probabilities")).model
    wrong = edited(model, tmp_path / "wrong.onnx", weight("onnxpress/factor", lambda array: array * 1.1))
    located = verify(trained, wrong, VerifyConfig(batch_sizes=(2,))).located
    assert located is not None
    assert (located.tensor, located.operator, located.module_type) == ("input", "Add", "its input")


def test_nan_that_torch_makes_too_is_said(untrained: TorchModel, tmp_path: Path) -> None:
    module = copy.deepcopy(untrained.module)
    with torch.no_grad():
        module[3].conv1.weight[0] = np.nan
    with pytest.raises(GateMissedError, match=r"not finite is '\w+' of module 3\.bn1 .*, in torch too"):
        export(replace(untrained, module=module), tmp_path / "model.onnx", ExportConfig())


def test_infinity_that_torch_makes_too_is_said(trained: TorchModel, tmp_path: Path) -> None:
    module = copy.deepcopy(trained.module)
    with torch.no_grad():
        module[6].bias[0] = np.inf
    with pytest.raises(GateMissedError, match=r"not finite is 'logits' of module 6 \(Linear\), .*, in torch too"):
        export(replace(trained, module=module), tmp_path / "model.onnx", ExportConfig())


def test_infinity_is_said_though_rounding_differs_before_it(trained: TorchModel, tmp_path: Path) -> None:
    """Large values differ by more than the tolerance, and little for their size; then they overflow."""
    module = copy.deepcopy(trained.module)
    with torch.no_grad():
        module[6].weight *= 1e38
        module[3].bn2.weight *= 1e6
    with pytest.raises(GateMissedError, match=r"the first tensor that is not finite is 'logits' .*, in torch too"):
        export(replace(trained, module=module), tmp_path / "model.onnx", ExportConfig())


def test_the_command_prints_it(
    onnxpress: Callable[..., Result], trained: TorchModel, exported: OnnxModel, tmp_path: Path
) -> None:
    save_checkpoint(trained, tmp_path / "checkpoint")
    edited(exported, tmp_path / "wrong.onnx", operator("relu_2", "Sigmoid"))
    result = onnxpress("verify", "wrong.onnx", "--reference", "checkpoint")
    assert result.exit_code == 3
    assert "the first tensor that differs is 'relu_2' of module 3 (Residual), made by Sigmoid" in result.stderr


def test_what_cannot_be_compared_by_name_is_not_located(
    trained: TorchModel, exported: OnnxModel, quantized: OnnxModel, tmp_path: Path
) -> None:
    """Another torch may name its tensors otherwise, and in an int8 file every tensor differs."""
    proto = onnx.load(exported.path)
    operator("relu_1", "Sigmoid")(proto.graph)
    (*before, last) = exported.history
    older = last.model_copy(update={"versions": last.versions | {"torch": "2.0.0"}})
    explain(
        proto,
        history=(*before, older),
        inputs=(),
        preprocessing=exported.preprocessing,
        labels=exported.labels,
    )
    onnx.save(proto, tmp_path / "older.onnx")
    for candidate in (open_onnx(tmp_path / "older.onnx"), quantized):
        report = verify(trained, candidate, VerifyConfig(atol=1e-6, batch_sizes=(2,)))
        assert report.misses
        assert report.located is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edit", "module"),
    [
        ("timm:deit_tiny_patch16_224", epsilon(5, 0.1), "blocks.2.norm2"),
        ("timm:resnet18", weight("layer3.0.conv2.weight", lambda array: array * 1.1), "layer3.0.bn2"),
        ("timm:resnet18", operator("relu_9", "Sigmoid"), "layer3.0.act1"),
    ],
)
def test_a_mistake_in_a_real_architecture_is_located(tmp_path: Path, name: str, edit: Edit, module: str) -> None:
    model = load_torch_model(name, input_shape=(3, 64, 64) if "resnet" in name else None)
    file = export(model, tmp_path / "model.onnx", ExportConfig(atol=1e-3)).model
    report = verify(model, edited(file, tmp_path / "wrong.onnx", edit), VerifyConfig(atol=1e-6, batch_sizes=(2,)))
    assert report.located is not None
    assert report.located.module == module
