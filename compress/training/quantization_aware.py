"""Quantization-aware training: layers that round their weight and their input as an int8 file does.

Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference. The
gradient passes rounding as if it were not there. Parameters stay as they are, so what is trained exports as ever.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantization.int8_rounding import highest_weight

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
HIGHEST_INPUT = 255


def round_layers(module: nn.Module, *, reduce_range: bool) -> None:
    """Let every convolution and linear layer of a module round from now on, in place.

    Args:
        module: Whose layers round.
        reduce_range: To 7 of 8 bits for weights.
    """
    for layer in list(module.modules()):
        if isinstance(layer, LAYERS):
            rounding = _rounding(layer.__class__, highest_weight(reduce_range=reduce_range))  # type: ignore[arg-type]
            layer.__class__ = rounding  # type: ignore[assignment]


def fake_quantized_weight(weight: Tensor, highest: int) -> Tensor:
    """Return a weight (O, ...) quantized to codes up to `highest`, a scale for each output channel, and dequantized."""
    most = weight.detach().flatten(1).abs().amax(1)
    scale = most.clamp_min(1e-12) / highest
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -highest, highest)


def fake_quantized_input(values: Tensor) -> Tensor:
    """Return activations quantized to uint8 over the range that they have, and dequantized."""
    low, high = values.detach().aminmax()
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    scale = ((high - low) / HIGHEST_INPUT).clamp_min(1e-12)
    zero_point = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, HIGHEST_INPUT)


@cache
def _rounding(kind: type[nn.Module], highest: int) -> type[nn.Module]:
    """Return the class of a layer that rounds; its weight is read rounded, and kept, saved and trained as it is."""

    class Rounding(kind):  # type: ignore[valid-type,misc]
        @property
        def weight(self) -> Tensor:
            return fake_quantized_weight(self._parameters["weight"], highest)

        def forward(self, inputs: Tensor, *rest: Any, **named: Any) -> Any:
            return super().forward(fake_quantized_input(inputs), *rest, **named)

    Rounding.__name__ = f"Rounding{kind.__name__}"
    return Rounding
