"""What may be added to the loss for the weights themselves; biases and normalisation are spared, as by weight decay."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.train_config import TrainConfig


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained weight matrices and kernels of a module, by name."""
    return {name: one for name, one in module.named_parameters() if one.ndim > 1 and one.requires_grad}


def has_penalty(config: TrainConfig) -> bool:
    """Tell whether any penalty is asked for."""
    return bool(config.l1 or config.l2_sp or config.group_lasso)


def penalty(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], config: TrainConfig) -> Tensor:
    """Return l1 * sum |w| + l2_sp / 2 * sum (w - start)^2 + group_lasso * sum of the output channels' norms.

    Args:
        weights: From `weights_of`; where there is none, the penalty is 0.
        start: What they were when training began; read for l2_sp.
        config: The factors.
    """
    terms = []
    for name, weight in weights.items():
        if config.l1:
            terms.append(config.l1 * weight.abs().sum())
        if config.l2_sp:
            terms.append(config.l2_sp / 2 * (weight - start[name]).square().sum())
        if config.group_lasso:
            # the norm has no slope at an empty channel, which is what keeps it empty: 0 is taken there
            squares = weight.flatten(1).square().sum(1)
            norms = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
            terms.append(config.group_lasso * norms.sum())
    return sum(terms, torch.zeros(()))
