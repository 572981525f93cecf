"""Augmentation of whole batches of images, each image by its own random numbers: (N, C, H, W) -> (N, C, H, W).

A sample's numbers follow from its place in the split and the epoch's seed alone, not from the batch it lands in: the
same augmentation can be had again, which is what lets a teacher's answers be kept.
"""

import hashlib

import torch
from torch import Tensor
from torch.nn import functional

from compress.training.rand_augment import NUM_DRAWS as RAND_AUGMENT_DRAWS
from compress.training.rand_augment import rand_augment

ROW, COLUMN, MIRROR, SHEAR, ZOOM, AREA, ASPECT = range(7)
NUM_DRAWS = 7 + RAND_AUGMENT_DRAWS
MOST_ASPECT = 4 / 3


def draw(num_samples: int, seed: int, variant: int) -> Tensor:
    """Draw the random numbers of one augmentation of every sample: float32 (num_samples, NUM_DRAWS) in [0, 1).

    Args:
        num_samples: How many samples the split holds.
        seed: The run's.
        variant: Which of a sample's augmentations, from 0.
    """
    mixed = hashlib.sha256(f"{seed} {variant}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))  # torch reads 32 bits of a seed
    return torch.rand(num_samples, NUM_DRAWS, generator=generator)


def augment(
    images: Tensor,
    drawn: Tensor,
    *,
    resized_crop: float = 1.0,
    crop_padding: int = 0,
    flip: bool = False,
    shear: float = 0.0,
    zoom: float = 0.0,
    rand_augment_magnitude: float = 0.0,
) -> Tensor:
    """Change images at random.

    Args:
        images: uint8 (N, C, H, W).
        drawn: Their random numbers (N, NUM_DRAWS), from `draw`, on the same device.
        resized_crop: Least share of the area that a crop keeps, which is scaled back to (H, W); 1 for none.
        crop_padding: Pixels of zero padding a side, before a random crop back to (H, W); 0 shifts nothing.
        flip: Mirror half of the images left to right.
        shear: Largest horizontal shear either way, in degrees.
        zoom: Largest change of size either way, as a share of it.
        rand_augment_magnitude: Of `compress.training.rand_augment`, in (0, 30]; 0 for none.

    Returns:
        uint8 (N, C, H, W), on the images' device.
    """
    if resized_crop < 1:
        images = _crop_and_resize(images, drawn, resized_crop)
    if crop_padding or flip:
        images = _crop_and_mirror(images, drawn, crop_padding, flip)
    if shear or zoom:
        images = _shear_and_zoom(images, drawn, shear, zoom)
    if rand_augment_magnitude:
        images = rand_augment(images, drawn[:, -RAND_AUGMENT_DRAWS:], rand_augment_magnitude)
    return images


def _crop_and_mirror(images: Tensor, drawn: Tensor, padding: int, flip: bool) -> Tensor:
    num, _, height, width = images.shape
    device = images.device
    shifts = 2 * padding + 1
    rows = (drawn[:, ROW, None] * shifts).long() + torch.arange(height, device=device)
    columns = (drawn[:, COLUMN, None] * shifts).long() + torch.arange(width, device=device)
    if flip:
        columns = torch.where(drawn[:, MIRROR, None] < 0.5, columns.flip(1), columns)
    padded = functional.pad(images, (padding,) * 4)
    batch = torch.arange(num, device=device)[:, None, None]
    gathered = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2)


def _crop_and_resize(images: Tensor, drawn: Tensor, least_area: float) -> Tensor:
    """Take a part of random area, aspect ratio and place, and scale it to the whole."""
    area = least_area + (1 - least_area) * drawn[:, AREA]
    aspect = MOST_ASPECT ** (2 * drawn[:, ASPECT] - 1)
    width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    maps = torch.zeros(len(images), 2, 3, device=images.device)
    maps[:, 0, 0], maps[:, 1, 1] = width, height
    maps[:, 0, 2] = (2 * drawn[:, COLUMN] - 1) * (1 - width)
    maps[:, 1, 2] = (2 * drawn[:, ROW] - 1) * (1 - height)
    return _resampled(images, maps)


def _shear_and_zoom(images: Tensor, drawn: Tensor, shear: float, zoom: float) -> Tensor:
    """Resample bilinearly about the middle; what lies outside is black."""
    num, _, height, width = images.shape
    slope = torch.tan(torch.deg2rad((2 * drawn[:, SHEAR] - 1) * shear))
    size = 1 + (2 * drawn[:, ZOOM] - 1) * zoom
    maps = torch.zeros(num, 2, 3, device=images.device)
    maps[:, 0, 0] = maps[:, 1, 1] = 1 / size
    maps[:, 0, 1] = slope * (height / width) / size
    return _resampled(images, maps)


def _resampled(images: Tensor, maps: Tensor) -> Tensor:
    """Read each output pixel bilinearly from where its map (N, 2, 3), in units of half an image, says."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(images.dtype)
