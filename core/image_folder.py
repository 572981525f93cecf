"""Image files in class folders: ``train/CLASS/*.jpg``, beside ``val/`` or ``test/`` laid out alike."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from core.data import UNLABELLED, Data, whole_split
from core.errors import ToolError, UnreadableSampleError
from core.history import digest_of
from core.machine import available_cores
from core.packed_paths import PackedPaths, packed
from core.preprocessing import Preprocessing, Tensors, fit_images
from core.references import Reference, check_arguments

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on damaged files
MODE_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images read from disk when they are needed, fitted to the model one by one.

    Attributes:
        paths: N image files.
        mode: Pillow mode that every image is converted to: L or RGB.
        num_workers: Worker processes to decode with.
    """

    paths: PackedPaths
    mode: str
    num_workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensors:
        """Decode and fit the images at `indices`: (N, C, H, W) uint8."""
        images = [fit_images(decode(self.paths[index], self.mode).unsqueeze(0), preprocessing) for index in indices]
        return (torch.cat(images),)


def load_image_folder(root: Path, reference: Reference, skip_bad: int) -> Data:
    """Read which images a folder holds; they are decoded when they are needed.

    Args:
        root: The folder, of ``train/CLASS/``, or images straight in ``train/``; ``val/`` and ``test/``. Where only one
            of the last two is there, it is the test split.
        reference: What it was named by; ``mode`` is RGB or L, ``image_size`` what all are resized to.
        skip_bad: How many images may be unreadable.

    Raises:
        ToolError: There are no such folders or no images in one, or too many cannot be read.
    """
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if not folders:
        raise ToolError(
            f"{root} holds none of train/, val/ and test/; images belong in {root}/train/CLASS/, "
            f"texts in {root}/train.tsv"
        )
    check_arguments(reference, ("mode", "image_size"))
    mode = image_mode(reference)
    unlabelled = {"train"} if "train" in folders and is_unlabelled(folders["train"]) else set()
    labelled = [folder for name, folder in folders.items() if name not in unlabelled]
    labels = class_names(labelled[0]) if labelled else ()
    listed = {name: list_split(folder, labels) for name, folder in folders.items() if name not in unlabelled}
    listed |= {name: list_unlabelled(folders[name]) for name in unlabelled}
    paths = [path for found, _ in listed.values() for path in found]
    shared_mode, size = survey(paths, mode, skip_bad)
    splits = {
        name: whole_split(ImageFiles(packed(found), shared_mode, available_cores()), torch.tensor(targets))
        for name, (found, targets) in listed.items()
    }
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    size = image_size(reference) or size
    return Data(
        reference=reference.text,
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        labels=labels,
        sample_shape=None if size is None else (MODE_CHANNELS[shared_mode], *size),
        kind="image",
        fingerprint=digest_of([reference.arguments, files_fingerprint(root, paths)]),
    )


def image_mode(reference: Reference) -> str | None:
    """Return the Pillow mode that a reference asks for, None where it does not."""
    mode = reference.arguments.get("mode")
    if mode is not None and mode not in MODE_CHANNELS:
        raise ToolError(f"{reference.text!r}: mode is {mode!r}; it is RGB or L")
    return None if mode is None else str(mode)


def image_size(reference: Reference) -> tuple[int, int] | None:
    """Return the height and width that a reference asks for, None where it does not."""
    asked = reference.arguments.get("image_size")
    if asked is None:
        return None
    if not isinstance(asked, int) or asked < 1:
        raise ToolError(f"{reference.text!r}: image_size is {asked!r}; it is a number of pixels")
    return asked, asked


def decode(source: Path | BinaryIO, mode: str, name: Callable[[], str] | None = None) -> Tensor:
    """Read one image: (C, H, W) uint8.

    Args:
        source: A file, or its contents.
        mode: Pillow mode to convert it to.
        name: What to call it in an error; the path by default.

    Raises:
        UnreadableSampleError: It is not an image or is cut short.
    """
    try:
        with Image.open(source) as opened:
            image: Image.Image = opened
            if opened.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
                image = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
            decoded: Tensor = pil_to_tensor(image.convert(mode))
            return decoded
    except UNREADABLE as error:
        called = name() if name else source
        raise UnreadableSampleError(f"cannot read the image {called}: {error}; replace or remove it") from error


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted class folder names under a split's folder.

    Raises:
        ToolError: There is none, or one whose name is no text, as which it is to be told.
    """
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise ToolError(f"{folder} holds no class folders; images belong in {folder}/CLASS/")
    for name in names:
        if not _is_text(name):
            raise ToolError(f"the name of the class folder {name!a} in {folder} is not UTF-8; rename it")
    return names


def _is_text(name: str) -> bool:
    """Tell whether a file's name is text: bytes that are not UTF-8 stand in it as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_split(folder: Path, labels: Sequence[str]) -> tuple[list[Path], list[int]]:
    """List the images of one split, class by class, in the order of their names; return paths and class indices.

    Raises:
        ToolError: A class folder is not among the labels, or holds no image.
    """
    paths: list[Path] = []
    targets: list[int] = []
    for name in class_names(folder):
        if name not in labels:
            raise ToolError(f"{folder / name} is a class that train/ does not have")
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not images:
            raise ToolError(f"the class folder {folder / name} is empty; remove it or add images")
        paths += images
        targets += [labels.index(name)] * len(images)
    return paths, targets


def is_unlabelled(folder: Path) -> bool:
    """Tell whether images lie in a split's folder itself and there are no class folders."""
    entries = [entry for entry in folder.iterdir() if entry.name[0] != "."]
    return not any(entry.is_dir() for entry in entries) and any(one.suffix.lower() in SUFFIXES for one in entries)


def list_unlabelled(folder: Path) -> tuple[list[Path], list[int]]:
    """List the images of a folder without class folders, in the order of their names; return paths and no classes."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return paths, [UNLABELLED] * len(paths)


def survey(paths: Sequence[Path], mode: str | None, skip_bad: int = 0) -> tuple[str, tuple[int, int] | None]:
    """Look at every image's header; return the Pillow mode to read all of them in, and their size if they share one.

    Args:
        paths: Image files.
        mode: The mode the user asked for, or None to take the one they share.
        skip_bad: How many may be unreadable; whoever fetches them meets them again.

    Returns:
        The mode, L or RGB, and (height, width), or None where sizes differ.

    Raises:
        ToolError: More files than `skip_bad` are no images, or the modes differ and none was asked for.
    """
    first_of_mode: dict[str, Path] = {}
    sizes: set[tuple[int, int]] = set()
    num_bad = 0
    for path in paths:
        try:
            with Image.open(path) as image:
                first_of_mode.setdefault(image.mode, path)
                sizes.add((image.height, image.width))
        except UNREADABLE as error:
            num_bad += 1
            if num_bad > skip_bad:
                raise ToolError(f"cannot read the image {path}: {error}; replace or remove it") from error
    size = sizes.pop() if len(sizes) == 1 else None
    if mode is not None:
        return mode, size
    if not first_of_mode:
        raise ToolError(f"none of the {len(paths)} images can be read, the first: {paths[0]}")
    if len(first_of_mode) > 1 or next(iter(first_of_mode)) not in MODE_CHANNELS:
        listing = ", ".join(f"{name} ({path})" for name, path in sorted(first_of_mode.items()))
        raise ToolError(f"the images are of mode {listing}; add ',mode=RGB' or ',mode=L' to the data to convert them")
    return next(iter(first_of_mode)), size


def files_fingerprint(root: Path | None, paths: Sequence[Path]) -> str:
    """Return a SHA-256 over names, sizes and modification times: contents would take hours on a large set.

    Args:
        root: The folder that names are relative to; None takes the files' own names.
        paths: The files.
    """
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        name = os.fsencode(path.relative_to(root) if root else path.name)  # which need not be text
        digest.update(name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
