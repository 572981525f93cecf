"""Augmentation of whole batches of images, each image drawn on its own: (N, C, H, W) -> (N, C, H, W)."""

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, *, crop_padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift and mirror images at random.

    Args:
        images: (N, C, H, W), any dtype.
        crop_padding: Pixels of zero padding a side, before a random crop back to (H, W); 0 shifts nothing.
        flip: Mirror half of the images left to right.
        generator: Draws the shifts and flips; a CPU generator.

    Returns:
        (N, C, H, W), same dtype and device.
    """
    if not crop_padding and not flip:
        return images
    num, _, height, width = images.shape
    offsets = torch.randint(0, 2 * crop_padding + 1, (2, num, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand(num, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (crop_padding,) * 4)
    batch = torch.arange(num)[:, None, None]
    shuffled = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return shuffled.permute(0, 3, 1, 2)
