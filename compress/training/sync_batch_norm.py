"""Batch norm over the whole batch where several processes share it."""

from typing import Any

import torch
import torch.distributed
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ToolError

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def synchronised_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with every batch-norm layer taking its statistics over all processes.

    On GPUs the layers become torch's own; these do not run on CPUs, where the layers' forward is replaced in place.

    Raises:
        ToolError: A layer computes batch norm in a way of its own.
    """
    for path, one in module.named_modules():
        if isinstance(one, _BatchNorm) and type(one) not in KNOWN:
            raise ToolError(
                f"the batch norm {path!r} is a {type(one).__name__}, which several processes cannot share; train in one"
            )
    if device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    for one in module.modules():
        if isinstance(one, _BatchNorm):
            _synchronise(one)
    return module


def _synchronise(layer: _BatchNorm) -> None:
    own_forward = layer.forward

    def forward(inputs: Tensor) -> Tensor:
        if not layer.training:
            return own_forward(inputs)
        normalised = _normalised(layer, inputs)
        if isinstance(layer, BatchNormAct2d):
            normalised = layer.act(layer.drop(normalised))
        return normalised

    layer.forward = forward  # type: ignore[method-assign, assignment]  # the layer keeps its type for whoever looks


def _normalised(layer: _BatchNorm, inputs: Tensor) -> Tensor:
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = [1, -1, *(1 for _ in axes[1:])]
    values = inputs.float()
    count = torch.full((1,), inputs.numel() / inputs.shape[1], device=inputs.device)
    summed = _over_all_processes(torch.cat((values.sum(axes), count)))
    mean, total = summed[:-1] / summed[-1], summed[-1]
    centred = values - mean.view(shape)
    variance = _over_all_processes(centred.square().sum(axes)) / total  # in two passes: a large mean must not drown it
    _note_statistics(layer, mean.detach(), variance.detach(), total.detach())
    normalised = centred * (variance.view(shape) + layer.eps).rsqrt()
    if layer.affine:
        normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
    result: Tensor = normalised.to(inputs.dtype)
    return result


class _SumOverProcesses(torch.autograd.Function):
    """What each process puts in reaches all of them, and so do their gradients by it."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def _over_all_processes(sums: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(sums)
    return total


def _note_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked or 1)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), share)
