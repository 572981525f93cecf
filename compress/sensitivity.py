"""How much a model's answers change when channels or blocks are missing, with batch norm fitted to what is left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.data import Split, batches
from core.preprocessing import Preprocessing

BATCH_SIZE = 64


@contextmanager
def answers_of(module: nn.Module, split: Split, preprocessing: Preprocessing, num_samples: int) -> Iterator["Answers"]:
    """Hold a module's answers on some samples, to tell later ones from.

    Args:
        module: In evaluation mode again when the block ends.
        split: Where the samples come from, spread evenly; labels are not read.
        preprocessing: How they become inputs.
        num_samples: How many.
    """
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()  # the statistics are those of the batch: what re-estimating them would come to
        norm.momentum = 0.0
    try:
        yield Answers(module, [inputs for inputs, _ in batches(split, preprocessing, BATCH_SIZE, limit=num_samples)])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()


class Answers:
    """A module's log-probabilities on some batches, as they were when this was made."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._module, self._inputs = module, inputs
        self._before = self._log_probabilities()

    def divergence(self) -> float:
        """Return the mean Kullback-Leibler divergence of the module's answers now from those then, in nats."""
        total = sum(
            float(functional.kl_div(now, before, reduction="sum", log_target=True))
            for now, before in zip(self._log_probabilities(), self._before, strict=True)
        )
        return max(total, 0.0) / sum(len(one) for one in self._inputs)

    def _log_probabilities(self) -> list[Tensor]:
        with torch.no_grad():
            return [functional.log_softmax(self._module(one), dim=1) for one in self._inputs]
