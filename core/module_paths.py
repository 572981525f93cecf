"""Naming the modules inside a model by their paths, such as ``layer3.0.conv1``."""

from torch import nn

from core.errors import ToolError, did_you_mean


def module_at(module: nn.Module, path: str, to_do: str) -> nn.Module:
    """Return the module at a path.

    Args:
        module: Where to look.
        path: As torch names it.
        to_do: What is to be done with it, for the error: ``freeze``, ``ignore``.

    Raises:
        ToolError: There is none; the nearest path is suggested.
    """
    by_path = {known: one for known, one in module.named_modules() if known}
    if path not in by_path:
        raise ToolError(f"there is no module {path!r} to {to_do}.{did_you_mean(path, by_path)}")
    found: nn.Module = by_path[path]
    return found
