"""Batch-norm statistics measured afresh: what pruning upsets most and training is not needed to mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from core.data import Split, batches
from core.preprocessing import Preprocessing


@contextmanager
def statistics_of_batches(module: nn.Module, momentum: float | None) -> Iterator[list[nn.modules.batchnorm._BatchNorm]]:
    """Let batch norm alone use and take in the statistics of each batch; all is in evaluation mode again afterwards.

    Args:
        module: Whose batch norm.
        momentum: Share of a batch in the running statistics: 0 leaves them, None averages all batches.

    Yields:
        The batch norms.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.momentum = momentum
        norm.train()
    try:
        yield norms
    finally:
        for norm, before in zip(norms, momenta, strict=True):
            norm.momentum = before
        module.eval()


def re_estimate_batch_norm(module: nn.Module, split: Split, preprocessing: Preprocessing, num_samples: int) -> None:
    """Set every batch norm's mean and variance to those of `num_samples` samples, in place.

    Args:
        module: Left in evaluation mode; a module without batch norm is left as it is.
        split: Where the samples come from, spread evenly.
        preprocessing: How they become inputs.
        num_samples: How many.
    """
    with statistics_of_batches(module, momentum=None) as norms, torch.no_grad():
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
        for inputs, _ in batches(split, preprocessing, 64, limit=num_samples):
            module(*inputs)
