"""How much a model's answers change when channels or blocks are missing, with batch norm fitted to what is left."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.divergence import kl_divergence
from compress.pruning.batch_norm import batches_with_statistics, statistics_of_batches
from core.data import Split
from core.outputs import logits_in
from core.preprocessing import Preprocessing, Tensors
from core.progress import Progress

Change = Callable[[], AbstractContextManager[object]]
"""Makes a context in which something of the module is missing."""


def damage_of(
    changes: Sequence[Change],
    module: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    num_samples: int,
    progress: Progress,
) -> list[float]:
    """Return, for each change, how far the answers move: the mean Kullback-Leibler divergence from the whole, in nats.

    Args:
        changes: What to try, one at a time.
        module: In evaluation mode afterwards.
        split: Samples to ask about, spread evenly; labels are not read.
        preprocessing: How they become inputs.
        num_samples: How many.
        progress: Told of every look.
    """
    samples = list(batches_with_statistics(split, preprocessing, num_samples))
    found = []
    # The statistics of the batches stand in for re-estimated running statistics.
    with statistics_of_batches(module, momentum=0.0), torch.no_grad():
        whole = _log_probabilities(module, samples)
        for index, change in enumerate(changes):
            with change():
                found.append(kl_divergence(whole, _log_probabilities(module, samples)))
            progress("sensitivity", index + 1, len(changes), "looks")
    return found


def _log_probabilities(module: nn.Module, samples: Sequence[Tensors]) -> Tensor:
    return torch.cat([functional.log_softmax(logits_in(module(*one)), dim=1) for one in samples])
