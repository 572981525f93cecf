"""The mean and the standard deviation of each channel over a split's samples."""

import torch
from torch import Tensor

from core.batches import batches
from core.data import Split
from core.preprocessing import Preprocessing

AT_ONCE = 64


def channel_statistics(split: Split, preprocessing: Preprocessing, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, float64 (C,) both, of what a model is given.

    Args:
        split: Samples of one input, (N, C, ...).
        preprocessing: Made as it says; as float32 (N, C, ...), whatever the model takes.
        num_samples: How many samples are looked at, at most, spread over the split.

    Raises:
        ToolError: A sample cannot be read.
    """
    total = square = torch.zeros(1, dtype=torch.float64)
    count = 0
    for (inputs,), _ in batches(
        split, preprocessing.model_copy(update={"input": "float32"}), AT_ONCE, limit=num_samples
    ):
        channels = inputs.double().transpose(0, 1).flatten(1)
        total = total + channels.sum(1)
        square = square + channels.square().sum(1)
        count += channels.shape[1]
    mean = total / count
    return mean, (square / count - mean.square()).clamp(min=0).sqrt()
