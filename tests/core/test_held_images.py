"""A small folder's images are decoded once; what is large, or may be skipped, is read as it is needed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.training.finetune import FinetuneConfig, finetune
from core import held_images
from core.batches import batches
from core.data import ArraySamples, Data
from core.data_reference import load_data
from core.errors import ToolError
from core.held_images import held
from core.model_reference import load_torch_model

CONFIG = FinetuneConfig(epochs=3, batch_size=8, lr=0.01, compile=False)


@pytest.fixture
def photos(image_folder: Any) -> str:
    return str(image_folder({"train/cat": 12, "train/dog": 12, "test/cat": 2, "test/dog": 2}))


def losses(data: Data, tiny: str, **told: Any) -> list[float]:
    model = load_torch_model(f"{tiny}:cnn", data)
    return [entry["train_loss"] for entry in finetune(model, data, CONFIG, **told).report.metrics]


def test_a_folder_that_fits_into_memory_is_read_once(photos: str, tiny: str) -> None:
    def remove(entry: dict[str, Any]) -> None:
        shutil.rmtree(Path(photos) / "train", ignore_errors=True)

    assert len(losses(load_data(f"{photos},image_size=8"), tiny, on_epoch=remove)) == 3


def test_one_that_does_not_is_read_in_every_epoch(photos: str, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(entry: dict[str, Any]) -> None:
        shutil.rmtree(Path(photos) / "train", ignore_errors=True)

    monkeypatch.setattr(held_images, "HELD_BYTES", 10)
    with pytest.raises(ToolError, match="cannot read the image"):
        losses(load_data(f"{photos},image_size=8"), tiny, on_epoch=remove)


def test_it_holds_what_would_be_read(photos: str, tiny: str) -> None:
    data = load_data(f"{photos},image_size=8")
    model = load_torch_model(f"{tiny}:cnn", data)
    split = data.split("train")
    whole = held(split, model.preprocessing)
    assert isinstance(whole.samples, ArraySamples)
    assert torch.equal(whole.labels(), split.labels())
    for (read,), (kept,) in zip(
        (inputs for inputs, _ in batches(split, model.preprocessing, 5)),
        (inputs for inputs, _ in batches(whole, model.preprocessing, 5)),
        strict=True,
    ):
        assert torch.equal(read, kept)


def test_what_may_be_skipped_and_what_is_held_already_stay_as_they_are(photos: str, digits: Data, tiny: str) -> None:
    data = load_data(f"{photos},image_size=8", skip_bad=1)
    preprocessing = load_torch_model(f"{tiny}:cnn", data).preprocessing
    assert held(data.split("train"), preprocessing) is data.split("train")
    assert held(digits.split("train"), preprocessing) is digits.split("train")


def test_a_line_search_takes_a_folder_that_fits(photos: str, tiny: str) -> None:
    data = load_data(f"{photos},image_size=8")
    model = load_torch_model(f"{tiny}:cnn", data)
    report = finetune(model, data, FinetuneConfig(optimizer="lbfgs", epochs=2, batch_size=8)).report
    assert report.metrics[1]["train_loss"] < report.metrics[0]["train_loss"]
