"""Which channels can only go together, and what a model says without some of them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compress.pruning.channel_cut import CutSettings, copy_with_gradients, groups_of, pruner_of, root_of
from compress.pruning.recurrent_channels import RECURRENT, rows_of_units
from core.torch_model import TorchModel

logger = logging.getLogger(__name__)

EXACT = (nn.Linear, nn.Embedding, nn.PReLU, _NormBase, _ConvNd, *RECURRENT)
"""Layers that answer the same for a channel whatever the others are, unlike a norm over them."""
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # which need not have parameters


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group's channels are in a parameter.

    Attributes:
        name: Of the parameter.
        axis: Of it, along which they lie.
        set_of: The set that each index of that axis belongs to; -1 where it belongs to none, (indices,).
    """

    name: str
    axis: int
    set_of: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Channels that layers share, so that one goes from all of them at once.

    Attributes:
        name: Path of a layer whose output channels they are.
        width: How many there are, in sets of those that go at once.
        outputs: Path of each layer they are output channels of -> its channels for each set.
        inputs: Path of each layer they are input channels of -> its channels for each set.
        order: The sets from the least important to the most, (width,).
        places: Of each tensor that makes these channels.
        is_exact: Whether a cut answers as silence does, as far as layers go: there is no norm over these channels.
    """

    name: str
    width: int
    outputs: dict[str, int]
    inputs: dict[str, int]
    order: Tensor
    places: tuple[Place, ...]
    is_exact: bool


def channel_groups(module: nn.Module, model: TorchModel, settings: CutSettings) -> tuple[ChannelGroup, ...]:
    """Return the groups that may be narrowed.

    Args:
        module: The model's module, with gradients where the importance needs them.
        model: The model.
        settings: How channels are ranked, and what is ignored.

    Raises:
        ToolError: torch-pruning cannot follow the module.
    """
    torch.manual_seed(settings.seed)
    found = []
    # of a copy, since what a module keeps of its run may hold on to the graph
    with pruner_of(copy_with_gradients(module), model, settings, module) as pruner:
        for group in groups_of(pruner):
            scores = pruner.estimate_importance(group)
            if scores is not None:
                num_sets = len(scores) // pruner._get_channel_groups(group)
                found.append(_group(group, pruner.DG, scores.view(-1, num_sets).mean(0), num_sets))
            elif root := root_of(pruner, group):
                logger.info("%s keeps its width: torch-pruning has no score for its channels", root)
    return tuple(one for one in found if one.width > 1 and one.outputs)


def _group(group: Any, graph: Any, scores: Tensor, width: int) -> ChannelGroup:
    outputs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    places: list[Place] = []
    is_exact = True
    for item in group.items:
        module, path = item.dep.target.module, graph._module2name.get(item.dep.target.module)
        is_output = graph.is_out_channel_pruning_fn(item.dep.handler)
        is_exact &= isinstance(module, EXACT) or not (_has_parameters(module) or isinstance(module, NORMS))
        if not isinstance(module, nn.Module) or path is None or not _has_parameters(module):
            continue
        if is_output:
            outputs[path] = len(item.idxs) // width
            set_of = torch.full((max(item.idxs) + 1,), -1)  # of each output channel
            set_of[torch.as_tensor(item.idxs)] = torch.as_tensor(item.root_idxs) % width
            places += [replace(place, name=f"{path}.{place.name}") for place in _places(module, set_of)]
        else:
            inputs[path] = len(item.idxs) // width
    return ChannelGroup(
        name=next(iter(outputs), ""),
        width=width,
        outputs=outputs,
        inputs=inputs,
        order=scores.argsort(),
        places=tuple(places),
        is_exact=is_exact,
    )


def _has_parameters(one: Any) -> bool:
    """Return whether a node of the graph is a parameter, or a module that holds some itself."""
    return isinstance(one, nn.Parameter) or (isinstance(one, nn.Module) and bool(list(one.parameters(recurse=False))))


def _places(module: nn.Module, set_of: Tensor) -> Iterator[Place]:
    """Yield where the parameters of a layer hold its outputs, given the set that each of these belongs to."""
    for name, tensor in module.named_parameters(recurse=False):
        axis = _axis_of_outputs(module) if tensor.ndim > 1 else 0
        if isinstance(module, RECURRENT):
            is_second = name.endswith("_reverse") and len(set_of) > module.hidden_size
            yield Place(name, 0, set_of[rows_of_units(module, name) + is_second * module.hidden_size])
        elif name in ("weight", "bias") and tensor.shape[axis] >= len(set_of):
            yield Place(name, axis, functional.pad(set_of, (0, tensor.shape[axis] - len(set_of)), value=-1))


def _axis_of_outputs(module: nn.Module) -> int:
    """Return along which axis of its weight a layer's outputs lie."""
    is_transposed = isinstance(module, _ConvNd) and module.transposed and module.groups == 1
    return 1 if is_transposed or isinstance(module, nn.Embedding) else 0  # depthwise, inputs are outputs


@contextmanager
def without(module: nn.Module, group: ChannelGroup, num_removed: int) -> Iterator[None]:
    """Silence a group's least important sets of channels while the block runs."""
    gone = torch.zeros(group.width, dtype=torch.bool)
    gone[group.order[:num_removed]] = True
    with _changed(module, [place.name for place in group.places]) as tensors:
        for place, tensor in zip(group.places, tensors, strict=True):
            silent = (place.set_of >= 0) & gone[place.set_of.clamp_min(0)]
            tensor.index_fill_(place.axis, silent.nonzero().flatten(), 0)
        yield


@contextmanager
def _changed(module: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Yield parameters to write on; put back what they were."""
    tensors = [module.get_parameter(name).data for name in names]
    before = [tensor.clone() for tensor in tensors]
    try:
        yield tensors
    finally:
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)
