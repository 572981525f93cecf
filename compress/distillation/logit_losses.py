"""What a student's logits may be taught by a teacher's: one function a method, all (N, K), (N, K) -> a scalar.

Each is 0 where both say the same, and averages over the batch. The factor T^2 keeps the size of the gradient when the
temperature changes (Hinton et al. 2015, section 2).
"""

import torch
from torch import Tensor
from torch.nn import functional

DIST_INTER_WEIGHT, DIST_INTRA_WEIGHT = 2.0, 2.0  # beta and gamma of Huang et al.
STANDARD_DEVIATION_FLOOR = 1e-7
# A head that starts at zero says the same of all classes: dividing by how its logits differ makes gradients of 1e7.
LEAST_DEVIATION = 1e-2  # of a sample's logits, below which they are not standardized
LEAST_NORM = 1e-2  # of probabilities around their mean, times the number of classes, that a correlation divides by


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of softened distributions (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
        temperature: T.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def ls_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `kd_loss` of standardized logits (Sun et al. 2024, https://arxiv.org/abs/2403.01427, algorithm 1).

    Each sample's logits are shifted to mean 0 and scaled to standard deviation 1 first, so that the student learns how
    they relate and not how large they are; but not those of a sample whose logits hardly differ.

    Args:
        student: Logits (N, K), K at least 2.
        teacher: Logits (N, K).
        temperature: T.
    """
    return kd_loss(_standardized(student), _standardized(teacher), temperature)


def dkd_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, beta: float) -> Tensor:
    """Return the decoupled loss of Zhao et al. 2022 (https://arxiv.org/abs/2203.08679, equation 7), with alpha 1.

    Two divergences that `kd_loss` couples by the teacher's confidence are weighted apart: of the target against all
    other classes, and among the other classes.

    Args:
        student: Logits (N, K), K at least 2.
        teacher: Logits (N, K).
        targets: Classes (N,).
        temperature: T.
        beta: Weight of the divergence among the other classes.
    """
    is_target = functional.one_hot(targets, student.shape[1]).bool()
    target_divergence = _divergence(*(_target_or_not(one / temperature, is_target) for one in (student, teacher)))
    others_divergence = _divergence(*(_among_others(one / temperature, is_target) for one in (student, teacher)))
    return temperature**2 * (target_divergence + beta * others_divergence)


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the loss of Huang et al. 2022 (https://arxiv.org/abs/2205.10536, equation 10), with its weights.

    One minus Pearson's correlation of softened probabilities: among a sample's classes, and among a class's samples.

    Args:
        student: Logits (N, K); one sample has no relation to others, and that part is then 1.
        teacher: Logits (N, K).
        temperature: T.
    """
    first, second = (functional.softmax(one / temperature, dim=1) for one in (student, teacher))
    least_norm = LEAST_NORM / student.shape[1]
    inter = 1 - _correlation(first, second, least_norm).mean()
    intra = 1 - _correlation(first.T, second.T, least_norm).mean()
    return temperature**2 * (DIST_INTER_WEIGHT * inter + DIST_INTRA_WEIGHT * intra)


def _standardized(logits: Tensor) -> Tensor:
    deviation = logits.std(dim=1, keepdim=True)
    scale = torch.where(deviation > LEAST_DEVIATION, deviation + STANDARD_DEVIATION_FLOOR, 1.0)
    return (logits - logits.mean(dim=1, keepdim=True)) / scale


def _target_or_not(logits: Tensor, is_target: Tensor) -> Tensor:
    """Return log-probabilities (N, 2): of the target, and of all other classes together."""
    log_probabilities = functional.log_softmax(logits, dim=1)
    target = log_probabilities[is_target]
    others = log_probabilities.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return torch.stack((target, others), dim=1)


def _among_others(logits: Tensor, is_target: Tensor) -> Tensor:
    """Return log-probabilities (N, K - 1) of the other classes among themselves."""
    others = logits[~is_target].view(len(logits), -1)
    return functional.log_softmax(others, dim=1)


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _correlation(first: Tensor, second: Tensor, least_norm: float) -> Tensor:
    """Return Pearson's correlation of each row with its fellow, nearer 0 where norms are less: 2 of (R, C) -> (R,)."""
    first, second = (one - one.mean(dim=1, keepdim=True) for one in (first, second))
    return functional.cosine_similarity(first, second, dim=1, eps=least_norm)
