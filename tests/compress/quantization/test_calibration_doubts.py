"""Samples that cannot calibrate well are told of before they do."""

from pathlib import Path

import numpy as np
import pytest

from compress.quantization.calibration_doubts import doubts
from compress.quantization.config import QuantizeConfig
from compress.quantization.quantize import quantize
from core.data import Data
from core.data_reference import load_data
from core.onnx_model import OnnxModel
from core.preprocessing import Preprocessing

RGB = Preprocessing(
    image_size=(8, 8), channels=3, scale=1 / 255, mean=(0.6, 0.45, 0.3), std=(0.25, 0.25, 0.25)
)  # reddish


def images(folder: Path, means: tuple[float, ...], spread: float = 60, count: int = 200) -> Data:
    random = np.random.default_rng(0)
    pixels = random.normal(np.array(means) * 255, spread, (count, 8, 8, len(means))).clip(0, 255).astype(np.uint8)
    targets = np.arange(count) % 2
    np.savez(folder / "images.npz", x_train=pixels, y_train=targets, x_val=pixels, y_val=targets)
    return load_data(str(folder / "images.npz"))


def said(data: Data, max_drop: float = 1.0) -> list[str]:
    return list(doubts(data.split("train"), len(data.split("validation")), RGB, max_drop))


def test_nothing_is_said_of_samples_like_those_of_training(tmp_path: Path) -> None:
    assert said(images(tmp_path, (0.58, 0.47, 0.33))) == []


def test_swapped_channels_are_told(tmp_path: Path) -> None:
    (sentence,) = said(images(tmp_path, (0.31, 0.45, 0.59)))
    assert "are they BGR where RGB is meant?" in sentence


def test_swapped_channels_are_told_by_their_order_whatever_the_brightness(tmp_path: Path) -> None:
    """ImageNet's means and CIFAR-10's own, in both orders; the first samples alone are of another colour."""
    general = RGB.model_copy(update={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    cifar10 = (0.491, 0.482, 0.447)
    for order, told in ((cifar10, 0), (cifar10[::-1], 1)):
        data = images(tmp_path, order, count=2000)
        assert data.train is not None
        data.train.samples.array[:64] = 110
        assert len(list(doubts(data.split("train"), len(data.split("validation")), general, 1.0))) == told


def test_images_that_are_merely_of_another_colour_are_not_called_swapped(tmp_path: Path) -> None:
    assert said(images(tmp_path, (0.4, 0.4, 0.4))) == []


@pytest.mark.parametrize(
    ("means", "spread"), [((0.004, 0.003, 0.002), 0.3), ((0.99, 0.99, 0.99), 2), ((0.5, 0.5, 0.5), 0)]
)
def test_another_range_is_told(tmp_path: Path, means: tuple[float, ...], spread: float) -> None:
    (sentence,) = said(images(tmp_path, means, spread))
    assert "training's have about 0 and 1: is their range right?" in sentence


def test_too_few_samples_are_told(tmp_path: Path) -> None:
    few, dull = said(images(tmp_path, (0.6, 0.45, 0.3), count=20))
    assert few.startswith("20 samples calibrate")
    assert dull == "one of the 20 validation samples that are scored is 5 points: too few to tell a drop of 1"
    assert said(images(tmp_path, (0.6, 0.45, 0.3)), max_drop=0.1)[0].endswith("too few to tell a drop of 0.1")


def test_quantize_says_so(exported: OnnxModel, digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = QuantizeConfig(calibration_samples=8, form="qdq", max_drop=50.0)
    quantize(exported, digits, tmp_path / "int8.onnx", config, measure_speedups=lambda _, files: [2.0 for _ in files])
    assert "8 samples calibrate; the ranges found on so few may be too narrow" in caplog.text
