"""What may be added to the loss for the weights themselves: to keep them small, near their start, or empty.

Biases are spared, as by weight decay; the scales of normalisation are read by `bn_l1` alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.training.config import TrainConfig


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained weight matrices and kernels of a module, by name."""
    return {name: one for name, one in module.named_parameters() if one.ndim > 1 and one.requires_grad}


def scales_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained scales of a module's batch norms."""
    norms = (one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    return [one.weight for one in norms if one.weight is not None and one.weight.requires_grad]


def has_penalty(config: TrainConfig) -> bool:
    """Tell whether any penalty is asked for."""
    return bool(config.l1 or config.l2_sp or config.group_lasso or config.bn_l1)


def penalty(module: nn.Module, start: Mapping[str, Tensor], config: TrainConfig, share: float = 1.0) -> Tensor:
    """Return l1 * sum |w| + l2_sp / 2 * sum (w - start)^2 + group_lasso * sum of norms + bn_l1 * sum |scale|.

    Norms are those of each output channel's weights. Where there is nothing to add up, the penalty is 0.

    Args:
        module: What is trained.
        start: What its weights were when training began; read for l2_sp.
        config: The factors.
        share: How much of the run has passed, in [0, 1]: growing penalties are so much of what they end at.
    """
    terms = [config.bn_l1 * scale.abs().sum() for scale in scales_of(module)] if config.bn_l1 else []
    for name, weight in weights_of(module).items():
        if config.l1:
            terms.append(config.l1 * weight.abs().sum())
        if config.l2_sp:
            terms.append(config.l2_sp / 2 * (weight - start[name]).square().sum())
        if config.group_lasso:
            # The norm has no derivative at an empty channel; 0 is used, which keeps it empty.
            squares = weight.flatten(1).square().sum(1)
            norms = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
            terms.append(config.group_lasso * norms.sum())
    return (share if config.growing_penalties else 1.0) * sum(terms, torch.zeros(()))
