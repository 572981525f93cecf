"""Every loss against an independent reference: its paper's definition in NumPy, a sample at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, pearsonr, zscore
from torch import Tensor
from torch.nn import functional

from compress.distillation.logit_losses import dist_loss, dkd_loss, kd_loss, ls_loss

TEMPERATURES = [1.0, 4.0, 20.0]
TARGETS = torch.arange(16) % 10


def random_logits(seed: int) -> Tensor:
    return 3 * torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton et al. 2015: T^2 * mean_n KL(p || q)."""
    pairs = zip(softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1), strict=True)
    return float(temperature**2 * np.mean([entropy(taught, learnt) for taught, learnt in pairs]))


def reference_ls(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Sun et al. 2024, algorithm 1, with the sample standard deviation, as their code has it."""
    return reference_kd(zscore(student, axis=1, ddof=1), zscore(teacher, axis=1, ddof=1), temperature)


def reference_dkd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Zhao et al. 2022, equation 7: alpha * TCKD + beta * NCKD, alpha 1 and beta 8."""
    total = 0.0
    for learnt_logits, taught_logits, target in zip(student, teacher, TARGETS.tolist(), strict=True):
        learnt, taught = softmax(learnt_logits / temperature), softmax(taught_logits / temperature)
        tckd = entropy([taught[target], 1 - taught[target]], [learnt[target], 1 - learnt[target]])
        others = np.arange(10) != target
        nckd = entropy(taught[others] / taught[others].sum(), learnt[others] / learnt[others].sum())
        total += tckd + 8 * nckd
    return float(temperature**2 * total / len(student))


def reference_dist(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Huang et al. 2022, equations 8 to 10: beta 2 times inter-class, gamma 2 times intra-class."""
    learnt, taught = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    inter = np.mean([1 - pearsonr(one, other).statistic for one, other in zip(learnt, taught, strict=True)])
    intra = np.mean([1 - pearsonr(one, other).statistic for one, other in zip(learnt.T, taught.T, strict=True)])
    return float(temperature**2 * (2 * inter + 2 * intra))


Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, tuple[Loss, Callable[[np.ndarray, np.ndarray, float], float]]] = {
    "kd": (kd_loss, reference_kd),
    "ls": (ls_loss, reference_ls),
    "dkd": (lambda student, teacher, temperature: dkd_loss(student, teacher, TARGETS, temperature, 8.0), reference_dkd),
    "dist": (dist_loss, reference_dist),
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_definition(name: str, temperature: float) -> None:
    loss, reference = LOSSES[name]
    student, teacher = random_logits(1), random_logits(2)
    expected = reference(student.numpy(), teacher.numpy(), temperature)
    assert float(loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_zero_when_student_equals_teacher(name: str, temperature: float) -> None:
    student = random_logits(1).requires_grad_()
    loss = LOSSES[name][0](student, random_logits(1), temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-11
    assert float(student.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_ignores_a_constant_added_to_the_logits(name: str) -> None:
    loss, (student, teacher) = LOSSES[name][0], (random_logits(1), random_logits(2))
    assert torch.allclose(loss(student, teacher, 4.0), loss(student + 7, teacher - 3, 4.0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_that_of_finite_differences(name: str) -> None:
    teacher = random_logits(2)
    assert torch.autograd.gradcheck(
        lambda student: LOSSES[name][0](student, teacher, 4.0), random_logits(1).requires_grad_()
    )


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_losses_and_gradients(name: str) -> None:
    student = (100 * random_logits(1)).float().requires_grad_()
    loss = LOSSES[name][0](student, (100 * random_logits(2)).float(), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_says_the_same_of_all_classes_starts_to_learn(name: str, temperature: float) -> None:
    fresh, usual = torch.zeros(16, 10, dtype=torch.float64).requires_grad_(), random_logits(1).requires_grad_()
    for student in (fresh, usual):
        LOSSES[name][0](student, random_logits(2), temperature).backward()
    assert 0 < float(fresh.grad.norm()) < 1000 * float(usual.grad.norm())


def test_only_standardized_logits_ignore_their_scale() -> None:
    student, teacher = random_logits(1), random_logits(2)
    assert torch.allclose(ls_loss(5 * student, teacher, 4.0), ls_loss(student, teacher, 4.0))
    assert not torch.allclose(kd_loss(5 * student, teacher, 4.0), kd_loss(student, teacher, 4.0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_gradient_equals_the_closed_form(temperature: float) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2)
    kd_loss(student, teacher, temperature).backward()
    softened = functional.softmax(student.detach() / temperature, 1) - functional.softmax(teacher / temperature, 1)
    assert torch.allclose(student.grad, temperature * softened / len(student), rtol=1e-10, atol=1e-14)
