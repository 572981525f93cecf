"""Data from a folder of images: its splits, shapes and arguments."""

from collections.abc import Callable
from pathlib import Path

import pytest
from split_pixels import pixels_of

from core.data_reference import load_data
from core.errors import ToolError

MakeFolder = Callable[..., Path]


def test_an_unknown_argument_of_a_folder_suggests_the_nearest(image_folder: MakeFolder) -> None:
    with pytest.raises(ToolError, match=r"'image_sise'.* Did you mean 'image_size'\?"):
        load_data(f"{image_folder({'train/cat': 2})},image_sise=8")


def test_a_folder_is_read(image_folder: MakeFolder) -> None:
    root = image_folder({"train/cat": 12, "train/dog": 8, "val/cat": 3, "val/dog": 1, "test/dog": 2})
    data = load_data(str(root))
    assert (data.labels, data.sample_shape, data.kind) == (("cat", "dog"), (3, 8, 6), "image")
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (20, 4, 2)
    assert data.split("test").labels().tolist() == [1, 1]


def test_a_folder_with_only_val_uses_it_as_test(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"train/cat": 10, "train/dog": 10, "val/cat": 3})))
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (18, 2, 3)


def test_a_folder_without_train_uses_its_only_split_as_test(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"val/cat": 3, "val/dog": 1})))
    assert (data.train, data.validation) == (None, None)
    assert len(data.split("test")) == 4


def test_a_folder_with_only_train_has_no_test_split(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"train/cat": 10})))
    assert data.test is None
    with pytest.raises(ToolError, match="images has no test split"):
        data.split("test")


def test_grey_images_have_one_channel(image_folder: MakeFolder) -> None:
    root = image_folder({"train/cat": 2}, mode="L")
    assert load_data(str(root)).sample_shape == (1, 8, 6)
    assert load_data(f"{root},mode=RGB").sample_shape == (3, 8, 6)


def test_images_of_mixed_size_have_no_shape_until_one_is_asked_for(image_folder: MakeFolder) -> None:
    image_folder({"train/cat": 2})
    root = image_folder({"train/cat": 1}, height=10)
    assert load_data(str(root)).sample_shape is None
    data = load_data(f"{root},image_size=4")
    assert data.sample_shape == (3, 4, 4)
    assert pixels_of(data, "train").shape[1:] == (3, 4, 4)


def test_images_of_mixed_mode_are_refused_until_one_is_asked_for(image_folder: MakeFolder) -> None:
    image_folder({"train/cat": 2})
    root = image_folder({"train/cat": 2}, mode="L")
    with pytest.raises(ToolError, match="add ',mode=RGB' or ',mode=L' to the data"):
        load_data(str(root))
    assert pixels_of(load_data(f"{root},mode=L"), "train").shape == (3, 1, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param("mode=CMYK", "mode is 'CMYK'; it is RGB or L", id="mode"),
        pytest.param("image_size=big", "image_size", id="size-not-a-number"),
        pytest.param("image_size=0", "image_size", id="no-pixels"),
        pytest.param("image_size=-4", "image_size", id="negative"),
        pytest.param("image_size=4.5", "image_size", id="fraction"),
    ],
)
def test_arguments_of_a_folder_are_checked(image_folder: MakeFolder, arguments: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(f"{image_folder({'train/cat': 2})},{arguments}")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        pytest.param({"cat": 2}, "holds none of train/, val/ and test/; images belong in", id="no-train"),
        pytest.param({"test": 2}, "test holds no class folders", id="no-classes"),
        pytest.param({"train/cat": 2, "train/dog": 0}, "class folder .*dog is empty", id="empty-class"),
        pytest.param({"train/cat": 2, "val/dog": 2}, "val/dog is a class that train/ does not have", id="new-class"),
    ],
)
def test_a_folder_laid_out_wrongly_says_where(image_folder: MakeFolder, counts: dict[str, int], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(str(image_folder(counts)))


def test_the_fingerprint_of_a_folder_follows_its_files(image_folder: MakeFolder) -> None:
    one = load_data(str(image_folder({"train/cat": 2}))).fingerprint
    other = load_data(str(image_folder({"train/cat": 3}))).fingerprint
    assert one != other
