"""Batch-norm statistics measured afresh: what pruning upsets most and training is not needed to mend."""

import torch
from torch import nn

from core.data import Split, batches
from core.preprocessing import Preprocessing


def re_estimate_batch_norm(module: nn.Module, split: Split, preprocessing: Preprocessing, num_samples: int) -> None:
    """Set every batch norm's mean and variance to those of `num_samples` samples, in place.

    Args:
        module: Left in evaluation mode; a module without batch norm is left as it is.
        split: Where the samples come from, spread evenly.
        preprocessing: How they become inputs.
        num_samples: How many.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average over all batches
        norm.train()
    with torch.no_grad():
        for inputs, _ in batches(split, preprocessing, 64, limit=num_samples):
            module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
