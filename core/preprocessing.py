"""How a raw sample becomes a model's inputs; travels with the model, in its checkpoint and in its ONNX file."""

import math
from functools import cache
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_functional

from core.errors import ToolError
from core.tokenizing import Tokenization

Tensors = tuple[Tensor, ...]
"""One tensor for each input of a model, all of N samples."""

Kind = Literal["image", "text", "values"]
"""What a sample is: a uint8 image, a text, or float values that are an input already."""

InputForm = Literal["float32", "uint8"]


class Preprocessing(BaseModel, frozen=True):
    """Raw samples, images (N, C, H, W) uint8, texts, or (N, ...) float, to a model's inputs.

    Attributes:
        image_size: Height and width that images are resized and centre-cropped to; None for other samples.
        channels: Number of image channels the model takes; None for samples that are not images.
        crop_ratio: Share of the shorter side, after resizing, that the crop keeps.
        interpolation: Resampling filter, as torchvision names it.
        scale: Factor applied first; 1/255 maps uint8 images to [0, 1].
        mean: Per-channel mean, subtracted after scaling; empty for none.
        std: Per-channel standard deviation, divided by last; empty for none.
        input: What the model is given: ``float32`` (N, C, ...), scaled and standardised before; or ``uint8`` images
            (N, H, W, C), fitted, which an ONNX file scales and standardises itself.
        text: How texts become numbers of tokens; None for samples that are no texts.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    crop_ratio: float = 1.0
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input: InputForm = "float32"
    text: Tokenization | None = None

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return "image" if self.image_size is not None else "values" if self.text is None else "text"


def fit_images(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bring raw images to the model's size and channels: (N, c, h, w) -> (N, channels, *image_size), same dtype.

    Raises:
        ToolError: The samples are not uint8, or colour images meet a model of one channel.
    """
    if preprocessing.text is not None:
        raise ToolError("the samples are no texts, and the model takes texts")
    if preprocessing.image_size is None:
        return images
    if images.dtype != torch.uint8:
        raise ToolError(
            f"the samples are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape[1:])}, the model takes "
            "uint8 images and normalises them itself"
        )
    if images.shape[-2:] != preprocessing.image_size:
        images = _resize_and_crop(images, preprocessing)
    if images.shape[1] == 1 and preprocessing.channels != 1:
        images = images.expand(-1, preprocessing.channels or 1, -1, -1)
    if images.shape[1] != preprocessing.channels:
        raise ToolError(
            f"the images have {images.shape[1]} channels, the model takes {preprocessing.channels}; "
            "build the model with in_chans to match, or convert the images"
        )
    return images


def model_input(samples: Tensors, preprocessing: Preprocessing) -> Tensors:
    """Make what a model takes of fitted samples.

    Images and values (N, C, ...) of any dtype become (N, C, ...) float32, or (N, H, W, C) uint8 where the model scales
    them itself; numbers of tokens stay.
    """
    if preprocessing.input == "float32":
        return normalise(samples, preprocessing)
    return tuple(_pixels(one).permute(0, 2, 3, 1).contiguous() for one in samples)


def input_from_pixels(pixels: Tensors, preprocessing: Preprocessing) -> Tensors:
    """Make what a model takes of what one with ``input`` uint8 takes: (N, H, W, C) uint8."""
    return model_input(tuple(one.permute(0, 3, 1, 2) for one in pixels), preprocessing)


def normalise(samples: Tensors, preprocessing: Preprocessing) -> Tensors:
    """Scale and standardise fitted samples: (N, C, ...) any dtype -> (N, C, ...) float32; numbers of tokens stay."""
    return samples if preprocessing.text is not None else tuple(_standardised(one, preprocessing) for one in samples)


def _pixels(samples: Tensor) -> Tensor:
    return samples.round().clamp(0, 255).to(torch.uint8) if samples.is_floating_point() else samples


def _standardised(samples: Tensor, preprocessing: Preprocessing) -> Tensor:
    inputs = samples.to(torch.float32)
    if preprocessing.scale != 1.0:
        inputs = inputs * preprocessing.scale
    if preprocessing.mean:
        per_channel = (1, -1) + (1,) * (inputs.ndim - 2)
        mean, std = (_on(inputs.device, values) for values in (preprocessing.mean, preprocessing.std))
        inputs = (inputs - mean.view(per_channel)) / std.view(per_channel)
    return inputs


@cache
def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    """Keep constants on their device: copying them for every batch would wait for it."""
    return torch.tensor(values, device=device)


def _resize_and_crop(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize so that the crop keeps `crop_ratio` of a side, then take the middle; squares keep the aspect ratio."""
    assert preprocessing.image_size is not None
    height, width = preprocessing.image_size
    sides = [math.floor(side / preprocessing.crop_ratio) for side in (height, width)]
    resized = image_functional.resize(
        images,
        sides[:1] if height == width else sides,  # one number is the length of the shorter side
        interpolation=InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )
    cropped: Tensor = image_functional.center_crop(resized, [height, width])
    return cropped
