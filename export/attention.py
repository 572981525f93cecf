"""Attention in the two forms that the exporter cannot take, put as one that it can."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While this is entered, scaled_dot_product_attention sees four axes and returns contiguous memory.

    The exporter translates attention of (N, heads, length, width) only, and windows are often an axis more. And torch's
    fused kernel returns transposed memory, which a ``reshape`` after it is traced to rely on, where what the exporter
    replaces it by returns it straight.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, attention in its plain form."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        return _attention(*args, **kwargs or {})


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *others: Any, **named: Any
) -> Tensor:
    attention = functional.scaled_dot_product_attention
    if query.ndim <= 4:
        return _contiguous(attention(query, key, value, attn_mask, *others, **named))
    leading = query.shape[:-3]
    if attn_mask is not None and attn_mask.ndim > 3:
        attn_mask = attn_mask.expand(*leading, *attn_mask.shape[-3:]).flatten(0, -4)
    query, key, value = (one.flatten(0, -4) for one in (query, key, value))
    mixed = _contiguous(attention(query, key, value, attn_mask, *others, **named))
    return mixed.reshape(*leading, *mixed.shape[1:])


def _contiguous(mixed: Tensor) -> Tensor:
    """Copy: what is contiguous when it is traced need not be so once the exporter has replaced the kernel."""
    return mixed.clone(memory_format=torch.contiguous_format)
