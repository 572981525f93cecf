"""A file that takes raw images and returns probabilities or classes computes what the module does, and says so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from onnx import numpy_helper

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.quantization.int8_sensitivity import LayerDamage
from compress.quantization.quantize import QuantizeConfig, quantization_sensitivity, quantize
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel, open_onnx
from core.predict import accuracy, predict
from core.preprocessing import Preprocessing, normalise
from core.torch_model import TorchModel
from export.baked import bake_preprocessing
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, verify

Onnxpress = Callable[..., Result]


@pytest.fixture(scope="module")
def top3(trained: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """Takes uint8 images and returns the three most probable classes."""
    path = tmp_path_factory.mktemp("baked") / "top3.onnx"
    return export(trained, path, ExportConfig(input="uint8", returns="top-3")).model


@pytest.fixture(scope="module")
def probabilities(trained: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("baked") / "probabilities.onnx"
    return export(trained, path, ExportConfig(returns="probabilities")).model


def run(model: OnnxModel, inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return outputs


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_raw_images_give_what_the_module_gives_of_normalised_ones(
    trained: TorchModel, top3: OnnxModel, batch_size: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        (inputs,) = normalise((torch.from_numpy(images).permute(0, 3, 1, 2),), trained.preprocessing)
        expected = torch.softmax(trained.module(inputs), 1).topk(3)
    probabilities, classes = run(top3, images)
    np.testing.assert_allclose(probabilities, expected.values, rtol=1e-4)
    assert np.array_equal(classes, expected.indices)


def test_the_file_says_what_it_takes_and_returns(trained: TorchModel, top3: OnnxModel) -> None:
    assert [(one.name, one.shape, one.dtype) for one in top3.inputs] == [("images", ("batch", 8, 8, 1), "uint8")]
    assert [(one.name, one.shape, one.dtype) for one in top3.outputs] == [
        ("probabilities", ("batch", 3), "float32"),
        ("classes", ("batch", 3), "int64"),
    ]
    assert top3.preprocessing == trained.preprocessing.model_copy(update={"input": "uint8"})
    assert (top3.returns, top3.sample_shape) == ("top-3", (1, 8, 8))
    onnx.checker.check_model(top3.path, full_check=True)


def test_a_plain_file_says_so_too(exported: OnnxModel, trained: TorchModel) -> None:
    assert exported.preprocessing == trained.preprocessing
    assert (exported.preprocessing.input, exported.returns) == ("float32", "logits")
    assert exported.sample_shape == (1, 8, 8)


def test_accuracy_is_the_same_in_every_form(
    exported: OnnxModel, top3: OnnxModel, probabilities: OnnxModel, digits: Data
) -> None:
    scores = {one.path: accuracy(*predict(one, digits, "test")) for one in (exported, top3, probabilities)}
    assert len(set(scores.values())) == 1
    assert min(scores.values()) > 80


def test_every_pair_of_forms_is_verified(
    trained: TorchModel, exported: OnnxModel, top3: OnnxModel, probabilities: OnnxModel, digits: Data
) -> None:
    for reference in (trained, exported, top3):
        for candidate in (exported, top3, probabilities):
            for data in (None, digits):
                report = verify(reference, candidate, VerifyConfig(), data)
                assert report.misses == (), (reference.name, candidate.name)
                assert all(one.agreement == 100 for one in report.comparisons)


@pytest.mark.parametrize(
    "name",
    ["onnxpress/factor", *(pytest.param(one, marks=pytest.mark.slow) for one in ("onnxpress/offset", "6.bias"))],
)
def test_a_wrong_constant_is_found_through_all_that_is_baked_in(
    trained: TorchModel, top3: OnnxModel, tmp_path: Path, name: str
) -> None:
    proto = onnx.load(top3.path)
    constant = next(one for one in proto.graph.initializer if one.name == name)
    wrong = numpy_helper.to_array(constant) * 1.05 + np.eye(1, *constant.dims[:1], dtype=np.float32)[0] * 0.01
    constant.CopyFrom(numpy_helper.from_array(wrong.astype(np.float32).reshape(constant.dims), name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    assert verify(trained, open_onnx(tmp_path / "wrong.onnx"), VerifyConfig()).misses


def test_classes_in_the_wrong_order_are_found(trained: TorchModel, top3: OnnxModel, tmp_path: Path) -> None:
    proto = onnx.load(top3.path)
    next(node for node in proto.graph.node if node.op_type == "TopK").attribute.append(
        onnx.helper.make_attribute("largest", 0)
    )
    onnx.save(proto, tmp_path / "wrong.onnx")
    assert verify(trained, open_onnx(tmp_path / "wrong.onnx"), VerifyConfig()).misses


@pytest.mark.parametrize(
    ("preprocessing", "operators"),
    [
        (Preprocessing(image_size=(8, 8), channels=1), ["Transpose", "Cast"]),
        (Preprocessing(image_size=(8, 8), channels=1, scale=1 / 255), ["Transpose", "Cast", "Mul"]),
        (Preprocessing(image_size=(8, 8), channels=1, mean=(3.0,), std=(1.0,)), ["Transpose", "Cast", "Add"]),
        (
            Preprocessing(image_size=(8, 8), channels=1, scale=1 / 255, mean=(0.3,), std=(0.2,)),
            ["Transpose", "Cast", "Mul", "Add"],
        ),
    ],
)
def test_only_what_changes_something_is_baked_in(
    exported: OnnxModel, tmp_path: Path, preprocessing: Preprocessing, operators: list[str]
) -> None:
    proto = onnx.load(exported.path)
    bake_preprocessing(proto, preprocessing)
    assert [node.op_type for node in proto.graph.node][: len(operators) + 1] == [*operators, "Conv"]
    onnx.save(proto, tmp_path / "baked.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    inputs = normalise((torch.from_numpy(images).permute(0, 3, 1, 2),), preprocessing)[0].numpy()
    (found,), (expected,) = run(open_onnx(tmp_path / "baked.onnx"), images), run(exported, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["qdq", pytest.param("qoperator", marks=pytest.mark.slow)])
def test_int8_leaves_in_float_what_is_baked_in(top3: OnnxModel, digits: Data, tmp_path: Path, form: str) -> None:
    config = QuantizeConfig(form=form, calibration_samples=64)
    made = quantize(top3, digits, tmp_path / "int8.onnx", config, verify=lambda *_: None).model
    assert (made.preprocessing, made.returns) == (top3.preprocessing, "top-3")
    assert made.inputs == top3.inputs
    maker = {output: node for node in onnx.load(made.path).graph.node for output in node.output}
    cast = next(node for node in maker.values() if node.op_type == "Cast")
    assert maker[cast.input[0]].input[0] == "images"
    (multiplied,) = [node for node in maker.values() if cast.output[0] in node.input]
    assert multiplied.op_type == "Mul"
    assert verify(top3, made, VerifyConfig(), digits).misses == ()
    assert accuracy(*predict(made, digits, "test")) > accuracy(*predict(top3, digits, "test")) - 3


def test_what_int8_loses_is_measured_on_the_logits(exported: OnnxModel, top3: OnnxModel, digits: Data) -> None:
    def layers(model: OnnxModel) -> tuple[LayerDamage, ...]:
        return quantization_sensitivity(model, digits, QuantizeConfig(calibration_samples=64)).layers

    for baked, plain in zip(layers(top3), layers(exported), strict=True):
        assert baked.node == plain.node
        assert baked.weights == pytest.approx(plain.weights, rel=0.05, abs=1e-7)


def test_a_file_of_probabilities_teaches_and_one_of_top_k_is_refused(
    untrained: TorchModel, top3: OnnxModel, probabilities: OnnxModel, exported: OnnxModel, few_digits: Data
) -> None:
    config = DistillConfig(epochs=1, kd_ratio=1.0)
    taught = [distill(untrained, [one], few_digits, config).model.module[0].weight for one in (exported, probabilities)]
    torch.testing.assert_close(*taught, atol=1e-3, rtol=1e-3)
    with pytest.raises(ToolError, match=r"returns its top-3 classes only.*export the teacher with --returns logits"):
        distill(untrained, [top3], few_digits, config)


@pytest.mark.slow
def test_a_teacher_may_take_raw_images(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    teacher = export(trained, tmp_path / "uint8.onnx", ExportConfig(input="uint8")).model
    config = DistillConfig(epochs=1, kd_ratio=1.0)
    taught = [distill(untrained, [one], few_digits, config).model.module[0].weight for one in (teacher, trained)]
    torch.testing.assert_close(*taught, atol=1e-3, rtol=1e-3)


def test_a_module_may_call_its_output_what_the_file_calls_its_own(trained: TorchModel, tmp_path: Path) -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained.module

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"probabilities": self.network(x)}

    named = replace(trained, module=Named())
    file = export(named, tmp_path / "named.onnx", ExportConfig(returns="top-3")).model
    assert [one.name for one in file.outputs] == ["probabilities", "classes"]


def test_samples_that_are_no_images_are_refused(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:mlp", input_shape=(5,))
    with pytest.raises(ToolError, match=r"samples of shape \(5,\) that are not images.*--input float32"):
        export(model, tmp_path / "x.onnx", ExportConfig(input="uint8"))


def test_more_classes_than_there_are_cannot_be_returned(untrained: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="has 10 classes and cannot return the top-11; ask for fewer"):
        export(untrained, tmp_path / "x.onnx", ExportConfig(returns="top-11"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("returns", ["top-0", "top-k", "softmax", ""])
def test_an_answer_that_is_none_is_refused(returns: str) -> None:
    with pytest.raises(ValueError, match="it is logits, probabilities or top-K with a number, like top-5"):
        ExportConfig(returns=returns)


def test_the_commands_take_such_a_file(onnxpress: Onnxpress, tiny: str, top3: OnnxModel) -> None:
    quick = ["--iterations", 20, "--max-seconds", 0.3, "--threads", 1]
    for arguments in (
        ["bench", top3.path, "--data", "digits", *quick],
        ["inspect", top3.path],
        ["verify", top3.path, "--reference", top3.path, "--data", "digits"],
    ):
        result = onnxpress(*arguments)
        assert result.exit_code == 0, result.output
    assert "top-3" in onnxpress("inspect", top3.path, "--json").stdout
    result = onnxpress("export", "x", "-o", "x.onnx", "--returns", "top5")
    assert result.exit_code == 2
    assert "'top5' is not logits, probabilities or top-K" in result.stderr
