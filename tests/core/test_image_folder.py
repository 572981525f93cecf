"""Images in class folders: what is listed, decoded and surveyed, and what is refused."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.batches import batches
from core.data import Data, whole_split
from core.data_reference import load_data
from core.errors import ToolError
from core.image_folder import ImageFiles, class_names, decode, files_fingerprint, list_split, survey
from core.packed_paths import packed
from core.preprocessing import Preprocessing

MakeFolder = Callable[..., Path]
Cut = Callable[[Path, float], None]


def every_image(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def read_all(data: Data) -> None:
    for split in ("train", "validation"):
        list(batches(data.split(split), Preprocessing(image_size=(8, 6), channels=3), 2))


def test_class_names_are_sorted_and_files_beside_them_ignored(image_folder: MakeFolder) -> None:
    root = image_folder({"dog": 1, "cat": 1})
    (root / "README.txt").write_text("not a class")
    assert class_names(root) == ("cat", "dog")


def test_a_folder_without_class_folders_is_refused(image_folder: MakeFolder) -> None:
    with pytest.raises(ToolError, match=r"images holds no class folders; images belong in .*images/CLASS/"):
        class_names(image_folder({"": 1}))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_names_need_not_be_text_but_for_those_of_classes(image_folder: MakeFolder) -> None:
    root = image_folder({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    before = load_data(str(root)).fingerprint
    image = next((root / "train" / "cat").iterdir())
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.png")))
    data = load_data(str(root))
    assert data.fingerprint != before
    assert len(data.split("train")) + len(data.split("validation")) == 4
    (root / "train" / "dog").rename(root / "train" / os.fsdecode(b"ch\xe9vre"))
    with pytest.raises(ToolError, match=r"class folder 'ch\\udce9vre' in .*/train is not UTF-8; rename it"):
        load_data(str(root))


def test_a_split_is_listed_class_by_class(image_folder: MakeFolder) -> None:
    root = image_folder({"cat": 2, "dog/nested": 1})
    (root / "cat" / "notes.txt").write_text("not an image")
    paths, targets = list_split(root, ("bee", "cat", "dog"))
    assert targets == [1, 1, 2]
    assert [path.parent.name for path in paths] == ["cat", "cat", "nested"]


def test_suffixes_in_capitals_are_images(image_folder: MakeFolder) -> None:
    assert len(list_split(image_folder({"cat": 2}, suffix=".PNG"), ("cat",))[0]) == 2


def test_an_empty_class_folder_is_named(image_folder: MakeFolder) -> None:
    with pytest.raises(ToolError, match=r"the class folder .*/dog is empty; remove it or add images"):
        list_split(image_folder({"cat": 1, "dog": 0}), ("cat", "dog"))


def test_a_class_that_train_lacks_is_named(image_folder: MakeFolder) -> None:
    with pytest.raises(ToolError, match=r"/dog is a class that train/ does not have"):
        list_split(image_folder({"dog": 1}), ("cat",))


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_an_image_is_decoded_as_pillow_does(image_folder: MakeFolder, mode: str, channels: int) -> None:
    (path,) = every_image(image_folder({"cat": 1}, mode=mode))
    decoded = decode(path, mode)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (channels, 8, 6)
    pixels = np.asarray(Image.open(path)).reshape(8, 6, channels)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_an_image_is_converted_to_the_mode_asked_for(image_folder: MakeFolder) -> None:
    (path,) = every_image(image_folder({"cat": 1}, mode="L"))
    red, green, blue = decode(path, "RGB")
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".ppm", ".tif"])
@pytest.mark.parametrize("keep", [0, 0.03, 0.06, 0.2, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning", "ignore:Truncated File Read:UserWarning")
def test_an_image_cut_short_is_named(image_folder: MakeFolder, cut: Cut, suffix: str, keep: float) -> None:
    (path,) = every_image(image_folder({"cat": 1}, suffix=suffix))
    cut(path, keep)
    with pytest.raises(ToolError, match=rf"cannot read the image {path}: .*; replace or remove it") as caught:
        decode(path, "RGB")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".ppm", ".tif"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning", "ignore:Truncated File Read:UserWarning")
def test_an_image_cut_within_its_header_is_named_by_the_survey(image_folder: MakeFolder, cut: Cut, suffix: str) -> None:
    (path,) = every_image(image_folder({"cat": 1}, suffix=suffix))
    cut(path, 0.04)
    with pytest.raises(ToolError, match=rf"cannot read the image {path}: .*; replace or remove it"):
        survey([path], None)


def test_a_file_that_is_no_image_is_named_by_the_survey(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>404</html>")
    with pytest.raises(ToolError, match=r"cannot read the image .*a\.png: cannot identify"):
        survey([tmp_path / "a.png"], "RGB")


@pytest.mark.parametrize(
    "read", [lambda path: survey([path], None), lambda path: decode(path, "RGB")], ids=["survey", "decode"]
)
def test_an_image_too_large_to_decode_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    header = bytearray(54)  # of a BMP, 60000 pixels square
    header[:2], header[10:11], header[14:15] = b"BM", b"\x36", b"\x28"
    header[18:22] = header[22:26] = (60_000).to_bytes(4, "little")
    header[26:27], header[28:29] = b"\x01", b"\x18"
    (tmp_path / "a.bmp").write_bytes(header)
    with pytest.raises(ToolError, match=r"cannot read the image .*a\.bmp"):
        read(tmp_path / "a.bmp")


def test_the_survey_finds_mode_and_size(image_folder: MakeFolder) -> None:
    assert survey(every_image(image_folder({"cat": 2}, mode="L")), None) == ("L", (8, 6))


def test_the_survey_finds_that_sizes_differ(image_folder: MakeFolder) -> None:
    image_folder({"cat": 1})
    root = image_folder({"cat": 1}, height=9)
    assert survey(every_image(root), None) == ("RGB", None)


def test_mixed_modes_are_named_with_an_example_of_each(image_folder: MakeFolder) -> None:
    image_folder({"cat": 1}, mode="RGB")
    root = image_folder({"cat": 1}, mode="L")
    with pytest.raises(ToolError, match=r"mode L \(.*L8x6-0.png\), RGB \(.*RGB8x6-0.png\); add ',mode=RGB' or"):
        survey(every_image(root), None)
    assert survey(every_image(root), "L") == ("L", (8, 6))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_a_mode_that_models_do_not_take_needs_a_conversion(image_folder: MakeFolder, mode: str) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    paths = every_image(image_folder({"cat": 1}, mode=mode, suffix=suffix))
    with pytest.raises(ToolError, match=rf"the images are of mode {mode} \(.*add ',mode=RGB'"):
        survey(paths, None)
    assert survey(paths, "RGB") == ("RGB", (8, 6))


def test_images_of_any_size_are_fitted_in_worker_processes(image_folder: MakeFolder) -> None:
    image_folder({"cat": 2}, height=12, width=20)
    paths, _ = list_split(image_folder({"cat": 1}, height=7), ("cat",))
    files = ImageFiles(packed(paths), "RGB", num_workers=1)
    split = whole_split(files, torch.zeros(3, dtype=torch.int64))
    (found,) = batches(split, Preprocessing(image_size=(5, 5), channels=3), 8)
    assert found[0][0].shape == (3, 3, 5, 5)


def test_a_cut_image_met_by_a_worker_process_is_one_line(image_folder: MakeFolder, cut: Cut) -> None:
    root = image_folder({"train/cat": 4, "train/dog": 4})
    broken = root / "train" / "dog" / "RGB8x6-1.png"
    cut(broken, 0.5)
    data = load_data(str(root))  # the header is whole
    with pytest.raises(ToolError, match=rf"^cannot read the image {broken}: .*; replace or remove it$") as caught:
        read_all(data)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_images_without_class_folders_have_no_labels(image_folder: MakeFolder, tmp_path: Path) -> None:
    root = image_folder({"train/cat": 6, "train/dog": 6, "test/cat": 1, "test/dog": 1})
    for image in [path for path in (root / "train").rglob("*") if path.is_file()]:
        image.rename(root / "train" / f"{image.parent.name}-{image.name}")
    for folder in [path for path in (root / "train").iterdir() if path.is_dir()]:
        folder.rmdir()
    data = load_data(str(root))
    assert not data.split("train").is_labelled
    assert data.split("test").is_labelled
    assert data.labels == tuple(sorted(path.name for path in (root / "test").iterdir()))


def test_so_many_unreadable_headers_are_passed_over(image_folder: MakeFolder, cut: Cut) -> None:
    paths = every_image(image_folder({"cat": 4}))
    for path in paths[:2]:
        cut(path, 0.04)
    assert survey(paths, None, skip_bad=2) == ("RGB", (8, 6))
    with pytest.raises(ToolError, match=f"cannot read the image {paths[1]}"):
        survey(paths, None, skip_bad=1)
    for path in paths[2:]:
        cut(path, 0.04)
    with pytest.raises(ToolError, match=f"none of the 4 images can be read, the first: {paths[0]}"):
        survey(paths, None, skip_bad=4)


def test_the_fingerprint_changes_with_name_size_and_time(image_folder: MakeFolder) -> None:
    root = image_folder({"cat": 2})
    first, second = every_image(root)
    found = {files_fingerprint(root, [first, second])}
    assert files_fingerprint(root, [first, second]) in found
    os.utime(second, (1, 1))
    found.add(files_fingerprint(root, [first, second]))
    second.write_bytes(second.read_bytes() + b"\0")
    os.utime(second, (1, 1))
    found.add(files_fingerprint(root, [first, second]))
    renamed = second.rename(root / "cat" / "renamed.png")
    found.add(files_fingerprint(root, [first, renamed]))
    assert len(found) == 4


def test_a_16_bit_image_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000], [0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    assert survey([tmp_path / "a.png"], "L") == ("L", (2, 2))
    assert decode(tmp_path / "a.png", "L").flatten().tolist() == pytest.approx([0, 64, 128, 255], abs=1)
