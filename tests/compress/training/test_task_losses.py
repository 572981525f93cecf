"""The losses on labels against sums written out."""

import math

import pytest
import torch

from compress.training.task_losses import task_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
TARGETS = torch.tensor([0, 2])


def shares(smoothing: float) -> list[list[float]]:
    return [[(1 - smoothing) * (target == k) + smoothing / 3 for k in range(3)] for target in TARGETS.tolist()]


def by_hand(loss: str, smoothing: float) -> float:
    total = 0.0
    for row, wanted in zip(LOGITS.tolist(), shares(smoothing), strict=True):
        if loss == "cross-entropy":
            log_sum = math.log(sum(math.exp(value) for value in row))
            total -= sum(want * (value - log_sum) for value, want in zip(row, wanted, strict=True))
        elif loss == "mse":
            total += sum((value - want) ** 2 for value, want in zip(row, wanted, strict=True)) / 3
        else:
            odds = [1 / (1 + math.exp(-value)) for value in row]
            terms = [
                -want * math.log(odd) - (1 - want) * math.log(1 - odd) for odd, want in zip(odds, wanted, strict=True)
            ]
            total += sum(terms) / 3
    return total / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_each_loss_is_its_sum(loss, smoothing: float) -> None:
    assert float(task_loss(LOGITS, TARGETS, loss, smoothing)) == pytest.approx(by_hand(loss, smoothing), rel=1e-6)


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_shares_of_classes_are_taken_like_classes(loss) -> None:
    one_hot = torch.nn.functional.one_hot(TARGETS, 3).float()
    assert torch.allclose(task_loss(LOGITS, one_hot, loss, 0.1), task_loss(LOGITS, TARGETS, loss, 0.1))
