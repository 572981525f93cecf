"""Blocks that could be left out whole: they add to what they are given, so that without them the rest still runs.

At batch 1 a node costs microseconds whatever its width, so depth is what time goes by.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.module_paths import is_inside
from core.torch_model import TorchModel, run_once

LEAF = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def residual_blocks(model: TorchModel, ignored: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of the innermost blocks that pass on their input when all their layers are silent.

    Args:
        model: Where to look: among the members of `nn.Sequential` and `nn.ModuleList`.
        ignored: Paths of modules that stay; a block that holds one stays too.

    Raises:
        ToolError: The model does not run.
    """
    candidates = {
        f"{path}.{name}".lstrip("."): child
        for path, parent in model.module.named_modules()
        if isinstance(parent, (nn.Sequential, nn.ModuleList))
        for name, child in parent.named_children()
        if any(isinstance(one, (nn.Linear, nn.modules.conv._ConvNd)) for one in list(child.modules())[1:])
    }
    passing = _passing(model, candidates)
    kept = [path for path in passing if not any(_holds(path, one) or _holds(one, path) for one in ignored)]
    return tuple(path for path in kept if not any(_holds(path, other) for other in kept if other != path))


def passed_over(module: nn.Module, path: str) -> RemovableHandle:
    """Let a block hand on its input until the handle, a context manager, is removed."""
    return module.get_submodule(path).register_forward_hook(lambda module, inputs, output: inputs[0])


def _passing(model: TorchModel, candidates: dict[str, nn.Module]) -> list[str]:
    """Return the candidates whose output is their input, or its positive part, when every layer puts out zeros."""
    passed: dict[str, bool] = {}  # of each candidate that ran: whether every call of it passed on its input

    def silence(module: nn.Module, inputs: Any, output: Any) -> Any:
        return torch.zeros_like(output) if isinstance(output, Tensor) else output

    def note(path: str, inputs: tuple[Any, ...], output: Any) -> None:
        one = inputs[0] if len(inputs) == 1 else None
        passed[path] = passed.get(path, True) and _is_passed_on(one, output)

    for path, block in candidates.items():  # one at a time, so that the others still send it something
        with ExitStack() as hooks:
            for one in block.modules():
                if isinstance(one, LEAF):
                    hooks.enter_context(one.register_forward_hook(silence))
            hooks.enter_context(
                block.register_forward_hook(lambda _, inputs, output, path=path: note(path, inputs, output))
            )
            run_once(model)
    return [path for path, is_passed in passed.items() if is_passed]


def _is_passed_on(given: Any, output: Any) -> bool:
    if not isinstance(given, Tensor) or not isinstance(output, Tensor) or not given.any():
        return False
    return torch.equal(output, given) or torch.equal(output, given.relu())


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or is_inside(inner, outer)
