"""The Python that the documentation shows does what the tool does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from tiny_text import write_bert

from core.model_reference import load_torch_model
from core.preprocessing import fit_images, normalise
from core.tokenizing import tokenise
from export.to_onnx import ExportConfig, export

ROOT = Path(__file__).parent.parent


def shown(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The README's factory, of a smaller network."""
    monkeypatch.chdir(tmp_path)
    factory, _ = shown("README.md")
    (tmp_path / "models.py").write_text(factory.replace('"resnet50"', '"test_resnet"'), encoding="utf-8")
    return "models.py:net,num_classes=6"


def test_a_declared_input_is_taken(declared: str) -> None:
    how = load_torch_model(declared).preprocessing
    assert (how.image_size, how.crop_ratio, how.interpolation) == ((224, 224), 0.875, "bilinear")
    assert how.std == (0.229, 0.224, 0.225)


PHOTOS = {
    "larger": lambda photo: photo,
    "of-its-size": lambda photo: photo.crop((0, 0, 224, 224)),
    "grey": lambda photo: photo.convert("L"),
}


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_a_photo_is_brought_to_the_models_size_as_the_tool_does(
    declared: str, photo: Callable[[Image.Image], Image.Image]
) -> None:
    model = load_torch_model(declared)
    export(model, Path("student.onnx"), ExportConfig(input="uint8", returns="top-5"))
    photo(Image.fromarray(load_sample_image("china.jpg"))).save("photo.jpg")
    raw = torch.from_numpy(np.array(Image.open("photo.jpg").convert("RGB"))).permute(2, 0, 1)[None]
    raw_file, _ = shown("docs/export.md")
    names: dict[str, Any] = {}

    exec(raw_file, names)

    off = np.abs(names["pixels"].transpose(0, 3, 1, 2).astype(int) - fit_images(raw, model.preprocessing).numpy())
    assert off.mean() < 1, "levels of 256"
    assert names["classes"].shape == (1, 5)


@pytest.mark.parametrize("is_grey", [False, True], ids=["colour", "grey-not-standardised"])
def test_a_photo_is_normalised_as_the_tool_does(declared: str, tiny: str, is_grey: bool) -> None:
    model = load_torch_model(f"{tiny}:cnn", input_shape=(1, 32, 32)) if is_grey else load_torch_model(declared)
    export(model, Path("student.onnx"), ExportConfig())
    Image.fromarray(load_sample_image("china.jpg")).save("photo.jpg")
    raw_file, float_file = shown("docs/export.md")
    names: dict[str, Any] = {}

    exec("".join(line for line in raw_file.splitlines(keepends=True) if "session.run" not in line), names)
    exec(float_file, names)

    (taken,) = normalise((torch.tensor(names["pixels"]).permute(0, 3, 1, 2),), model.preprocessing)
    with torch.no_grad():
        np.testing.assert_allclose(names["logits"], model.module(taken).numpy(), rtol=1e-3, atol=1e-4)


def test_texts_are_read_as_the_tool_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_torch_model(f"hf:{write_bert(tmp_path / 'bert')}")
    export(model, Path("tiny.int8.onnx"), ExportConfig())
    (reading,) = shown("docs/text.md")
    names: dict[str, Any] = {}

    exec(reading, names)

    assert model.preprocessing.text is not None
    with torch.no_grad():
        expected = model.module(*tokenise(["a film to remember", "dull"], model.preprocessing.text)).logits
    np.testing.assert_allclose(names["logits"], expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_pickled_weights_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    monkeypatch.chdir(tmp_path)
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"module.a": shared, "module.b": shared.t()}
    torch.save({wrapped: tensors, "epoch": 3} if wrapped else tensors, "net.pt")
    _, converting = shown("README.md")

    exec(converting, {})

    made = load_file("net.safetensors")
    assert set(made) == {"a", "b"}
    assert torch.equal(made["b"], shared.t())
