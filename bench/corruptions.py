"""Common corruptions of images: noise, blur, brightness, JPEG and small shifts, each the same for every model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functional

from core.data import Samples
from core.preprocessing import Preprocessing, Tensors

Corruption = Literal["noise", "blur", "brightness", "jpeg", "shift"]
Strengths = tuple[float, float, float, float, float]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
LARGE_SIDE = 85  # pixels of the shorter side; nearer, as a ratio, to ImageNet's 224 than to CIFAR's 32

SHIFTS: Strengths = (1 / 32, 2 / 32, 3 / 32, 4 / 32, 5 / 32)
STRENGTHS: dict[Corruption, tuple[Strengths, Strengths]] = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "brightness": ((0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "shift": (SHIFTS, SHIFTS),
}
"""Strength at severities 1 to 5, of small images and of large ones.

Those of CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261: make_cifar_c.py and
make_imagenet_c.py), which have no shift. Units: noise, standard deviation as a share of the pixel range; blur, sigma in
pixels; brightness, what is added to the value of HSV, as a share of its range; jpeg, quality; shift, share of the
shorter side.
"""


@dataclass(frozen=True, slots=True)
class CorruptedSamples:
    """Images that are corrupted as they are fetched, each by its own draw, whatever batch or model it is fetched for.

    Attributes:
        samples: The clean images.
        corruption: What is done to them.
        severity: 1 to 5.
        seed: Seeds the draws.
    """

    samples: Samples
    corruption: Corruption
    severity: int
    seed: int

    @property
    def num_workers(self) -> int:
        """As many as the clean images want."""
        return self.samples.num_workers

    def __len__(self) -> int:
        return len(self.samples)

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensors:
        """Return the images at `indices`, fitted to the model, then corrupted: (N, C, H, W) uint8."""
        (images,) = self.samples.fetch(indices, preprocessing)
        return (corrupt(images, self.corruption, self.severity, indices, self.seed),)


def corrupt(images: Tensor, corruption: Corruption, severity: int, indices: Sequence[int], seed: int = 0) -> Tensor:
    """Corrupt images, each by a draw that depends on its index, the corruption and the seed alone.

    The draw is the same at every severity, so that only the strength differs.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3.
        corruption: What to do to them.
        severity: 1 to 5; `STRENGTHS` says how strong.
        indices: Which samples of their data set they are, N.
        seed: Seeds the draws.

    Returns:
        (N, C, H, W) uint8.
    """
    is_large = min(images.shape[-2:]) >= LARGE_SIDE
    strength = STRENGTHS[corruption][is_large][severity - 1]
    randoms = [np.random.default_rng([seed, int.from_bytes(corruption.encode()), index]) for index in indices]
    match corruption:
        case "noise":
            return _noise(images, strength, randoms)
        case "blur":
            return _blur(images, strength)
        case "brightness":
            return _brightness(images, strength)
        case "jpeg":
            return _jpeg(images, int(strength))
        case "shift":
            return _shift(images, strength, randoms)


def _noise(images: Tensor, sigma: float, randoms: Sequence[np.random.Generator]) -> Tensor:
    drawn = np.stack([random.standard_normal(images.shape[1:], dtype=np.float32) for random in randoms])
    return _to_uint8(images + 255 * sigma * torch.from_numpy(drawn))


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Blur in one direction, then in the other: what both at once give, for far fewer products."""
    height, width = images.shape[-2:]
    rows, columns = (2 * min(math.ceil(3 * sigma), side - 1) + 1 for side in (height, width))  # reflected at the edges
    blurred = image_functional.gaussian_blur(images.to(torch.float32), [columns, 1], [sigma, sigma])
    return _to_uint8(image_functional.gaussian_blur(blurred, [1, rows], [sigma, sigma]))


def _brightness(images: Tensor, added: float) -> Tensor:
    """Add to the value of HSV, the highest channel; hue and saturation stay, and black turns grey."""
    value = images.amax(1, keepdim=True).to(torch.float32)
    brighter = (value + 255 * added).clamp(max=255)
    return _to_uint8(torch.where(value > 0, images * (brighter / value.clamp(min=1)), brighter))


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Save and read with Pillow, as CIFAR-10-C was made; torchvision's own JPEG is deprecated."""
    saved = (image_functional.jpeg(image_functional.to_pil_image(image), quality) for image in images)
    return torch.stack([image_functional.pil_to_tensor(image) for image in saved])


def _shift(images: Tensor, share: float, randoms: Sequence[np.random.Generator]) -> Tensor:
    """Shift towards one of the eight neighbours, by at least a pixel; what comes in is the reflection of the edge."""
    height, width = images.shape[-2:]
    side = min(height, width)
    distance = min(math.ceil(share * side), side - 1)
    padded = image_functional.pad(images, [distance] * 4, padding_mode="reflect")
    moves = (0, 1, 2, 3, 5, 6, 7, 8)  # of the nine corners to crop at, row by row, all but the middle one
    corners = [divmod(int(random.choice(moves)), 3) for random in randoms]
    return torch.stack(
        [
            image[:, row * distance : row * distance + height, column * distance : column * distance + width]
            for image, (row, column) in zip(padded, corners, strict=True)
        ]
    )


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
