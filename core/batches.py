"""Batches read from a split: fetched, in worker processes where that pays, and fitted to the model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from core.data import Split, spread
from core.errors import ToolError, UnreadableSampleError
from core.preprocessing import Preprocessing, Tensors, model_input


class RawBatch(NamedTuple):
    """Samples as they are stored, fitted to the model.

    Attributes:
        samples: One tensor an input: images (N, C, H, W) uint8, numbers of tokens int64 (N, length), else float32.
        targets: Classes, int64 (N,); `UNLABELLED` where there is no label.
        positions: Where each stands in the split it was read from, int64 (N,).
        skipped: What was wrong with the samples that are missing here; empty unless the split may skip.
    """

    samples: Tensors
    targets: Tensor
    positions: Tensor
    skipped: tuple[str, ...] = ()


Fetched = RawBatch | ToolError


def batches(
    split: Split, preprocessing: Preprocessing, batch_size: int, *, limit: int | None = None
) -> Iterator[tuple[Tensors, Tensor]]:
    """Yield, in order, what `model_input` makes of samples, and targets int64 (N,); at most `limit` samples in all.

    Texts are padded to the longest of their batch.
    """
    chosen = split if limit is None else split.take(spread(len(split), limit))
    for batch in raised(loader(chosen, preprocessing, batch_size), split):
        yield model_input(batch.samples, preprocessing), batch.targets


def loader(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> "DataLoader[Fetched]":
    """Make the loader of raw, fitted batches, to be read through `raised`.

    Args:
        split: What to read.
        preprocessing: Of the model that the samples are fitted to.
        batch_size: Samples a batch.
        generator: Shuffles them; None keeps their order.
        drop_last: Leave out a last batch that is not full.
    """
    fetching = _Fetching(split, preprocessing)
    num_batches = -(-len(split) // batch_size)
    num_workers = min(split.samples.num_workers, num_batches) if num_batches > 1 else 0  # starting one costs more
    persists = generator is not None and num_workers > 0  # training comes back every epoch
    return DataLoader(
        fetching,
        batch_size=batch_size,
        sampler=RandomSampler(fetching, generator=generator) if generator is not None else None,
        # A DataLoader draws a base seed each time it makes an iterator, and a resumed run makes the persistent one once
        # more than an uninterrupted run does: with a generator of its own, the order of samples does not depend on it.
        generator=torch.Generator() if persists else generator,
        drop_last=drop_last,
        num_workers=num_workers,
        persistent_workers=persists,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
    )


def raised(fetched: Iterable[Fetched], split: Split) -> Iterator[RawBatch]:
    """Yield each batch of a split, raising the error that fetching it met, if any, in this process.

    Raises:
        UnreadableSampleError: A sample cannot be read, or one more than may be skipped, or all were skipped.
        ToolError: What else fetching met.
    """
    num_good, bad = 0, list[str]()
    for batch in fetched:
        if isinstance(batch, ToolError):
            raise batch
        if split.skipped is not None:
            split.skipped.note(batch.skipped)
        num_good += len(batch.targets)
        bad += batch.skipped
        if len(batch.targets):
            yield batch
    if bad and not num_good:
        raise UnreadableSampleError(
            f"--skip-bad leaves no sample of a split: all {len(bad)} are bad, the first: {bad[0]}"
        )


class _Fetching(Dataset[Fetched]):
    """A split as torch's DataLoader wants it; `__getitems__` fetches a whole batch at once.

    An expected error travels as a value: raised in a worker process, it would arrive wrapped in a traceback.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._split = replace(split, skipped=None)  # what worker processes note stays with them
        self._preprocessing = preprocessing
        self._skips = split.skipped is not None

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, positions: list[int]) -> Fetched:
        try:
            return self._fetch(positions)
        except UnreadableSampleError as error:
            return self._fetch_good(positions) if self._skips else error
        except ToolError as error:
            return error

    def _fetch(self, positions: list[int], skipped: tuple[str, ...] = ()) -> RawBatch:
        indices = self._split.indices[positions]
        samples = self._split.samples.fetch(indices.tolist(), self._preprocessing)
        return RawBatch(samples, self._split.targets[indices], torch.tensor(positions), skipped)

    def _fetch_good(self, positions: list[int]) -> RawBatch:
        """Fetch one by one what can be fetched, which may be nothing."""
        good, errors = [], []
        for position in positions:
            try:
                self._fetch([position])
                good.append(position)
            except UnreadableSampleError as error:
                errors.append(str(error))
        if not good:
            nothing = torch.empty(0, dtype=torch.int64)
            return RawBatch((), nothing, nothing, tuple(errors))
        return self._fetch(good, tuple(errors))


def _as_it_is(batch: Any) -> Any:
    return batch
