"""RandAugment (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719) for a batch: each image draws its own operations.

An operation is applied at once to all images that drew it. Operations and ranges are torchvision's; its own transform
draws once for a whole batch, and timm's works on one Pillow image at a time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

NUM_OPERATIONS = 2  # N of the paper, applied one after the other
NUM_DRAWS = 2 * NUM_OPERATIONS
MAX_MAGNITUDE = 30.0
MAX_SHIFT = 150 / 331  # of a side

Operation = Callable[[Tensor, float], Tensor]
"""uint8 images (N, C, H, W) and a strength in [-1, 1] -> images alike."""


def rand_augment(images: Tensor, drawn: Tensor, magnitude: float) -> Tensor:
    """Apply two random operations to each image.

    Args:
        images: uint8 (N, C, H, W).
        drawn: Random numbers (N, NUM_DRAWS) in [0, 1): operation and direction, twice.
        magnitude: M of the paper, in (0, 30].

    Returns:
        uint8 (N, C, H, W).
    """
    for step in range(NUM_OPERATIONS):
        chosen = (drawn[:, 2 * step] * len(OPERATIONS)).long()
        forward = drawn[:, 2 * step + 1] < 0.5
        changed = torch.empty_like(images)
        for index, operation in enumerate(OPERATIONS):
            for direction in (1, -1):
                which = (chosen == index) & (forward == (direction == 1))
                if which.any():
                    changed[which] = operation(images[which], direction * magnitude / MAX_MAGNITUDE)
        images = changed
    return images


def _affine(
    images: Tensor, *, angle: float = 0.0, right: float = 0.0, down: float = 0.0, slope: tuple[float, float] = (0, 0)
) -> Tensor:
    """Rotate by degrees, shift by pixels, shear by slopes; what lies outside is black."""
    shear = [math.degrees(math.atan(one)) for one in slope]
    moved: Tensor = functional.affine(images, angle, [round(right), round(down)], 1.0, shear)
    return moved


def _saturate(images: Tensor, strength: float) -> Tensor:
    saturated: Tensor = functional.adjust_saturation(images, 1 + 0.9 * strength) if images.shape[1] == 3 else images
    return saturated


OPERATIONS: tuple[Operation, ...] = (
    lambda images, _: images,
    lambda images, strength: _affine(images, slope=(0.3 * strength, 0)),
    lambda images, strength: _affine(images, slope=(0, 0.3 * strength)),
    lambda images, strength: _affine(images, right=strength * MAX_SHIFT * images.shape[-1]),
    lambda images, strength: _affine(images, down=strength * MAX_SHIFT * images.shape[-2]),
    lambda images, strength: _affine(images, angle=30 * strength),
    lambda images, strength: functional.adjust_brightness(images, 1 + 0.9 * strength),
    lambda images, strength: functional.adjust_contrast(images, 1 + 0.9 * strength),
    lambda images, strength: functional.adjust_sharpness(images, 1 + 0.9 * strength),
    _saturate,
    lambda images, strength: functional.posterize(images, 8 - round(4 * abs(strength))),
    lambda images, strength: functional.solarize(images, 255 * (1 - abs(strength))),
    lambda images, _: functional.autocontrast(images),
    lambda images, _: functional.equalize(images),
)
