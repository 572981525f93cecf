"""Batch norm over the whole batch where several processes share it; torch's own does so on GPUs only."""

import torch
import torch.distributed.nn.functional as all_processes
from torch import Tensor, nn


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every batch-norm layer take its statistics over all processes, in place."""
    for one in module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            _synchronise(one)


def _synchronise(layer: nn.modules.batchnorm._BatchNorm) -> None:
    own_forward = layer.forward

    def forward(inputs: Tensor) -> Tensor:
        if not layer.training:
            return own_forward(inputs)
        return _normalised(layer, inputs)

    layer.forward = forward  # type: ignore[method-assign, assignment]  # the layer stays what it is for whoever looks at its type


def _normalised(layer: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = [1, -1, *(1 for _ in axes[1:])]
    values = inputs.float()
    count = torch.full((1,), inputs.numel() / inputs.shape[1], device=inputs.device)
    sums = torch.cat((values.sum(axes), values.square().sum(axes), count))
    total: Tensor = all_processes.all_reduce(sums)  # type: ignore[no-untyped-call]
    num_channels = inputs.shape[1]
    mean = total[:num_channels] / total[-1]
    variance = total[num_channels:-1] / total[-1] - mean.square()
    _note_statistics(layer, mean.detach(), variance.detach(), total[-1].detach())
    normalised = (values - mean.view(shape)) * (variance.view(shape) + layer.eps).rsqrt()
    if layer.affine:
        normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
    result: Tensor = normalised.to(inputs.dtype)
    return result


def _note_statistics(layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked or 1)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), share)
