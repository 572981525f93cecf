"""Raw samples to model inputs, against numpy and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import ToolError
from core.preprocessing import Preprocessing, fit_images, normalise

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, height, width), dtype=torch.uint8, generator=generator)


def test_normalise_equals_numpy() -> None:
    raw = images()
    (made,) = normalise((raw,), Preprocessing(scale=1 / 255, mean=MEAN, std=STD))
    scaled = raw.numpy().astype(np.float64) / 255
    expected = (scaled - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(STD, (1, 3, 1, 1))
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_each_channel_of_flat_samples_has_its_own_mean() -> None:
    (made,) = normalise((torch.tensor([[1.0, 2.0], [3.0, 4.0]]),), Preprocessing(mean=(1, 2), std=(1, 2)))
    assert made.tolist() == [[0, 0], [2, 1]]


def test_without_settings_samples_pass_as_they_are() -> None:
    samples = torch.randn(4, 5)
    assert torch.equal(*normalise((samples,), Preprocessing()), samples)
    assert fit_images(samples, Preprocessing()) is samples


def test_images_that_fit_are_left_alone() -> None:
    raw = images()
    assert fit_images(raw, Preprocessing(image_size=(8, 8), channels=3)) is raw


@pytest.mark.parametrize("image_size", [(4, 4), (6, 9), (16, 16), (5, 3)])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.5])
@pytest.mark.parametrize("raw", [images(), images(height=5, width=11), images(height=11, width=5)])
def test_images_come_out_at_the_models_size(image_size: tuple[int, int], crop_ratio: float, raw: torch.Tensor) -> None:
    made = fit_images(raw, Preprocessing(image_size=image_size, channels=3, crop_ratio=crop_ratio))
    assert made.shape == (4, 3, *image_size)
    assert made.dtype == torch.uint8


@pytest.mark.parametrize(
    ("interpolation", "filter_"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_resizing_equals_pillow(interpolation: str, filter_: Image.Resampling) -> None:
    raw = images(channels=1, height=24, width=24)
    settings = Preprocessing(image_size=(10, 10), channels=1, interpolation=interpolation)
    made = fit_images(raw, settings)[0, 0].numpy().astype(int)
    expected = np.asarray(Image.fromarray(raw[0, 0].numpy()).resize((10, 10), filter_)).astype(int)
    assert np.abs(made - expected).max() <= 1


def test_a_crop_keeps_the_middle() -> None:
    raw = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    raw[:, :, 2:6, 2:6] = 255
    made = fit_images(raw, Preprocessing(image_size=(4, 4), channels=1, crop_ratio=0.5))
    assert made.min() == 255


def test_a_square_model_keeps_the_aspect_ratio() -> None:
    raw = images(channels=1, height=8, width=16)
    made = fit_images(raw, Preprocessing(image_size=(8, 8), channels=1))
    assert torch.equal(made, raw[..., 4:12])


def test_grey_images_are_repeated_for_a_colour_model() -> None:
    raw = images(channels=1)
    made = fit_images(raw, Preprocessing(image_size=(8, 8), channels=3))
    assert made.shape == (4, 3, 8, 8)
    assert torch.equal(made, raw.repeat(1, 3, 1, 1))


def test_colour_images_are_refused_by_a_model_of_one_channel() -> None:
    with pytest.raises(ToolError, match="the images have 3 channels, the model takes 1; build the model with in_chans"):
        fit_images(images(), Preprocessing(image_size=(8, 8), channels=1))


def test_settings_survive_json() -> None:
    settings = Preprocessing(image_size=(4, 6), channels=3, crop_ratio=0.875, scale=1 / 255, mean=MEAN, std=STD)
    assert Preprocessing.model_validate_json(settings.model_dump_json()) == settings
