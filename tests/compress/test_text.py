"""Text models through training, distillation and int8: what is learnt, what a teacher is shown, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_text import write_bert, write_texts

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.distillation.teachers import teacher_runner
from compress.quantization.calibration import masking_nodes, observe, ranges_of
from compress.quantization.quantize import QuantizeConfig, quantization_sensitivity, quantize
from compress.training.config import TrainConfig
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.speed_trial import choose_execution
from compress.training.step import TrainBatch
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.predict import accuracy, logits_of, predict
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export

SETTINGS = {"batch_size": 16, "optimizer": "adamw", "lr": 0.01, "precision": "float32", "compile": False}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load_data(str(write_texts(tmp_path_factory.mktemp("texts"))))


@pytest.fixture(scope="module")
def fresh(texts: Data, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return load_torch_model(f"hf:{write_bert(tmp_path_factory.mktemp('bert'))}", texts)


@pytest.fixture(scope="module")
def taught(fresh: TorchModel, texts: Data) -> TorchModel:
    return finetune(fresh, texts, FinetuneConfig(epochs=12, **SETTINGS)).model


@pytest.fixture(scope="module")
def file(taught: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(taught, tmp_path_factory.mktemp("file") / "text.onnx", ExportConfig()).model


def test_a_text_model_learns(fresh: TorchModel, taught: TorchModel, texts: Data) -> None:
    before, after = (accuracy(*predict(model, texts, "test")) for model in (fresh, taught))
    assert after > 90 > before


def test_a_text_model_is_not_compiled_unasked(fresh: TorchModel) -> None:
    execution, tried = choose_execution(fresh, TrainConfig(), 10**9)
    assert not any(one.compile for one in (execution, *tried))


def test_padding_does_not_change_an_answer(taught: TorchModel, texts: Data) -> None:
    alone, _ = predict(taught, texts, "test", batch_size=1)
    together, _ = predict(taught, texts, "test", batch_size=32)
    np.testing.assert_allclose(alone, together, atol=1e-4)


def test_the_file_reads_texts_by_itself(taught: TorchModel, file: OnnxModel, texts: Data) -> None:
    np.testing.assert_allclose(predict(file, texts, "test")[0], predict(taught, texts, "test")[0], atol=1e-4)


def test_a_text_teacher_teaches(fresh: TorchModel, taught: TorchModel, file: OnnxModel, texts: Data) -> None:
    config = DistillConfig(epochs=1, **SETTINGS)
    reports = [distill(fresh, teacher, texts, config).report for teacher in (taught, file)]
    assert [report.teacher_accuracies[0] for report in reports] == [100.0, 100.0]
    losses = [report.metrics[0]["train_loss"] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_teacher_with_another_tokenizer_reads_the_texts_itself(taught: TorchModel, texts: Data) -> None:
    assert taught.preprocessing.text is not None
    short = taught.preprocessing.model_copy(
        update={"text": taught.preprocessing.text.model_copy(update={"max_length": 4})}
    )
    split = texts.split("train")
    positions = torch.tensor([5, 0, 7])
    chosen = split.take(positions)
    seen = chosen.samples.fetch(chosen.indices.tolist(), short)
    own = chosen.samples.fetch(chosen.indices.tolist(), taught.preprocessing)
    batch = TrainBatch(seen, chosen.labels(), positions, 0, use_bfloat16=False)
    (same,) = teacher_runner([replace(taught, preprocessing=short)], texts, short, provider="cpu", threads=1)(
        batch
    ).logits
    (other,) = teacher_runner([taught], texts, short, provider="cpu", threads=1)(batch).logits
    run = logits_of(taught)
    assert torch.allclose(same, run(seen), atol=1e-6)
    assert torch.allclose(other, run(own), atol=1e-6)
    assert not torch.allclose(same, other)


def test_hints_compare_the_same_tokens_only(fresh: TorchModel, taught: TorchModel, texts: Data) -> None:
    assert taught.preprocessing.text is not None
    short = taught.preprocessing.text.model_copy(update={"max_length": 4})
    other = replace(taught, preprocessing=taught.preprocessing.model_copy(update={"text": short}))

    def hinted(teacher: TorchModel, method: str, path: str) -> None:
        distill(fresh, teacher, texts, DistillConfig(epochs=1, hints=(f"{method}:{path}={path}",)))

    with pytest.raises(ToolError, match=r"fitnet compares 'bert\.encoder\.layer\.0\.output' .* token by token, .* rkd"):
        hinted(other, "fitnet", "bert.encoder.layer.0.output")
    hinted(other, "rkd", "bert.encoder.layer.0.output")
    hinted(other, "fitnet", "classifier")  # of a sample, and not of its tokens
    hinted(taught, "fitnet", "bert.encoder.layer.0.output")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"flip": True}, "flip augments images; the samples are texts"),
        ({"mixup": 0.2, "crop_padding": 2}, "crop_padding and mixup augment images; the samples are texts"),
        ({"channels_last": True}, "channels_last is for images; the samples are texts"),
        ({"augmentations": 3}, "augmentations is for images"),
    ],
)
def test_what_is_for_images_is_refused(fresh: TorchModel, texts: Data, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        finetune(fresh, texts, FinetuneConfig(epochs=1, **{**SETTINGS, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "operator"),
    [
        ({"form": "qdq", "activation_type": "uint8", "weight_type": "int8"}, "QuantizeLinear"),
        ({"form": "dynamic"}, "MatMulInteger"),
        ({"precision": "int4"}, "MatMulNBits"),
        ({"precision": "float16"}, "Cast"),
    ],
    ids=["static", "dynamic", "int4", "float16"],
)
def test_a_smaller_file_keeps_the_answers(
    file: OnnxModel, texts: Data, tmp_path: Path, settings: dict[str, str], operator: str
) -> None:
    """What masks by the lowest number there is among it."""
    config = QuantizeConfig(calibration_samples=48, **settings)
    made = quantize(file, texts, tmp_path / "small.onnx", config).model
    assert made.declared == file.declared
    assert operator in [node.op_type for node in onnx.load(made.path).graph.node]
    agreement = (predict(made, texts, "test")[0].argmax(1) == predict(file, texts, "test")[0].argmax(1)).mean()
    assert agreement > 0.9


def test_every_product_has_a_sensitivity(file: OnnxModel, texts: Data) -> None:
    found = quantization_sensitivity(file, texts, QuantizeConfig(calibration_samples=16))
    assert {one.operator for one in found.layers} == {"MatMul", "Gemm"}
    names = [node.name for node in onnx.load(file.path).graph.node if node.op_type in ("MatMul", "Gemm")]
    assert [one.node for one in found.layers] == names
    without_weights = [one for one in found.layers if one.weights == 0]
    assert len(without_weights) >= 2  # queries by keys, and shares by values
    assert all(one.activations > 0 for one in without_weights)


def test_the_dynamic_form_has_no_sensitivity_of_what_it_leaves_in_float(file: OnnxModel, texts: Data) -> None:
    """It rounds products with a constant matrix alone: attention's two are not among them."""
    found = quantization_sensitivity(file, texts, QuantizeConfig(calibration_samples=16, form="dynamic"))
    whole = quantization_sensitivity(file, texts, QuantizeConfig(calibration_samples=16))
    assert [one.node for one in found.layers] == [one.node for one in whole.layers if one.weights > 0]


@pytest.mark.parametrize("histograms", [True, False])
def test_what_stands_for_minus_infinity_has_no_range(histograms: bool) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["scores", "mask"], ["masked"], name="add"),
            helper.make_node("Softmax", ["masked"], ["shares"], name="softmax"),
            helper.make_node("Relu", ["scores"], ["other"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("scores", "mask")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("shares", "other")],
        value_info=[helper.make_tensor_value_info("masked", TensorProto.FLOAT, ["n", 2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batch = np.ones((3, 2), np.float32), np.full((3, 2), np.finfo(np.float32).min)
    batch[1][:, 0] = 0
    seen = observe(proto, [batch], lambda _: None, histograms=histograms)
    assert masking_nodes(proto.graph, seen) == ["add", "softmax"]
    assert set(ranges_of(seen, "entropy" if histograms else "minmax")) == {"scores", "shares", "other"}
