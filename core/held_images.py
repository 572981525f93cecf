"""A folder's images that fit into memory: decoded once, and held as one tensor."""

import logging
import math

import torch

from core.batches import loader, raised
from core.data import ArraySamples, Split, whole_split
from core.image_folder import ImageFiles
from core.preprocessing import Preprocessing

HELD_BYTES = 2**30
BATCH = 256

logger = logging.getLogger(__name__)


def held(split: Split, preprocessing: Preprocessing) -> Split:
    """Return a split of a folder as one that holds its images, fitted to a model, if they take at most `HELD_BYTES`.

    Any other stays as it is; so does one whose unreadable images may be skipped.

    Args:
        split: What is to be read many times.
        preprocessing: Of the model.

    Raises:
        UnreadableSampleError: An image cannot be read.
    """
    if not isinstance(split.samples, ImageFiles) or split.skipped is not None or preprocessing.image_size is None:
        return split
    shape = (len(split), preprocessing.channels or 1, *preprocessing.image_size)
    if math.prod(shape) > HELD_BYTES:
        return split
    logger.info("decodes %d images once: they fit into memory", len(split))
    images = torch.empty(shape, dtype=torch.uint8)
    for batch in raised(loader(split, preprocessing, BATCH), split):
        images[batch.positions] = batch.samples[0]
    return whole_split(ArraySamples(images), split.labels())
