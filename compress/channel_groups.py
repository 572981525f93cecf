"""Which channels can only go together, and what a model says without some of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.channel_cut import CutSettings, groups_of, pruner_of
from compress.recurrent_channels import RECURRENT, rows_of_units
from core.torch_model import TorchModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Channels that layers share, so that one goes from all of them at once.

    Attributes:
        name: Path of a layer whose output channels they are.
        width: How many there are, in sets of those that go at once.
        outputs: Path of each layer they are output channels of -> its channels for each set.
        inputs: Path of each layer they are input channels of -> its channels for each set.
        order: The sets from the least important to the most, (width,).
        places: For each tensor that makes these channels, its name and, for each of its rows, the set it belongs to;
            -1 where it belongs to none.
    """

    name: str
    width: int
    outputs: dict[str, int]
    inputs: dict[str, int]
    order: Tensor
    places: tuple[tuple[str, Tensor], ...]


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
    with pruner_of(module, model, settings, module) as pruner:
        for group in groups_of(pruner):
            scores = pruner.estimate_importance(group)
            if scores is not None:
                num_sets = len(scores) // pruner._get_channel_groups(group)
                found.append(_group(group, pruner.DG, scores.view(-1, num_sets).mean(0), num_sets))
    return tuple(one for one in found if one.width > 1 and one.outputs)


def _group(group: Any, graph: Any, scores: Tensor, width: int) -> ChannelGroup:
    outputs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    places: list[tuple[str, Tensor]] = []
    for item in group.items:
        module, path = item.dep.target.module, graph._module2name.get(item.dep.target.module)
        if not isinstance(module, nn.Module) or path is None or not list(module.parameters(recurse=False)):
            continue
        if graph.is_out_channel_pruning_fn(item.dep.handler):
            outputs[path] = len(item.idxs) // width
            set_of = torch.full((max(item.idxs) + 1,), -1)  # of each output channel
            set_of[torch.as_tensor(item.idxs)] = torch.as_tensor(item.root_idxs) % width
            places += [(f"{path}.{name}", place) for name, place in _places(module, set_of)]
        else:
            inputs[path] = len(item.idxs) // width
    return ChannelGroup(
        name=next(iter(outputs), ""),
        width=width,
        outputs=outputs,
        inputs=inputs,
        order=scores.argsort(),
        places=tuple(places),
    )


def _places(module: nn.Module, set_of: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that make a layer's outputs, each with the set that each of its rows belongs to."""
    for name, tensor in module.named_parameters(recurse=False):
        if isinstance(module, RECURRENT):
            is_second = name.endswith("_reverse") and len(set_of) > module.hidden_size
            yield name, set_of[rows_of_units(module, name) + is_second * module.hidden_size]
        elif name in ("weight", "bias") and len(tensor) >= len(set_of):
            place = torch.full((len(tensor),), -1)
            place[: len(set_of)] = set_of
            yield name, place


@contextmanager
def without(module: nn.Module, group: ChannelGroup, num_removed: int) -> Iterator[None]:
    """Silence a group's least important sets of channels while the block runs."""
    gone = torch.zeros(group.width, dtype=torch.bool)
    gone[group.order[:num_removed]] = True
    with _changed(module, [name for name, _ in group.places]) as tensors:
        for (_, place), tensor in zip(group.places, tensors, strict=True):
            tensor[(place >= 0) & gone[place.clamp_min(0)]] = 0
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
