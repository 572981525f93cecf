"""Modules that hold a width in an attribute, and use it in their own forward: told the new one where they fail."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def fit_widths(original: nn.Module, narrower: nn.Module) -> bool:
    """Set attributes of a module to the widths that it has now, in place.

    An attribute counts as a width where it is that of a tensor of the module itself or of a layer directly inside, and
    all that were as wide are now equally narrow.

    Args:
        original: Before a cut.
        narrower: The same module after it.

    Returns:
        Whether any was set.
    """
    widths: dict[int, set[int]] = {}
    for before, after in zip(_tensors(original), _tensors(narrower), strict=True):
        for old, new in zip(before.shape, after.shape, strict=True):
            widths.setdefault(old, set()).add(new)
    held: dict[str, Any] = {
        name: value for name, value in vars(narrower).items() if type(value) is int and value in widths
    }
    changed = {
        name: min(widths[value])
        for name, value in held.items()
        if len(widths[value]) == 1 and value not in widths[value]
    }
    for name, width in changed.items():
        setattr(narrower, name, width)
    return bool(changed)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for one in (module, *module.children()):
        yield from one.parameters(recurse=False)
