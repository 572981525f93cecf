"""Batch-norm statistics measured afresh: what pruning upsets most and training is not needed to mend."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.batches import batches
from core.data import Split
from core.errors import ToolError
from core.preprocessing import Preprocessing, Tensors

BATCH_SIZE = 64


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


def batches_with_statistics(split: Split, preprocessing: Preprocessing, num_samples: int) -> Iterator[Tensors]:
    """Yield inputs in batches that batch norm can take statistics of: one sample alone has none, and is left out.

    Args:
        split: Where the samples come from, spread evenly.
        preprocessing: How they become inputs.
        num_samples: How many.

    Raises:
        ToolError: There are not two samples.
    """
    num_found = 0
    for inputs, targets in batches(split, preprocessing, BATCH_SIZE, limit=num_samples):
        if len(targets) > 1:
            num_found += len(targets)
            yield inputs
    if not num_found:
        raise ToolError(f"batch norm is fitted on 2 samples at least, and the split has {len(split)}; give more data")


def re_estimate_batch_norm(module: nn.Module, split: Split, preprocessing: Preprocessing, num_samples: int) -> None:
    """Set every batch norm's mean and variance to those of `num_samples` samples, in place.

    Args:
        module: Left in evaluation mode; a module without batch norm is left as it is.
        split: Where the samples come from, spread evenly.
        preprocessing: How they become inputs.
        num_samples: How many.

    Raises:
        ToolError: There is batch norm, and there are not two samples.
    """
    with statistics_of_batches(module, momentum=None) as norms, torch.no_grad():
        if not norms:
            return
        with ExitStack() as hooks:
            for norm in norms:
                norm.reset_running_stats()
                hooks.enter_context(norm.register_forward_pre_hook(_averaging()))
            for inputs in batches_with_statistics(split, preprocessing, num_samples):
                module(*inputs)


def _averaging() -> Callable[[Any, tuple[Tensor, ...]], None]:
    """Return the hook that weighs each batch by its size; batch norm itself gives a short last one as much weight."""
    num_seen = 0

    def weigh(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal num_seen
        num_values = inputs[0].numel() // inputs[0].shape[1]  # of a channel
        num_seen += num_values
        norm.momentum = num_values / num_seen

    return weigh
