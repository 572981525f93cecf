"""Naming the modules inside a model by their paths, such as ``layer3.0.conv1``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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


def is_inside(path: str, module: str) -> bool:
    """Tell whether a path lies within a module, at any depth; a module is not inside itself."""
    return path.startswith(f"{module}.")


@contextmanager
def paths_entered(module: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the modules that run inside one another at this moment, the innermost last.

    Where one fails, the list stays as it was.
    """
    path_of = {one: path for path, one in module.named_modules()}
    entered: list[str] = []

    def enter(one: nn.Module, _: object) -> None:
        entered.append(path_of[one])

    def leave(*_: object) -> None:
        entered.pop()

    with ExitStack() as hooks:
        for one in path_of:
            hooks.enter_context(one.register_forward_pre_hook(enter))
            hooks.enter_context(one.register_forward_hook(leave))
        yield entered
