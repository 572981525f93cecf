"""What is doubtful about the samples that calibrate a file: too few, of another range, or with channels swapped."""

from collections.abc import Iterator

import numpy as np

from core.channel_statistics import channel_statistics
from core.data import Split
from core.preprocessing import Preprocessing

FEW = 32  # samples on which a range may be far from what later ones have
LOOKED_AT = 256
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
    means, deviations = channel_statistics(split, preprocessing, LOOKED_AT)
    deviation = float(deviations.mean())
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
