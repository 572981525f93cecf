"""The data carrier: labelled splits of raw samples, checked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.errors import ToolError
from core.preprocessing import Kind, Preprocessing, Tensors, fit_images
from core.skipped_samples import SkippedSamples

MOST_NAMED = 10
MOST_CLASSES = 1_000_000  # a label beyond is garbage, where no names say how many there are
VALIDATION_RATIO = 0.1
SPLIT_SEED = 20151210  # fixed, so that every command holds the same samples out whatever its --seed
UNLABELLED = -1


class Samples(Protocol):
    """Raw samples that can be fetched in any order."""

    @property
    def num_workers(self) -> int:
        """Worker processes worth starting to fetch batches; 0 when fetching is a memory copy."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensors:
        """Return the samples at `indices`, fitted to the model, one tensor an input.

        Images are (N, C, H, W) uint8, texts int64 (N, longest of these texts), other samples (N, ...).
        """
        ...


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Samples held in memory.

    Attributes:
        array: uint8 (N, C, H, W) for images, float32 (N, ...) otherwise.
    """

    array: Tensor
    num_workers: int = 0

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensors:
        """Return the samples at `indices`, fitted to the model."""
        return (fit_images(self.array[torch.as_tensor(indices)], preprocessing),)


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a data set.

    Attributes:
        samples: Raw samples, of which this split may hold some.
        targets: int64, the class index of every one of `samples`, `UNLABELLED` where it is not known.
        indices: int64 (N,), which of them this split holds, in this order.
        skipped: Where unreadable samples are noted that are left out; None where one is an error.
    """

    samples: Samples
    targets: Tensor
    indices: Tensor
    skipped: SkippedSamples | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Tensor) -> "Split":
        """Return the split of the samples at these positions, in this order; nothing is copied."""
        return replace(self, indices=self.indices[positions])

    def labels(self) -> Tensor:
        """Return the targets of this split's samples: int64 (N,)."""
        return self.targets[self.indices]

    @property
    def is_labelled(self) -> bool:
        """Whether every sample has a label."""
        return bool((self.labels() != UNLABELLED).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A data set with its splits; a split that the source does not bring is None.

    Attributes:
        reference: How the user named it.
        train: What models are trained on; `validation` is held out of it.
        validation: What every choice is made on.
        test: Read once, by bench and the final gate.
        labels: Class names, in the order of the targets.
        sample_shape: Shape of a raw sample, (C, H, W) for images; None when images differ in size, and for texts.
        kind: What a sample is.
        fingerprint: SHA-256 that changes when the data changes.
    """

    reference: str
    train: Split | None
    validation: Split | None
    test: Split | None
    labels: tuple[str, ...]
    sample_shape: tuple[int, ...] | None
    kind: Kind
    fingerprint: str

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ToolError: The data has no such split.
        """
        split = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if split is None:
            raise ToolError(f"{self.reference} has no {name} split; this step reads it")
        return split


def whole_split(samples: Samples, targets: Tensor) -> Split:
    """Make the split that holds all of `samples`; targets is int64 (N,)."""
    return Split(samples, targets, torch.arange(len(samples)))


def hold_out_validation(train: Split, ratio: float) -> tuple[Split, Split]:
    """Split a seeded share of `train` off for validation; return what remains, at least one sample, and the share.

    A class of which no sample would remain keeps one, unless it is the only one that was to be held out.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    num_validation = min(max(1, round(len(train) * ratio)), len(train) - 1)
    held_out, remain = order[:num_validation].tolist(), order[num_validation:].tolist()
    classes = train.labels().tolist()
    left = {classes[position] for position in remain}
    for position in list(held_out):
        if classes[position] not in left and len(held_out) > 1:
            left.add(classes[position])
            held_out.remove(position)
            remain.append(position)
    return train.take(torch.tensor(sorted(remain))), train.take(torch.tensor(sorted(held_out)))


def array_samples(array: npt.NDArray[np.generic], name: str) -> ArraySamples:
    """Check an array of samples and bring it to channels-first.

    Args:
        array: uint8 images (N, H, W) or (N, H, W, C), or floats (N, ...).
        name: What to call the array in an error.

    Raises:
        ToolError: Another dtype or rank, no samples, or NaN or infinity among them.
    """
    if array.ndim == 0:
        raise ToolError(f"{name} is one value, not an array of samples")
    if len(array) == 0:
        raise ToolError(f"{name} holds no samples")
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        images = torch.from_numpy(np.ascontiguousarray(array))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        if images.shape[1] not in (1, 3):
            raise ToolError(f"{name} has shape {array.shape}: images are (N, H, W) or (N, H, W, C) with C 1 or 3")
        return ArraySamples(images.contiguous())
    if not np.issubdtype(array.dtype, np.floating):
        raise ToolError(f"{name} is {array.dtype} {array.shape}: images are uint8 (N, H, W[, C]), other samples float")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    not_finite = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if len(not_finite):
        raise ToolError(
            f"{name} holds NaN or infinity in {len(not_finite)} samples, the first at index {not_finite[0]}; "
            "clean or drop them"
        )
    return ArraySamples(torch.from_numpy(array))


def check_targets(
    targets: npt.NDArray[np.generic], num_samples: int, labels: Sequence[str] | None, name: str
) -> Tensor:
    """Check class indices and return them as int64 (N,).

    Raises:
        ToolError: Not integers, not one per sample, or outside the labels.
    """
    if targets.shape != (num_samples,):
        raise ToolError(f"{name} has shape {targets.shape}, but there are {num_samples} samples: one class index each")
    if not np.issubdtype(targets.dtype, np.integer):
        raise ToolError(f"{name} is {targets.dtype}: class indices are integers")
    checked = targets.astype(np.int64)
    highest = len(labels) - 1 if labels is not None else MOST_CLASSES - 1
    outside = np.flatnonzero((checked < 0) | (checked > highest))
    if len(outside):
        raise ToolError(
            f"{name} holds {len(outside)} labels out of range, the first {checked[outside[0]]} at index {outside[0]}; "
            f"classes run from 0 to {highest}"
        )
    return torch.from_numpy(checked)


def check_classes(train: Split, labels: Sequence[str], reference: str) -> None:
    """Raise `ToolError` when a class has no training sample."""
    counts = torch.bincount(train.targets, minlength=len(labels))
    empty = [labels[index] for index in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        more = f" and {len(empty) - MOST_NAMED} more" if len(empty) > MOST_NAMED else ""
        raise ToolError(
            f"{reference} has no training sample of class {', '.join(map(repr, empty[:MOST_NAMED]))}{more}; "
            "remove the class or add samples"
        )


def spread(length: int, count: int) -> Tensor:
    """Return `count` positions spread evenly over `length`, all of them when `count` is not smaller."""
    if count >= length:
        return torch.arange(length)
    return torch.linspace(0, length - 1, count).round().long()


def array_fingerprint(arrays: Sequence[npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 over the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
