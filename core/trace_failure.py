"""Naming the innermost module that a tracer cannot follow."""

from collections.abc import Callable
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
        children = {f"{path}.{name}".lstrip("."): child for name, child in module.get_submodule(path).named_children()}
        failing = next(
            (child for child in children if child in recorded and _fails(module, child, recorded, attempt)), None
        )
        if failing is None:
            return path
        path = failing


def _fails(module: nn.Module, path: str, recorded: dict[str, tuple[Any, ...]], attempt: Attempt) -> bool:
    try:
        attempt(module.get_submodule(path), recorded[path])
    except Exception:  # whatever the tracer raises is the answer
        return True
    return False


def _record_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Any, ...]]:
    recorded: dict[str, tuple[Any, ...]] = {}
    handles = [
        child.register_forward_pre_hook(lambda _, args, path=path: recorded.setdefault(path, args) and None)
        for path, child in module.named_modules()
    ]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return recorded
