"""Hidden units of LSTM and GRU layers as channels that torch-pruning can remove.

Its own LSTM pruner keeps the wrong rows of the gates, and it has none for GRU.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from compress.pruning.one_operation import as_one_operation

RECURRENT = (nn.LSTM, nn.GRU)


class RecurrentPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]  # torch-pruning ships no types
    """Removes hidden units of every layer of an LSTM or a GRU, in both directions alike, or features of its input."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> None:
        """Remove hidden units: output channels `idxs`, of which both directions name the same."""
        gone = {index % layer.hidden_size for index in idxs}
        kept = torch.tensor([unit for unit in range(layer.hidden_size) if unit not in gone])
        for name, tensor in list(layer.named_parameters(recurse=False)):
            rows = torch.cat([kept + gate * layer.hidden_size for gate in range(len(tensor) // layer.hidden_size)])
            _set(layer, name, tensor, _columns_kept(layer, name, tensor, rows, kept))
        layer.hidden_size = len(kept)

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> None:
        """Remove features of the input."""
        kept = torch.tensor(sorted(set(range(layer.input_size)) - set(idxs)))
        for name, tensor in list(layer.named_parameters(recurse=False)):
            if name.startswith("weight_ih_l0"):
                _set(layer, name, tensor, (slice(None), kept))
        layer.input_size = len(kept)

    def get_out_channels(self, layer: Any) -> int:
        """Return the width of the output."""
        return int(layer.hidden_size) * _directions(layer)

    def get_in_channels(self, layer: Any) -> int:
        """Return the width of the input."""
        return int(layer.input_size)

    def get_out_channel_groups(self, layer: Any) -> int:
        """Return how many parts of the output lose the same units."""
        return _directions(layer)


def rows_of_units(layer: Any, name: str) -> Tensor:
    """Return the hidden unit that each row of a parameter belongs to, (rows,)."""
    rows: Tensor = torch.arange(len(layer.get_parameter(name))) % layer.hidden_size
    return rows


@contextmanager
def opaque_recurrence(module: nn.Module) -> Iterator[None]:
    """Let recurrent layers show the tracer one operation each, in place of one for every step."""
    with ExitStack() as hooks:
        for child in module.modules():
            if isinstance(child, RECURRENT):
                hooks.enter_context(
                    child.register_forward_hook(lambda _, inputs, output: as_one_operation(inputs[:1], output))
                )
        yield


def _directions(layer: Any) -> int:
    return 2 if layer.bidirectional else 1


def _columns_kept(layer: Any, name: str, tensor: Tensor, rows: Tensor, kept: Tensor) -> tuple[Any, ...]:
    if tensor.ndim == 1 or name.startswith("weight_ih_l0"):
        return (rows,)
    parts = tensor.shape[1] // layer.hidden_size  # a deeper layer reads both directions of the one before it
    columns = torch.cat([kept + part * layer.hidden_size for part in range(parts)])
    return rows[:, None], columns


def _set(layer: nn.Module, name: str, tensor: Tensor, kept: tuple[Any, ...]) -> None:
    parameter = nn.Parameter(tensor.detach()[kept].clone(), requires_grad=tensor.requires_grad)
    parameter.grad = None if tensor.grad is None else tensor.grad[kept].clone()
    setattr(layer, name, parameter)
