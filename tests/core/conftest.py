"""Inputs on disk for the tests of core/: image folders, .npz files, .onnx files, and files cut short."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

FACTORIES = """
from torch import nn


def cnn(num_classes: int = 10, in_chans: int = 1, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def mlp(num_classes: int = 3, num_features: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, 4), nn.ReLU(), nn.Linear(4, num_classes))
"""


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    """A file with two factories, ``cnn`` and ``mlp``."""
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


@pytest.fixture
def python_file(tmp_path: Path) -> Callable[[str], Path]:
    """``python_file("x = 1")`` writes that source and returns the file."""

    def write(source: str) -> Path:
        path = tmp_path / "users.py"
        path.write_text(source)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """``image_folder({"train/cat": 3, "test/cat": 1}, mode="L")`` writes so many images and returns the root."""
    root = tmp_path / "images"

    def make(
        counts: Mapping[str, int], *, mode: str = "RGB", height: int = 8, width: int = 6, suffix: str = ".png"
    ) -> Path:
        random = np.random.default_rng(0)
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                shape = (height, width) if mode == "L" else (height, width, 3)
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / folder / f"{mode}{height}x{width}-{index}{suffix}")
        return root

    return make


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    """``npz(x_train=..., y_train=...)`` writes the arrays and returns the reference."""

    def make(**arrays: object) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return str(path)

    return make


@pytest.fixture
def linear_proto() -> Callable[..., onnx.ModelProto]:
    """Make the graph y = x @ W: x (batch, num_features) -> y (batch, num_classes), W = 0, 1, 2, ..."""

    def make(
        num_features: int = 5, num_classes: int = 3, batch: int | str = "N", dtype: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        weight = np.arange(num_features * num_classes).reshape(num_features, num_classes)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "W"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", dtype, (batch, num_features))],
            [helper.make_tensor_value_info("y", dtype, (batch, num_classes))],
            [numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(dtype)), "W")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    return make


@pytest.fixture
def linear_onnx(tmp_path: Path, linear_proto: Callable[..., onnx.ModelProto]) -> Callable[..., Path]:
    """Write what `linear_proto` makes; ``name`` is the file's."""

    def make(name: str = "linear.onnx", **options: object) -> Path:
        path = tmp_path / name
        onnx.save(linear_proto(**options), path)
        return path

    return make


@pytest.fixture
def cut() -> Callable[[Path, float], None]:
    """``cut(path, 0.5)`` keeps the first half of a file; ``cut(path, -2)`` drops its last two bytes."""

    def shorten(path: Path, keep: float) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep)] if keep < 0 else whole[: int(len(whole) * keep)])

    return shorten
