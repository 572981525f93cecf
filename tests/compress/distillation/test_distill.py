"""How a teacher's loss and the task's are mixed, and distillation end to end."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixed_batch import with_fixed_batch
from PIL import Image
from torch.nn import functional

from compress.distillation import teachers as teachers_module
from compress.distillation.config import DistillConfig, Method
from compress.distillation.distill import distill, distillation_loss
from compress.distillation.logit_losses import kd_loss
from compress.distillation.teachers import teacher_runner
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.step import TrainBatch
from core.data import UNLABELLED, Data
from core.data_reference import load_data
from core.errors import ToolError
from core.input_spec import InputSpec
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.preprocessing import normalise
from core.torch_model import TorchModel


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_kd_ratio_zero_is_exactly_the_task_loss(label_smoothing: float) -> None:
    student, targets = random_logits(1), torch.arange(16) % 10
    config = DistillConfig(kd_ratio=0.0, label_smoothing=label_smoothing)
    loss = distillation_loss(student, [random_logits(2)], targets, config)
    assert torch.equal(loss, functional.cross_entropy(student, targets, label_smoothing=label_smoothing))


def test_kd_ratio_one_ignores_the_labels() -> None:
    student, teacher = random_logits(1), random_logits(2)
    one, other = (
        distillation_loss(student, [teacher], targets, DistillConfig(kd_ratio=1.0))
        for targets in (torch.zeros(16, dtype=torch.long), torch.arange(16) % 10)
    )
    assert torch.equal(one, other)
    assert torch.allclose(one, kd_loss(student, teacher, 4.0))


@pytest.mark.parametrize("method", ["kd", "ls", "dkd", "dist"])
def test_every_method_teaches_by_itself(
    method: Method, untrained: TorchModel, trained: TorchModel, digits: Data
) -> None:
    config = DistillConfig(method=method, kd_ratio=1.0, epochs=4, batch_size=64, lr=0.03)
    assert distill(untrained, trained, digits, config).report.validation_accuracy > 75


def test_distill_records_teacher_and_data(untrained: TorchModel, trained: TorchModel, few_digits: Data) -> None:
    result = distill(untrained, trained, few_digits, DistillConfig(epochs=1, batch_size=64))
    step = result.model.history[-1]
    assert step.stage == "distill"
    assert step.data == few_digits.fingerprint
    assert len(step.teachers) == 1
    assert result.report.teacher_accuracies[0] > 80


def test_an_onnx_teacher_teaches_like_the_module_it_was_exported_from(
    untrained: TorchModel, trained: TorchModel, exported: OnnxModel, few_digits: Data
) -> None:
    config = DistillConfig(epochs=1, batch_size=64, crop_padding=1)
    by_module = distill(untrained, trained, few_digits, config).report.metrics[0]["train_loss"]
    by_file = distill(untrained, exported, few_digits, config).report.metrics[0]["train_loss"]
    assert by_file == pytest.approx(by_module, rel=1e-4)


def test_a_teacher_is_normalised_as_it_wants(untrained: TorchModel, trained: TorchModel, few_digits: Data) -> None:
    other = trained.preprocessing.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    student = dataclasses.replace(untrained, preprocessing=other)
    report = distill(student, trained, few_digits, DistillConfig(epochs=1, batch_size=64)).report
    assert report.teacher_accuracies[0] > 80


def test_what_a_teacher_is_asked_in_training_is_normalised_as_it_wants(trained: TorchModel, few_digits: Data) -> None:
    student = trained.preprocessing.model_copy(update={"mean": (0.9,), "std": (0.1,)})
    pixels = few_digits.train.samples.array[:8]
    batch = TrainBatch((pixels,), torch.zeros(8, dtype=torch.long), torch.arange(8), 0, False)
    answer = teacher_runner([trained], few_digits, student, provider="cpu", threads=1)(batch).logits[0]
    with torch.no_grad():
        wanted, mistaken = (trained.module(*normalise((pixels,), one)) for one in (trained.preprocessing, student))
    torch.testing.assert_close(answer, wanted)
    assert not torch.allclose(wanted, mistaken, atol=0.1)


def test_an_int8_teacher_teaches(untrained: TorchModel, quantized: OnnxModel, few_digits: Data) -> None:
    config = DistillConfig(epochs=12, batch_size=64, lr=0.05, kd_ratio=1.0)
    report = distill(untrained, quantized, few_digits, config).report
    assert report.validation_accuracy > report.initial_accuracy + 20


def test_a_validation_split_without_labels_judges_no_finetuning(untrained: TorchModel, few_digits: Data) -> None:
    split = few_digits.split("validation")
    data = dataclasses.replace(
        few_digits, validation=dataclasses.replace(split, targets=torch.full_like(split.targets, UNLABELLED))
    )
    with pytest.raises(ToolError, match=r"the validation split of .* has no labels to judge an epoch by"):
        finetune(untrained, data, FinetuneConfig())


def test_a_teacher_with_other_classes_is_refused(untrained: TorchModel, trained: TorchModel, digits: Data) -> None:
    teacher = dataclasses.replace(trained, labels=("cat", "dog"))
    with pytest.raises(ToolError, match=r"has 2 classes, the student .* has 10"):
        distill(untrained, teacher, digits, DistillConfig())


def test_a_teacher_with_another_input_is_refused(untrained: TorchModel, tiny: str, digits: Data) -> None:
    teacher = load_torch_model(f"{tiny}:cnn", digits, input_shape=(1, 16, 16))
    assert teacher.inputs == (InputSpec(name="input", shape=(1, 16, 16)),)
    with pytest.raises(ToolError, match=r"takes inputs of shape \(1, 16, 16\), the student .* of \(1, 8, 8\)"):
        distill(untrained, teacher, digits, DistillConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"temperature": 0}, "temperature is 0; it must be above 0", id="temperature"),
        pytest.param({"dkd_beta": 0}, "dkd_beta is 0; it must be above 0", id="dkd_beta"),
        pytest.param({"kd_ratio": 1.5}, r"kd_ratio is 1.5; it must be in \[0, 1\]", id="kd_ratio"),
        pytest.param({"teacher_weights": (1.0, 0.0)}, r"teacher_weights are \(1.0, 0.0\); each", id="teacher_weights"),
        pytest.param({"teacher_cache_gb": 0}, "teacher_cache_gb is 0; it must be above 0", id="teacher_cache_gb"),
        pytest.param({"method": "dkd", "mixup": 0.2}, "dkd needs one class a sample; mixup", id="dkd with mixup"),
        pytest.param({"epochs": 0}, "epochs is 0; it must be at least 1", id="epochs of the loop"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)


def test_several_teachers_are_averaged_by_their_weights() -> None:
    student, one, other, targets = random_logits(1), random_logits(2), random_logits(3), torch.arange(16) % 10
    for weights, shares in (((), (0.5, 0.5)), ((3.0, 1.0), (0.75, 0.25))):
        config = DistillConfig(kd_ratio=1.0, teacher_weights=weights)
        expected = shares[0] * kd_loss(student, one, 4.0) + shares[1] * kd_loss(student, other, 4.0)
        assert torch.allclose(distillation_loss(student, [one, other], targets, config), expected)


def test_a_student_of_two_teachers_names_both(
    untrained: TorchModel, trained: TorchModel, exported: OnnxModel, few_digits: Data
) -> None:
    result = distill(untrained, [trained, exported], few_digits, DistillConfig(epochs=1, batch_size=64))
    assert len(result.model.history[-1].teachers) == 2
    assert result.report.teacher_accuracies[0] == result.report.teacher_accuracies[1]


def test_weights_for_other_teachers_are_refused(untrained: TorchModel, trained: TorchModel, few_digits: Data) -> None:
    with pytest.raises(ToolError, match="there are 1 teachers and 2 teacher_weights; give one each"):
        distill(untrained, trained, few_digits, DistillConfig(teacher_weights=(1.0, 2.0)))


def unlabelled(data: Data, tmp_path: Path) -> Data:
    np.savez(tmp_path / "unlabelled.npz", x_train=data.train.samples.array[:400, 0].numpy())
    return load_data(str(tmp_path / "unlabelled.npz"))


def test_samples_without_labels_are_distilled_on(
    untrained: TorchModel, trained: TorchModel, digits: Data, tmp_path: Path
) -> None:
    data = unlabelled(digits, tmp_path)
    assert data.labels == ()
    report = distill(untrained, trained, data, DistillConfig(kd_ratio=1.0, epochs=4, batch_size=32, lr=0.03)).report
    assert report.teacher_accuracies == (100.0,)
    assert report.validation_accuracy > 70


@pytest.mark.parametrize(
    ("values", "why"), [({"kd_ratio": 0.9}, "kd_ratio is 0.9"), ({"kd_ratio": 1.0, "method": "dkd"}, "method dkd")]
)
def test_a_loss_that_reads_labels_is_refused_where_there_are_none(
    values: dict[str, Any], why: str, untrained: TorchModel, trained: TorchModel, digits: Data, tmp_path: Path
) -> None:
    with pytest.raises(ToolError, match=f"has no labels to train on, and {why}"):
        distill(untrained, trained, unlabelled(digits, tmp_path), DistillConfig(**values))


def test_finetuning_without_labels_is_refused(untrained: TorchModel, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="has no labels to train on; distil from a teacher with kd_ratio 1"):
        finetune(untrained, unlabelled(digits, tmp_path), FinetuneConfig())


def test_unlabelled_samples_may_be_mixed(
    untrained: TorchModel, trained: TorchModel, digits: Data, tmp_path: Path
) -> None:
    config = DistillConfig(kd_ratio=1.0, epochs=1, batch_size=32, mixup=0.2)
    report = distill(untrained, trained, unlabelled(digits, tmp_path), config).report
    assert report.metrics[0]["train_loss"] > 0


def test_a_teacher_of_a_fixed_batch_is_refused(
    untrained: TorchModel, exported: OnnxModel, few_digits: Data, tmp_path: Path
) -> None:
    fixed = with_fixed_batch(exported, tmp_path, 4)
    with pytest.raises(ToolError, match=rf"{fixed.name} has its batch fixed at 4, and training makes batches of any"):
        distill(untrained, fixed, few_digits, DistillConfig())


def test_without_labels_each_validation_sample_must_be_read(
    untrained: TorchModel, trained: TorchModel, digits: Data, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    for index in range(20):
        Image.fromarray(digits.train.samples.array[index, 0].numpy()).save(tmp_path / "train" / f"{index:02}.png")
    data = load_data(str(tmp_path), skip_bad=1)
    bad = tmp_path / "train" / f"{int(data.split('validation').indices[0]):02}.png"
    bad.write_bytes(bad.read_bytes()[:60])
    message = (
        rf"1 of the \d+ validation samples of {tmp_path} cannot be read; without labels, what {trained.name} says of "
        "each is needed: remove them"
    )
    with pytest.raises(ToolError, match=message):
        distill(untrained, trained, data, DistillConfig(kd_ratio=1.0, batch_size=8))


def test_a_teacher_on_the_cpu_of_a_student_on_a_gpu_is_told(
    exported: OnnxModel, few_digits: Data, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(teachers_module, "start_accelerator", lambda: on_gpu)
    teacher_runner([exported], few_digits, exported.preprocessing, provider="cpu", threads=1)
    assert [record.message for record in caplog.records] == [
        f"the teacher {exported.name} runs on the CPU while the student trains on cuda:0; --provider cuda runs it there"
    ]
