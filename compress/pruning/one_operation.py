"""Modules that the tracer sees as one operation each, whatever happens inside."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def as_one_operation(inputs: Sequence[Any], outputs: Any) -> Any:
    """Return the same outputs as if one operation had made them from the inputs.

    Args:
        inputs: Of a module; those that are no tensors do not count.
        outputs: Of the module: a tensor, or tensors in tuples, lists and dictionaries.
    """
    tensors = [one for one in inputs if isinstance(one, Tensor)]
    leaves, structure = tree_flatten(outputs)
    made = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    replaced = _OneOperation.apply(len(tensors), *tensors, *(leaves[index].detach() for index in made))
    for index, leaf in zip(made, replaced, strict=True):
        leaves[index] = leaf
    return tree_unflatten(leaves, structure)


class _OneOperation(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.clone() for one in tensors[num_inputs:])
