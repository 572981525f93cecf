"""Data from an .npz file: which arrays make which splits, what is refused, and files that are damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data_reference import load_data
from core.errors import ToolError

MakeNpz = Callable[..., str]

FLOATS: dict[str, Any] = {
    "x_train": np.random.default_rng(0).normal(size=(40, 5)),
    "y_train": np.arange(40) % 4,
    "x_test": np.ones((8, 5)),
    "y_test": np.arange(8) % 4,
}


def test_an_npz_file_is_read(npz: MakeNpz) -> None:
    data = load_data(npz(**FLOATS, labels=["a", "b", "c", "d"]))
    assert (data.labels, data.sample_shape, data.kind) == (("a", "b", "c", "d"), (5,), "values")
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (36, 4, 8)


def test_a_share_of_train_is_refused_where_nothing_is_held_out(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="brings its own validation split; drop validation_ratio"):
        load_data(f"{npz(**FLOATS, x_val=np.zeros((3, 5)), y_val=[0, 1, 2])},validation_ratio=0.1")


def test_a_validation_split_that_is_given_is_used(npz: MakeNpz) -> None:
    data = load_data(npz(**FLOATS, x_val=np.zeros((3, 5)), y_val=[0, 1, 2]))
    assert (len(data.split("train")), len(data.split("validation"))) == (40, 3)


def test_labels_follow_from_the_highest_target(npz: MakeNpz) -> None:
    assert load_data(npz(**FLOATS)).labels == ("0", "1", "2", "3")


def test_absent_splits_are_none_and_named(npz: MakeNpz) -> None:
    data = load_data(npz(x_test=np.ones((2, 5)), y_test=[0, 1]))
    assert (data.train, data.validation) == (None, None)
    for split in ("train", "validation"):
        with pytest.raises(ToolError, match=rf"data\.npz has no {split} split"):
            data.split(split)


def test_training_samples_may_lack_labels(npz: MakeNpz) -> None:
    data = load_data(npz(**{name: array for name, array in FLOATS.items() if name != "y_train"}))
    assert (len(data.split("train")), len(data.split("validation"))) == (36, 4)
    assert not data.split("train").is_labelled
    assert not data.split("validation").is_labelled
    assert data.split("test").is_labelled


def test_the_fingerprint_follows_the_contents(npz: MakeNpz) -> None:
    one = load_data(npz(**FLOATS)).fingerprint
    assert load_data(npz(**FLOATS)).fingerprint == one
    assert load_data(npz(**FLOATS | {"y_test": np.zeros(8, int)})).fingerprint != one


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"x_tset": 1}, r"unknown array 'x_tset'\. Did you mean 'x_test'\?", id="unknown-array"),
        pytest.param({"y_test": None}, "x_test without y_test; only x_train may do without", id="x-without-y"),
        pytest.param({"x_test": np.ones((8, 6))}, r"differ in the shape of a sample: \[\(5,\), \(6,\)\]", id="shapes"),
        pytest.param({"x_train": np.full((40, 5), np.nan)}, "x_train holds NaN .* in 40 samples, .*index 0", id="nan"),
        pytest.param({"y_train": np.arange(39)}, r"y_train has shape \(39,\), but there are 40 samples", id="length"),
        pytest.param({"y_train": np.arange(40) / 2}, "y_train is float64: class indices are integers", id="floats"),
        pytest.param({"y_test": np.full(8, -1)}, "y_test holds 8 labels out of range, the first -1", id="negative"),
        pytest.param({"labels": ["a", "b"]}, "the first 2 at index 2; classes run from 0 to 1", id="too-high"),
        pytest.param({"x_test": np.ones((0, 5)), "y_test": []}, "x_test holds no samples", id="empty-split"),
        pytest.param({"x_train": np.array(3.0)}, "x_train is one value, not an array of samples", id="one-number"),
        pytest.param(
            {"labels": np.array("abcd")}, r"labels has shape \(\); it is a list of class names", id="labels-not-a-list"
        ),
        pytest.param({"y_train": np.arange(40) % 2 * 3}, "no training sample of class '1', '2'", id="unseen-class"),
        pytest.param({"y_train": np.arange(40) % 2 * 900}, r"of class '1', .* '10' and 889 more; remove", id="garbage"),
        pytest.param({"labels": list("abcde")}, "no training sample of class 'e'", id="unseen-label"),
        pytest.param(
            {"x_train": np.zeros((40, 5, 5), np.uint8), "x_test": np.zeros((8, 1, 5, 5))},
            "the splits differ: some hold uint8 images, some floats",
            id="images-and-floats",
        ),
    ],
)
def test_arrays_that_cannot_be_used_are_named(npz: MakeNpz, changed: dict[str, Any], said: str) -> None:
    arrays = {name: value for name, value in (FLOATS | changed).items() if value is not None}
    with pytest.raises(ToolError, match=said) as caught:
        load_data(npz(**arrays))
    assert "data.npz" in str(caught.value)


def test_y_without_x_is_named(npz: MakeNpz) -> None:
    arrays = {name: value for name, value in FLOATS.items() if name != "x_test"}
    with pytest.raises(ToolError, match="holds y_test without x_test"):
        load_data(npz(**arrays))


def test_an_npz_file_without_samples_is_refused(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="holds none of x_train, x_val and x_test"):
        load_data(npz(labels=["a"]))


def test_a_training_split_too_small_to_hold_validation_out_is_refused(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="sample"):
        load_data(npz(x_train=np.ones((1, 5)), y_train=[0]))


@pytest.mark.parametrize("keep", [0, 0.01, 0.3, 0.6, 0.9, -1])
def test_an_npz_file_cut_short_is_named(npz: MakeNpz, cut: Callable[[Path, float], None], keep: float) -> None:
    path = npz(**FLOATS)
    cut(Path(path), keep)
    with pytest.raises(ToolError, match=r"cannot read .*data\.npz: .*; the file is damaged") as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


def error_of(text: str) -> str | None:
    try:
        load_data(text)
    except ToolError as error:
        return str(error)
    return None


def test_a_flipped_byte_in_a_zip_directory_is_harmless_or_named(npz: MakeNpz) -> None:
    path = Path(npz(x_test=np.ones((2, 2)), y_test=[0, 1]))
    whole = path.read_bytes()
    errors = []
    for position in range(whole.index(b"PK\x01\x02"), len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        errors.append(error_of(str(path)))
    assert any(errors)
    assert all(error is None or "data.npz" in error for error in errors)


def test_pickled_arrays_are_never_read(npz: MakeNpz) -> None:
    path = npz(x_train=np.array([{"a": 1}, None], dtype=object), y_train=[0, 1])
    with pytest.raises(ToolError, match="the file is damaged or holds Python objects"):
        load_data(path)


def test_a_bare_npy_array_under_the_suffix_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones((3, 2)))
    with pytest.raises(ToolError, match=r"data\.npz"):
        load_data(str(tmp_path / "data.npz"))
