"""Data from torchvision, on MNIST's own files, whole, cut short or absent."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from split_pixels import pixels_of

from core.data_reference import load_data
from core.errors import ToolError


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """The root of a small data set in MNIST's own files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        targets = np.arange(count) % 10
        write_idx(raw / f"{name}-images-idx3-ubyte", np.broadcast_to(targets[:, None, None] * 20, (count, 28, 28)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", targets)
    return tmp_path


def test_a_torchvision_data_set_is_read(mnist: Path) -> None:
    data = load_data(f"torchvision:MNIST,root={mnist}")
    assert (data.sample_shape, data.kind) == ((1, 28, 28), "image")
    assert data.labels[:2] == ("0 - zero", "1 - one")
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (27, 3, 10)
    assert pixels_of(data, "test")[:, 0, 0, 0].tolist() == [20 * digit for digit in range(10)]


def test_a_misspelt_torchvision_data_set_suggests_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"torchvision has no data set 'MNITS'\. Did you mean 'MNIST'\?"):
        load_data("torchvision:MNITS")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("torchvision:FakeData", "has no train and test splits; wrap it in a FILE.py", id="no-splits"),
        pytest.param("torchvision:MNIST,rot=x", "'rot'.*; the factory takes", id="unknown-argument"),
    ],
)
def test_a_torchvision_data_set_that_cannot_be_made_says_why(text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(text)


def test_a_torchvision_data_set_that_is_not_there_says_so(tmp_path: Path) -> None:
    text = f"torchvision:MNIST,root={tmp_path},download=false"
    with pytest.raises(ToolError, match=f"cannot get {text}: Dataset not found"):
        load_data(text)


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, -1])
@pytest.mark.filterwarnings("ignore:.*not writable:UserWarning")
def test_a_torchvision_file_cut_short_is_named(mnist: Path, cut: Callable[[Path, float], None], keep: float) -> None:
    cut(mnist / "MNIST" / "raw" / "train-images-idx3-ubyte", keep)
    with pytest.raises(ToolError, match="cannot get torchvision:MNIST"):
        load_data(f"torchvision:MNIST,root={mnist}")
