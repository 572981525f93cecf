"""Modules that stay as they are, inputs and outputs, while torch-pruning narrows what is around them.

They need not be traceable, and may keep sizes that they were made with.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compress.pruning.one_operation import as_one_operation


class WholePruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]  # torch-pruning ships no types
    """Knows how wide a module is outside; what would change that is not pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = (0, 0)

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> None:
        """Refuse: no group with such a module in it is pruned."""
        raise AssertionError(f"{type(layer).__name__} is left whole")

    prune_in_channels = prune_out_channels  # one function for both, so that the library counts the inputs as its own

    def get_in_channels(self, _layer: nn.Module) -> int:
        """Return the width of the first input."""
        return self.widths[0]

    def get_out_channels(self, _layer: nn.Module) -> int:
        """Return the width of the first output."""
        return self.widths[1]


def is_layer(module: nn.Module) -> bool:
    """Return whether a module has weights and no modules inside."""
    return not list(module.children()) and bool(list(module.parameters()))


@contextmanager
def left_whole(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[type, WholePruner]]:
    """Let the named modules be one operation each to the tracer, and yield their pruners by class.

    Layers are not meant here: their outputs stay, and their inputs follow.

    Args:
        module: The whole.
        paths: Of modules in it; others are passed over.
    """
    present = dict(module.named_modules())
    chosen = [one for path in paths if (one := present.get(path)) is not None and not is_layer(one)]
    with ExitStack() as undo:
        pruners = {}
        for one in chosen:
            kind = type(one)
            undo.callback(setattr, one, "__class__", kind)
            own: Any = type(kind.__name__, (kind,), {})  # pruners go by class, and others of this kind are pruned
            one.__class__ = own
            pruners[own] = pruner = WholePruner()
            given: list[tuple[Any, ...]] = []
            undo.enter_context(one.register_forward_pre_hook(_detaching(given)))
            undo.enter_context(one.register_forward_hook(_joining(given, pruner)))
        yield pruners


def _detaching(given: list[tuple[Any, ...]]) -> Any:
    def before(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        given.append(inputs)
        return tuple(one.detach() if isinstance(one, Tensor) else one for one in inputs)

    return before


def _joining(given: list[tuple[Any, ...]], pruner: WholePruner) -> Any:
    def after(_module: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> Any:
        inputs = given.pop()
        joined = as_one_operation(inputs, outputs)
        first = [
            next((_width(one) for one in tree_leaves(tree) if isinstance(one, Tensor)), 0) for tree in (inputs, joined)
        ]
        pruner.widths = (first[0], first[1])
        return joined

    return after


def _width(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim == 4 else tensor.shape[-1]
