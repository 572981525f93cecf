"""What is doubtful about the samples that calibrate a file: too few, of another range, or with channels swapped."""

from collections.abc import Iterator

import numpy as np
import torch

from core.data import Split
from core.preprocessing import Preprocessing, normalise

FEW = 32  # samples on which a range may be far from what later ones have
LOOKED_AT = 64
FAR, FLAT = 2.0, 0.1  # of a mean and of a deviation that training had at 0 and 1
SWAPPED = 0.03  # in [0, 1]: by how much a channel's mean must be off to say anything of the channels' order


def doubts(calibration: Split, validation: Split, preprocessing: Preprocessing, max_drop: float) -> Iterator[str]:
    """Yield a sentence for each thing that is doubtful.

    Args:
        calibration: The samples that calibrate.
        validation: Those that the drop is measured on.
        preprocessing: Of the model.
        max_drop: Points that may be lost.
    """
    if len(calibration) < FEW:
        yield (f"{len(calibration)} samples calibrate; the ranges found on so few may be too narrow: give 100 or more")
    if 100 / len(validation) > max_drop > 0:
        yield (
            f"one of the {len(validation)} validation samples is {100 / len(validation):.2g} points: too few to tell a "
            f"drop of {max_drop:g}"
        )
    if preprocessing.kind == "image" and preprocessing.mean:
        yield from _of_images(calibration, preprocessing)


def _of_images(split: Split, preprocessing: Preprocessing) -> Iterator[str]:
    few = split.take(torch.arange(min(len(split), LOOKED_AT)))
    (images,) = few.samples.fetch(few.indices.tolist(), preprocessing)
    (inputs,) = normalise((images,), preprocessing.model_copy(update={"input": "float32"}))
    channels = inputs.transpose(0, 1).flatten(1)
    means, deviation = channels.mean(1), float(channels.std(1).mean())
    if float(means.abs().max()) > FAR or deviation < FLAT:
        told = ", ".join(f"{one:.2g}" for one in means.tolist())
        yield (
            f"the calibration images, normalised, have means of {told} and a deviation of {deviation:.2g}, and "
            "training's have about 0 and 1: is their range right?"
        )
        return
    expected = np.asarray(preprocessing.mean)
    found = means.numpy() * np.asarray(preprocessing.std or (1.0,)) + expected
    off, off_swapped = (float(np.abs(order - expected).max()) for order in (found, found[::-1]))
    if off > SWAPPED and off_swapped < off / 3:
        yield (
            "the calibration images' channels have the means that training's have the other way round: are they BGR "
            "where RGB is meant?"
        )
