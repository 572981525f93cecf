"""From a reference to data: the digits, which splits are held out, and references that lead nowhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from split_pixels import pixels_of

from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError

MakeNpz = Callable[..., str]


def indices_of(data: Data, split: str) -> list[int]:
    return data.split(split).indices.tolist()


def test_the_digits_are_all_there() -> None:
    data = load_data("digits")
    assert {split: len(data.split(split)) for split in ("train", "validation", "test")} == {
        "train": 1294,
        "validation": 144,
        "test": 359,
    }
    assert data.labels == tuple("0123456789")
    assert (data.sample_shape, data.kind) == ((1, 8, 8), "image")
    assert pixels_of(data, "test").max() == 255


def test_the_validation_split_is_disjoint_and_the_same_on_each_load() -> None:
    one, other = load_data("digits"), load_data("digits")
    assert indices_of(one, "validation") == indices_of(other, "validation")
    assert not set(indices_of(one, "validation")) & set(indices_of(one, "train"))
    assert len({*indices_of(one, "validation"), *indices_of(one, "train")}) == 1438
    assert one.fingerprint == other.fingerprint


def test_the_share_held_out_can_be_asked_for() -> None:
    tenth, fiftieth = load_data("digits"), load_data("digits,validation_ratio=0.02")
    assert (len(fiftieth.split("train")), len(fiftieth.split("validation"))) == (1409, 29)
    assert tenth.fingerprint != fiftieth.fingerprint


@pytest.mark.parametrize("ratio", ["0.0", "1.0", "-0.1", "2", "yes"])
def test_a_share_that_leaves_nothing_is_refused(ratio: str) -> None:
    with pytest.raises(ToolError, match=r"validation_ratio is .*; it is a share of train, such as 0\.1"):
        load_data(f"digits,validation_ratio={ratio}")


def test_a_missing_file_suggests_the_nearest(npz: MakeNpz) -> None:
    path = npz(x_test=np.ones((8, 5)), y_test=np.arange(8) % 4)
    with pytest.raises(ToolError, match=r"dta\.npz does not exist\. Did you mean 'data\.npz'\?"):
        load_data(path.replace("data.npz", "dta.npz"))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(ToolError, match=r"data\.xlsx is not data this tool reads: a folder with train/CLASS/"):
        load_data(str(tmp_path / "data.xlsx"))


@pytest.mark.parametrize("text", ["hf:mnist"])
def test_what_is_not_supported_yet_says_so(text: str) -> None:
    with pytest.raises(ToolError, match=f"'{text}': .*not supported yet; save it as a .tsv or .jsonl file of texts"):
        load_data(text)


def test_an_unknown_prefix_suggests_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"unknown kind 'torchvison'.* Did you mean 'torchvision'\?"):
        load_data("torchvison:MNIST")


def test_an_argument_of_what_takes_none_is_refused(npz: MakeNpz) -> None:
    for text in (npz(x_test=np.ones((8, 5)), y_test=np.arange(8) % 4), "digits"):
        with pytest.raises(ToolError, match="'image_size'"):
            load_data(f"{text},image_size=16")
