"""The distillation loss against independent references, and distillation end to end."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional

from compress.distill import DistillConfig, distill, distillation_loss, kd_loss
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import InputSpec, TorchModel

TEMPERATURES = [1.0, 4.0, 20.0]


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton et al. 2015 by the definition, in numpy: T^2 * mean_n sum_k p (log p - log q)."""
    log_q, log_p = log_softmax(student / temperature, axis=1), log_softmax(teacher / temperature, axis=1)
    return float(temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_loss_equals_the_definition(temperature: float) -> None:
    student, teacher = random_logits(1), random_logits(2)
    expected = reference_kd(student.numpy(), teacher.numpy(), temperature)
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_gradient_equals_the_closed_form(temperature: float) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2)
    kd_loss(student, teacher, temperature).backward()
    softened = functional.softmax(student.detach() / temperature, 1) - functional.softmax(teacher / temperature, 1)
    assert torch.allclose(student.grad, temperature * softened / len(student), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_loss_and_gradient_are_zero_when_student_equals_teacher(temperature: float) -> None:
    student = random_logits(1).requires_grad_()
    loss = kd_loss(student, random_logits(1), temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert float(student.grad.abs().max()) < 1e-15


def test_kd_loss_ignores_a_constant_added_to_the_logits() -> None:
    student, teacher = random_logits(1), random_logits(2)
    assert torch.allclose(kd_loss(student, teacher, 4.0), kd_loss(student + 7, teacher - 3, 4.0))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_kd_ratio_zero_is_exactly_the_task_loss(label_smoothing: float) -> None:
    student, targets = random_logits(1), torch.arange(16) % 10
    loss = distillation_loss(
        student, random_logits(2), targets, temperature=4.0, kd_ratio=0.0, label_smoothing=label_smoothing
    )
    assert torch.equal(loss, functional.cross_entropy(student, targets, label_smoothing=label_smoothing))


def test_kd_ratio_one_ignores_the_labels() -> None:
    student, teacher = random_logits(1), random_logits(2)
    one, other = (
        distillation_loss(student, teacher, targets, temperature=4.0, kd_ratio=1.0)
        for targets in (torch.zeros(16, dtype=torch.long), torch.arange(16) % 10)
    )
    assert torch.equal(one, other)
    assert torch.allclose(one, kd_loss(student, teacher, 4.0))


def test_distill_records_teacher_and_data(untrained: TorchModel, trained: TorchModel, few_digits: Data) -> None:
    result = distill(untrained, trained, few_digits, DistillConfig(epochs=1, batch_size=64))
    step = result.model.history[-1]
    assert step.stage == "distill"
    assert step.data == few_digits.fingerprint
    assert len(step.teachers) == 1
    assert result.report.teacher_accuracy > 80


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
    assert report.teacher_accuracy > 80


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
        pytest.param({"kd_ratio": 1.5}, r"kd_ratio is 1.5; it must be in \[0, 1\]", id="kd_ratio"),
        pytest.param({"epochs": 0}, "epochs is 0; it must be at least 1", id="epochs of the loop"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)
