"""Naming the innermost module that a tracer cannot follow."""

import inspect
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

Attempt = Callable[[nn.Module, tuple[Any, ...]], object]
"""Traces a module on positional inputs; raises when it cannot."""


def failing_module(module: nn.Module, inputs: tuple[Tensor, ...], attempt: Attempt) -> str:
    """Return the path of the innermost submodule that `attempt` fails on, or an empty string for the module itself.

    Every submodule's inputs are recorded in one ordinary forward; the search then goes down from the root, into the
    first child that fails on its own, until all children of the failing one pass.

    Args:
        module: A module on which `attempt` fails.
        inputs: What to run it on.
        attempt: The tracer.
    """
    recorded = _record_inputs(module, inputs)
    path = ""
    while True:
        failing = next(
            (child for child in called_below(module, path, recorded) if _fails(module, child, recorded, attempt)), None
        )
        if failing is None:
            return path
        path = failing


def called_below(module: nn.Module, path: str, called: Container[str]) -> Iterator[str]:
    """Yield the nearest called submodules below `path`, looking through containers that are never called themselves.

    Args:
        module: The whole.
        path: Of a submodule of it; empty for the whole.
        called: Paths of those that are called.
    """
    for name, _ in module.get_submodule(path).named_children():
        child = f"{path}.{name}".lstrip(".")
        if child in called:
            yield child
        else:
            yield from called_below(module, child, called)


def _fails(module: nn.Module, path: str, recorded: dict[str, tuple[Any, ...]], attempt: Attempt) -> bool:
    try:
        attempt(module.get_submodule(path), recorded[path])
    except Exception:  # whatever the tracer raises is the answer
        return True
    return False


def _positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return inspect.signature(module.forward).bind(*args, **kwargs).args


def _record_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Any, ...]]:
    recorded: dict[str, tuple[Any, ...]] = {}
    path_of = {child: path for path, child in module.named_modules()}

    def record(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.setdefault(path_of[child], _positional(child, args, kwargs))

    with ExitStack() as hooks, torch.no_grad():
        for child in path_of:
            hooks.enter_context(child.register_forward_pre_hook(record, with_kwargs=True))
        module(*inputs)
    return recorded
