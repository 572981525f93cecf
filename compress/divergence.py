"""How far answers have moved: what pruning and quantization weigh their choices by."""

from torch import Tensor
from torch.nn import functional


def kl_divergence(before: Tensor, now: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of answers from those before, in nats.

    Args:
        before: Log probabilities, (N, num_classes).
        now: Likewise.
    """
    return max(float(functional.kl_div(now, before, reduction="batchmean", log_target=True)), 0.0)
