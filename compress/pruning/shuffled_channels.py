"""Channel shuffles (ShuffleNet, Zhang et al. 2017): a view as groups, the two axes swapped, and a view back.

torch-pruning takes them for operations that leave channels where they are. Paper: https://arxiv.org/abs/1707.01083
"""

from collections.abc import Sequence
from typing import Any

import torch_pruning
from torch_pruning.dependency import Node


class Shuffle:
    """A shuffle of `width` channels in `groups`: every group loses the same of its channels."""

    def __init__(self, width: int, groups: int) -> None:
        self.width = width
        self.groups = groups

    def forwards(self, channels: Sequence[Any]) -> list[Any]:
        """Return where channels are after the shuffle, with those that go with them."""
        places = [(one, one.idx % (self.width // self.groups)) for one in channels]
        return [one._replace(idx=place * self.groups + group) for group in range(self.groups) for one, place in places]

    def backwards(self, channels: Sequence[Any]) -> list[Any]:
        """Return where channels were before the shuffle, with those that go with them."""
        size = self.width // self.groups
        return [
            one._replace(idx=group * size + one.idx // self.groups) for group in range(self.groups) for one in channels
        ]


class ShufflePruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]  # torch-pruning ships no types
    """Counts what is left of the channels that are shuffled."""

    def prune_out_channels(self, layer: Shuffle, idxs: Sequence[int]) -> None:
        """Take channels away."""
        layer.width -= len(idxs)

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Shuffle) -> int:
        """Return how many channels there are."""
        return layer.width

    get_in_channels = get_out_channels


def shuffle_at(node: Node) -> Shuffle | None:
    """Return the shuffle whose last step, the view back, a node of a graph as traced is."""
    shape = list(getattr(node.grad_fn, "_saved_self_sym_sizes", ()))
    before = _only_input(node)
    if before is not None and "Clone" in before.grad_fn.name():
        before = _only_input(before)
    if before is None or len(shape) != 5 or "Transpose" not in before.grad_fn.name():
        return None
    if {before.grad_fn._saved_dim0, before.grad_fn._saved_dim1} != {1, 2}:
        return None
    return Shuffle(width=shape[1] * shape[2], groups=shape[2])


def _only_input(node: Node) -> Node | None:
    return node.inputs[0] if len(node.inputs) == 1 else None
