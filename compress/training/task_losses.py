"""The loss of a student's logits against the labels."""

from torch import Tensor
from torch.nn import functional

from compress.training.config import TaskLoss, TrainConfig
from compress.training.step import BatchLoss, TrainBatch
from core.outputs import logits_in


def labels_loss(config: TrainConfig) -> BatchLoss:
    """Return the function that gives the loss of a batch against its labels, as the config asks for it."""

    def loss(outputs: object, batch: TrainBatch) -> Tensor:
        return task_loss(logits_in(outputs), batch.targets, config.loss, config.label_smoothing)

    return loss


def task_loss(logits: Tensor, targets: Tensor, loss: TaskLoss, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of a batch.

    Args:
        logits: (N, K).
        targets: Classes int64 (N,), or their shares (N, K) where samples were mixed.
        loss: Which.
        label_smoothing: Share of the target spread over all classes.
    """
    if loss == "cross-entropy":
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    num_classes = logits.shape[1]
    shares = functional.one_hot(targets, num_classes).to(logits.dtype) if targets.ndim == 1 else targets
    shares = shares * (1 - label_smoothing) + label_smoothing / num_classes
    if loss == "mse":
        return functional.mse_loss(logits, shares)
    return functional.binary_cross_entropy_with_logits(logits, shares)
