"""What pruning changed in an architecture, small enough for JSON and replayed without tracing.

A plan holds, for every module that pruning touched, the attributes that changed (``out_channels``, ``in_features``,
``num_heads``, ...), the new shape of every parameter and buffer that changed, and the blocks that were left out.
Replaying it on the freshly built original gives the pruned architecture; the weights come from the checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from core.errors import ToolError
from core.module_paths import is_inside


class PruningPlan(BaseModel, frozen=True):
    """The difference between an original architecture and its pruned form.

    Attributes:
        attributes: Module path to attribute name to value.
        shapes: Parameter or buffer name to shape.
        dropped: Paths of modules that became `PassOn`.
    """

    attributes: dict[str, dict[str, Any]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dropped: tuple[str, ...] = ()


class PassOn(nn.Module):
    """What stands where a block was left out: it passes on its first input, whatever else it is called with."""

    def forward(self, first: Tensor, *_: object, **__: object) -> Tensor:
        """Return `first`."""
        return first


def architecture(module: nn.Module) -> PruningPlan:
    """Record every plain attribute and every tensor shape of a module."""
    return PruningPlan(
        attributes={path: _plain_attributes(child) for path, child in module.named_modules()},
        shapes={name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
    )


def difference(original: PruningPlan, pruned: PruningPlan) -> PruningPlan:
    """Return the plan that turns the original architecture into the pruned one."""
    attributes = {
        path: {name: value for name, value in after.items() if original.attributes[path].get(name) != value}
        for path, after in pruned.attributes.items()
    }
    gone = {path for path in original.attributes if path not in pruned.attributes}
    return PruningPlan(
        attributes={path: changed for path, changed in attributes.items() if changed},
        shapes={name: shape for name, shape in pruned.shapes.items() if original.shapes[name] != shape},
        dropped=tuple(sorted({parent for path in gone if (parent := path.rpartition(".")[0]) not in gone})),
    )


def combined(earlier: PruningPlan | None, now: PruningPlan) -> PruningPlan:
    """Add what pruning changed now to what it changed earlier: a plan from the source."""
    if earlier is None:
        return now
    dropped = (*earlier.dropped, *now.dropped)
    attributes = {path: values for path, values in earlier.attributes.items() if not _inside(path, dropped)}
    for path, values in now.attributes.items():
        attributes[path] = attributes.get(path, {}) | values
    shapes = {name: shape for name, shape in (earlier.shapes | now.shapes).items() if not _inside(name, dropped)}
    return PruningPlan(attributes=attributes, shapes=shapes, dropped=dropped)


def replay(module: nn.Module, plan: PruningPlan) -> None:
    """Turn the freshly built original into the pruned architecture, in place; changed tensors are left unset.

    Raises:
        ToolError: The module does not have what the plan names.
    """
    drop(module, plan.dropped)
    children = dict(module.named_modules())
    tensors = module.state_dict()
    for path in plan.attributes:
        if path not in children:
            raise _changed_since(f"the module {path!r}")
    for name in plan.shapes:
        if any(size < 0 for size in plan.shapes[name]):
            raise ToolError(f"the pruning plan gives {name!r} the shape {plan.shapes[name]}; the plan is damaged")
        if name not in tensors:
            raise _changed_since(f"the tensor {name!r}")
    for path, attributes in plan.attributes.items():
        for name, value in attributes.items():
            setattr(children[path], name, _as_held(value, getattr(children[path], name, None)))
    for name, shape in plan.shapes.items():
        path, _, leaf = name.rpartition(".")
        _resize(children[path], leaf, shape)


def drop(module: nn.Module, paths: Sequence[str]) -> None:
    """Leave out blocks, in place, wherever the model holds them: each passes on what it is given.

    Raises:
        ToolError: There is none of that path.
    """
    present = dict(module.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in present:
            raise _changed_since(f"the module {path!r}")
        pass_on = PassOn()
        for other in [name for name, one in present.items() if one is present[path]]:
            module.set_submodule(other, pass_on)


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or is_inside(path, block) for block in blocks)


def _changed_since(named: str) -> ToolError:
    return ToolError(
        f"the pruning plan names {named}, which the rebuilt model does not have; its source has changed since"
    )


def _resize(owner: nn.Module, leaf: str, shape: tuple[int, ...]) -> None:
    old = getattr(owner, leaf)
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, new)  # a registered buffer stays one


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if name != "training" and _is_plain(value)
    }


def _as_held(value: Any, held: Any) -> Any:
    """Return a value from a plan, where every sequence is a list, as a tuple unless the original holds a list there."""
    return tuple(value) if isinstance(value, list) and not isinstance(held, list) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, str))
