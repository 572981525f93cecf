"""A split's inputs in one tensor, to look at what a data reference brought."""

import torch

from core.batches import batches
from core.data import Data
from core.preprocessing import Preprocessing


def pixels_of(data: Data, split: str) -> torch.Tensor:
    """Return the images of a split, float32 (N, C, H, W), not normalized."""
    assert data.sample_shape is not None
    settings = Preprocessing(image_size=data.sample_shape[1:], channels=data.sample_shape[0])
    return torch.cat([inputs for (inputs,), _ in batches(data.split(split), settings, 64)])
