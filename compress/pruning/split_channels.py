"""Splits of channels: which part each reader takes, and the sizes that a module splits by.

torch-pruning takes a split's readers for its parts, in whatever order it met them. Here parts of one size lose the
same channels, so that what splits into halves, or by a number, still can. What attention unbinds, queries, keys and
values along a first axis, counts as a split too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_pruning.dependency import Node
from torch_pruning.ops import _SplitOp, _UnbindOp

from core.module_paths import paths_entered

SPLITS = (_SplitOp, _UnbindOp)


@dataclass(frozen=True, slots=True)
class Split:
    """A split along channels.

    Attributes:
        operation: torch-pruning's, which knows the sizes of the parts as they are now.
        sizes: Those that it had.
        owner: The module that splits.
        told: The numbers, and sequences of numbers, that it said in splitting.
    """

    operation: Any
    sizes: tuple[int, ...]
    owner: nn.Module | None
    told: frozenset[Any]


class Part:
    """One part of a split: translates between the numbers of its channels and those of the whole."""

    def __init__(self, split: Any, number: int) -> None:
        self.split = split
        self.number = number

    def from_whole(self, channels: Sequence[Any]) -> list[Any]:
        """Return channels of the whole as channels of this part."""
        sizes = self.split.split_sizes
        start, size = sum(sizes[: self.number]), sizes[self.number]
        if _alike(sizes):
            return [one._replace(idx=one.idx % size) for one in channels]
        return [one._replace(idx=one.idx - start) for one in channels if start <= one.idx < start + size]

    def to_whole(self, channels: Sequence[Any]) -> list[Any]:
        """Return channels of this part, and those that go with them, as channels of the whole."""
        sizes = self.split.split_sizes
        numbers = range(len(sizes)) if _alike(sizes) else [self.number]
        return [one._replace(idx=one.idx + sum(sizes[:number])) for number in numbers for one in channels]


class SplitPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]  # torch-pruning ships no types
    """Counts what is left of each part of a split."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> None:
        """Take channels of the whole from the parts that they are in."""
        sizes = layer.split_sizes or []
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        layer.split_sizes = [
            size - sum(start <= index < start + size for index in idxs)
            for start, size in zip(starts, sizes, strict=True)
        ] or None

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int | None:
        """Return the width of the whole; none where the split is not along channels."""
        return None if layer.split_sizes is None else int(sum(layer.split_sizes))

    get_in_channels = get_out_channels


class PartPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Knows a part's width."""

    def prune_out_channels(self, layer: Part, idxs: Sequence[int]) -> None:
        """Leave it to the split to count."""

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Part) -> int:
        """Return the width of the part."""
        return int(layer.split.split_sizes[layer.number])

    get_in_channels = get_out_channels


def parts_of(split: Node, width: int | None) -> list[Node]:
    """Put a node for each part between a split and those that read it.

    Args:
        split: In a graph as traced.
        width: Of what is split, where known.

    Returns:
        The nodes of the parts; none where the split is not along channels, or its readers cannot be told apart.
    """
    sizes = _sizes_unbound(split, width) if isinstance(split.module, _UnbindOp) else _sizes_of_split(split, width)
    taken = {reader: _parts_taken(reader, split) for reader in split.outputs}
    if not sizes or any(split.outputs.count(reader) != len(numbers) for reader, numbers in taken.items()):
        return []
    split.module.split_sizes = sizes
    parts = [Node(Part(split.module, number), split.grad_fn) for number in range(len(sizes))]
    for part in parts:
        part.add_input(split)
    for reader, numbers in taken.items():
        left = iter(numbers)
        reader.inputs = [parts[next(left)] if one is split else one for one in reader.inputs]
        for number in numbers:
            parts[number].add_output(reader)
    split.outputs = parts
    return parts


def fit_splits(splits: Sequence[Split]) -> None:
    """Let modules that split what was narrowed know the new sizes: attributes that held the old ones, and told them.

    Where no attribute is the size that was told, it was reckoned from one that holds the whole. An attribute that means
    something else and happens to be the number that was told cannot be told apart.
    """
    for split in splits:
        before, after = split.sizes, tuple(split.operation.split_sizes)
        if split.owner is None or after == before:
            continue
        now: dict[Any, Any] = {before: after, sum(before): sum(after)}
        if _alike(before):
            now[before[0]] = after[0]
        held = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vars(split.owner).items()
            if isinstance(value, int)
            or (isinstance(value, (list, tuple)) and all(isinstance(number, int) for number in value))
        }
        told = [name for name, value in held.items() if value in split.told and value in now]
        if not told and before[0] in split.told:
            told = [name for name, value in held.items() if value == sum(before)]
        for name in told:
            setattr(split.owner, name, now[held[name]])


@contextmanager
def owners_of_splits(model: nn.Module) -> Iterator[dict[Any, tuple[nn.Module, frozenset[Any]]]]:
    """Fill a dictionary while the model runs: the autograd node of each split -> the module, and what it told."""
    owners: dict[Any, tuple[nn.Module, frozenset[Any]]] = {}
    with paths_entered(model) as entered:

        class Watch(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
                made = function(*arguments, **(named or {}))
                first = made[0] if isinstance(made, (list, tuple)) and made else None
                if isinstance(first, Tensor) and first.grad_fn is not None and "Split" in first.grad_fn.name():
                    owners[first.grad_fn] = (
                        model.get_submodule(entered[-1]),
                        _numbers((*arguments, *(named or {}).values())),
                    )
                return made

        with Watch():
            yield owners


def _numbers(arguments: Sequence[Any]) -> frozenset[Any]:
    """Return the numbers among arguments, and the sequences of numbers with what they hold."""
    found: set[Any] = set()
    for one in arguments:
        if isinstance(one, int):
            found.add(one)
        elif isinstance(one, (list, tuple)) and all(isinstance(number, int) for number in one):
            found |= {tuple(one), *one}
    return frozenset(found)


def _alike(sizes: Sequence[int]) -> bool:
    return len(set(sizes)) == 1


def _sizes_of_split(split: Node, width: int | None) -> list[int]:
    saved = split.grad_fn
    shape = list(saved._saved_self_sym_sizes)
    dim = saved._saved_dim if saved._saved_dim < len(shape) else saved._saved_dim - 2**64 + len(shape)
    of_channels = (len(shape), dim) == (4, 1) or (dim in (1, len(shape) - 1) and width in (None, shape[dim]))
    if not of_channels:
        return []
    if hasattr(saved, "_saved_split_sizes"):
        return list(saved._saved_split_sizes)
    size = saved._saved_split_size
    return [min(size, shape[dim] - start) for start in range(0, shape[dim], size)]


def _sizes_unbound(split: Node, width: int | None) -> list[int]:
    count = 1 + max(max(_parts_taken(reader, split), default=0) for reader in split.outputs)
    if split.grad_fn._saved_dim != 0 or width is None or width % count:
        return []
    return [width // count] * count


def _parts_taken(reader: Node, split: Node) -> list[int]:
    return [number for before, number in reader.grad_fn.next_functions if before is split.grad_fn]
