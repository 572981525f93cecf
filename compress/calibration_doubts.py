"""What is doubtful about the samples that calibrate a file: too few, of another range, or with channels swapped."""

from collections.abc import Iterator

import numpy as np
import torch

from core.data import Split, spread
from core.preprocessing import Preprocessing, normalise

FEW = 32  # samples on which a range may be far from what later ones have
LOOKED_AT, AT_ONCE = 256, 32
FAR, FLAT = 2.0, 0.1  # of a mean and of a deviation that training had at 0 and 1
SWAPPED = 0.03  # in [0, 1]: how far a channel's mean, beside the others', must be off to tell of the channels' order


def doubts(calibration: Split, num_scored: int, preprocessing: Preprocessing, max_drop: float) -> Iterator[str]:
    """Yield a sentence for each thing that is doubtful.

    Args:
        calibration: The samples that calibrate.
        num_scored: Samples that the drop is measured on.
        preprocessing: Of the model.
        max_drop: Points that may be lost.
    """
    if len(calibration) < FEW:
        yield (f"{len(calibration)} samples calibrate; the ranges found on so few may be too narrow: give 100 or more")
    if 100 / num_scored > max_drop > 0:
        yield (
            f"one of the {num_scored} validation samples that are scored is {100 / num_scored:.2g} points: too few to "
            f"tell a drop of {max_drop:g}"
        )
    if preprocessing.kind == "image" and preprocessing.mean:
        yield from _of_images(calibration, preprocessing)


def _of_images(split: Split, preprocessing: Preprocessing) -> Iterator[str]:
    means, deviation = _channel_means(split.take(spread(len(split), LOOKED_AT)), preprocessing)
    if float(means.abs().max()) > FAR or deviation < FLAT:
        told = ", ".join(f"{one:.2g}" for one in means.tolist())
        yield (
            f"the calibration images, normalised, have means of {told} and a deviation of {deviation:.2g}, and "
            "training's have about 0 and 1: is their range right?"
        )
        return
    expected = np.asarray(preprocessing.mean)
    found = means.numpy() * np.asarray(preprocessing.std or (1.0,)) + expected
    found, expected = found - found.mean(), expected - expected.mean()  # how bright they are tells nothing of the order
    off, off_swapped = (float(np.abs(order - expected).max()) for order in (found, found[::-1]))
    if off > SWAPPED and off_swapped < off / 2:
        yield (
            "the calibration images' channels have the means that training's have the other way round: are they BGR "
            "where RGB is meant?"
        )


def _channel_means(split: Split, preprocessing: Preprocessing) -> tuple[torch.Tensor, float]:
    """Return the mean (C,) of each channel of normalised images, and their deviation, the mean over channels."""
    moments = torch.zeros(2, len(preprocessing.mean), dtype=torch.float64)
    for positions in torch.split(torch.arange(len(split)), AT_ONCE):
        few = split.take(positions)
        (images,) = few.samples.fetch(few.indices.tolist(), preprocessing)
        (inputs,) = normalise((images,), preprocessing.model_copy(update={"input": "float32"}))
        channels = inputs.double().transpose(0, 1).flatten(1)
        moments += len(positions) / len(split) * torch.stack([channels.mean(1), channels.square().mean(1)])
    means, squares = moments
    return means, float((squares - means.square()).clamp(min=0).sqrt().mean())
