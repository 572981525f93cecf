"""Attention under pruning: channels go from all heads alike, or whole heads go, and the module is told what is left.

Known by the names that timm, torchvision and transformers give: a count of heads, beside the projections that are split
among them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from core.module_paths import paths_entered

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
FUSED = {"qkv": 3, "kv": 2, "to_qkv": 3}  # a projection that makes several at once -> how many
APART = (
    *("q", "k", "v", "query", "key", "value"),
    *("q_proj", "k_proj", "v_proj", "query_proj", "key_proj", "value_proj"),
    *("to_q", "to_k", "to_v", "q_lin", "k_lin", "v_lin", "wq", "wk", "wv"),
)
HEAD_WIDTHS = ("head_dim", "dim_head", "attention_head_size", "d_head")
WIDTHS = ("attn_dim", "all_head_size", "inner_dim", "all_head_dim")
QUERIES = ("qkv", "to_qkv", "q", "query", "q_proj", "query_proj", "to_q", "q_lin", "wq")


def split_projections(module: nn.Module) -> dict[nn.Module, int]:
    """Return the projections whose outputs are split among heads -> among how many."""
    return {layer: heads for _, _, heads, layers in _attentions(module) for layer, _ in layers}


def fit_attention(
    original: nn.Module, module: nn.Module, heads: Mapping[nn.Module, int], run: Callable[[nn.Module], object]
) -> None:
    """Let attention modules that a cut made narrower know their widths, and compute what they did.

    What divides its scores by the root of the present width would, when narrower, divide by less: its queries make up
    for that.

    Args:
        original: The whole, before the cut.
        module: The whole, after it.
        heads: The projections -> how many heads each has now.
        run: Runs a whole once.
    """
    present, narrower = dict(module.named_modules()), []
    for path, attention, before, layers in _attentions(original):
        old, parts = layers[0]
        name = next(name for name, layer in attention.named_children() if layer is old)
        layer: Any = present.get(f"{path}.{name}".lstrip("."))  # none where a block was left out
        if layer is None or layer not in heads or layer.weight.shape == old.weight.shape:
            continue
        width, count = layer.weight.shape[0] // parts, heads[layer]
        _set_attributes(present[path], count, width)
        ratio = (width / count) / (old.weight.shape[0] // parts / before)
        if ratio != 1:
            narrower.append((path, ratio))
    for path in _scaled_by_width(original, [path for path, _ in narrower], run):
        _scale_queries(module.get_submodule(path), dict(narrower)[path] ** 0.5)


def _set_attributes(attention: nn.Module, count: int, width: int) -> None:
    now = dict.fromkeys(COUNTS, count) | dict.fromkeys(HEAD_WIDTHS, width // count) | dict.fromkeys(WIDTHS, width)
    for name in vars(attention).keys() & now.keys():
        setattr(attention, name, now[name])


def _scaled_by_width(original: nn.Module, paths: list[str], run: Callable[[nn.Module], object]) -> set[str]:
    """Return those attention modules whose scores are divided by the root of whatever width they have."""
    found: set[str] = set()
    if not paths:
        return found
    with paths_entered(original) as entered, torch.no_grad():

        class Watch(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
                named = named or {}
                if function is functional.scaled_dot_product_attention and named.get("scale") is None:
                    found.update([path for path in reversed(entered) if path in paths][:1])
                return function(*arguments, **named)

        with Watch():
            run(original)
    return found


@torch.no_grad()
def _scale_queries(attention: nn.Module, factor: float) -> None:
    norm = getattr(attention, "q_norm", None)
    if isinstance(norm, nn.Module) and list(norm.parameters()):
        for parameter in norm.parameters():
            parameter.mul_(factor)
        return
    name = next(name for name in QUERIES if isinstance(getattr(attention, name, None), nn.Module))
    for parameter in attention.get_submodule(name).parameters():
        parameter[: len(parameter) // FUSED.get(name, 1)].mul_(factor)


def _attentions(module: nn.Module) -> Iterator[tuple[str, nn.Module, int, list[tuple[Any, int]]]]:
    """Yield each attention's path, module, count of heads, and projections, each with how many it makes at once."""
    names = FUSED | dict.fromkeys(APART, 1)
    for path, child in module.named_modules():
        heads = next((count for name in COUNTS if isinstance(count := getattr(child, name, None), int)), 0)
        layers = [
            (layer, parts)
            for name, parts in names.items()
            if isinstance(layer := getattr(child, name, None), (nn.Linear, nn.Conv2d)) and heads
        ]
        if layers and all(layer.weight.shape[0] % (heads * parts) == 0 for layer, parts in layers):
            yield path, child, heads, layers
