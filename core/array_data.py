"""Data that is arrays: an .npz file, scikit-learn's digits, or what was read into memory."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core.data import (
    UNLABELLED,
    ArraySamples,
    Data,
    Split,
    array_fingerprint,
    array_samples,
    check_targets,
    whole_split,
)
from core.errors import ToolError, did_you_mean
from core.references import Reference

Array = npt.NDArray[np.generic]


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file by name.

    Raises:
        ToolError: It is damaged, holds one bare array, or Python objects.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ToolError(f"{path} holds one bare array; save x_train, y_train, ... with numpy.savez")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
        raise ToolError(f"cannot read {path}: {error}; the file is damaged or holds Python objects") from error


def digits() -> dict[str, Array]:
    """Handwritten digits, 1,797 grey images 8x8 (scikit-learn); every fifth one is the test split."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    is_test = np.arange(len(images)) % 5 == 4
    return {
        "x_train": images[~is_test],
        "y_train": loaded.target[~is_test],
        "x_test": images[is_test],
        "y_test": loaded.target[is_test],
    }


def load_arrays(arrays: Mapping[str, Array], reference: Reference, labels: tuple[str, ...] | None = None) -> Data:
    """Return arrays as data.

    Args:
        arrays: ``x_train``, ``y_train`` and so on for ``val`` and ``test``: images (N, H, W) or (N, H, W, C) uint8, or
            float samples (N, ...), and classes (N,), which training samples alone may do without; ``labels`` (K,), the
            classes' names, may be there.
        reference: What they were named by.
        labels: Class names; None takes the array ``labels``, else numbers.

    Raises:
        ToolError: An array is missing, unknown, or does not fit the others.
    """
    known = {f"{axis}_{split}" for axis in "xy" for split in ("train", "val", "test")} | {"labels"}
    for name in arrays:
        if name not in known:
            raise ToolError(f"{reference.text} holds an unknown array {name!r}.{did_you_mean(name, known)}")
        if name.startswith("y_") and f"x_{name[2:]}" not in arrays:
            raise ToolError(f"{reference.text} holds {name} without x_{name[2:]}")
    if labels is None and "labels" in arrays:
        if arrays["labels"].ndim != 1:
            raise ToolError(f"{reference.text}: labels has shape {arrays['labels'].shape}; it is a list of class names")
        labels = tuple(str(label) for label in arrays["labels"])
    splits = {split: _array_split(arrays, split, labels, reference.text) for split in ("train", "val", "test")}
    present = [split for split in splits.values() if split is not None]
    if not present:
        raise ToolError(f"{reference.text} holds none of x_train, x_val and x_test")
    shapes = {tuple(split.samples.array.shape[1:]) for split in present if isinstance(split.samples, ArraySamples)}
    if len(shapes) > 1:
        raise ToolError(f"{reference.text}: the splits differ in the shape of a sample: {sorted(shapes)}")
    if len({split.samples.array.dtype for split in present if isinstance(split.samples, ArraySamples)}) > 1:
        raise ToolError(f"{reference.text}: the splits differ: some hold uint8 images, some floats")
    labels = labels or tuple(str(index) for index in range(max(int(split.targets.max()) for split in present) + 1))
    first = present[0].samples
    return Data(
        reference=reference.text,
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        labels=labels,
        sample_shape=shapes.pop(),
        kind="image" if isinstance(first, ArraySamples) and first.array.dtype == torch.uint8 else "values",
        fingerprint=array_fingerprint([arrays[name] for name in sorted(arrays)]),
    )


def _array_split(arrays: Mapping[str, Array], split: str, labels: tuple[str, ...] | None, name: str) -> Split | None:
    if f"x_{split}" not in arrays:
        return None
    samples = array_samples(arrays[f"x_{split}"], f"{name}: x_{split}")
    if f"y_{split}" not in arrays and split == "train":
        return whole_split(samples, torch.full((len(samples),), UNLABELLED))
    if f"y_{split}" not in arrays:
        raise ToolError(f"{name} holds x_{split} without y_{split}; only x_train may do without")
    return whole_split(samples, check_targets(arrays[f"y_{split}"], len(samples), labels, f"{name}: y_{split}"))
