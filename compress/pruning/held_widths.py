"""Modules that hold a width in an attribute, and use it in their own forward: told the new one where they fail."""

from torch import nn


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
    now = _shapes(narrower)
    for name, shape in _shapes(original).items():
        for old, new in zip(shape, now.get(name, ()), strict=False):  # a block may have been left out
            widths.setdefault(old, set()).add(new)
    told = {}
    for name, value in vars(narrower).items():
        present = widths.get(value, set()) if type(value) is int else set()
        if len(present) == 1 and value not in present:
            told[name] = min(present)
    for name, width in told.items():
        setattr(narrower, name, width)
    return bool(told)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in module.named_parameters() if name.count(".") <= 1}
