"""Whether attention that lost channels computes what it did without them: heads told apart, scores scaled as before.

`compress.pruning.attention_heads` knows attention by the names of its parts. Here it is known by its softmax, whatever
those are called, and a cut of half its channels is compared with silence in the same channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.pruning.attention_heads import split_projections
from compress.pruning.channel_cut import CutSettings, cut_groups
from compress.pruning.channel_groups import ChannelGroup, channel_groups, without
from core.errors import ToolError
from core.module_paths import is_inside, paths_entered
from core.torch_model import TorchModel, run_once

SHARES = (1 / 2, 1 / 3)  # of the channels: what reshapes to heads of a held width runs when whole heads are left
OFF = 1e-3  # of what silence changes: a cut that is further from it computes something else
ROUNDING = 1e-5  # of the answers
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def check_attention(original: nn.Module, model: TorchModel, settings: CutSettings) -> None:
    """Compare a cut of each attention's channels with silence in them.

    Where whole heads go, only attention is looked at whose heads are not known. One that does not run when it is
    narrower is passed over: a cut says so by itself.

    Args:
        original: The model's module, with gradients where the importance needs them; in evaluation mode afterwards.
        model: The model.
        settings: How channels are ranked, and what is ignored.

    Raises:
        ToolError: Some attention computes something else when it is narrower, or torch-pruning cannot follow the
            module.
    """
    settings = replace(settings, max_pruning_ratio=1.0)  # what may go is not in question, and half is cut here
    with _softmaxes(model.module) as attentions:
        run_once(model)
    for narrowed in _in_turn(original, model, settings, list(attentions)):
        if off := _computing_otherwise(original.eval(), model, settings, narrowed):
            raise ToolError(
                f"{model.name} computes something else with fewer channels in {', '.join(off)}: their heads are not "
                "told apart there, or scores are divided by a width that is no longer the same; leave that whole with "
                + " ".join(f"--ignore {path}" for path in off)
            )


def _in_turn(
    original: nn.Module, model: TorchModel, settings: CutSettings, attentions: Sequence[str]
) -> Iterator[dict[str, ChannelGroup]]:
    """Yield a group of channels of each attention that has some left, until there is none.

    Queries with keys, and values, are in turns of their own: a wrong scale would be lost beside values that are silent.
    """
    if not attentions:
        return
    told = _known(original) if settings.prune_heads else set()
    groups = [one for one in channel_groups(original, model, settings) if one.is_exact and not told & {*one.outputs}]
    of_each = [[one for one in groups if _holds(path, one)] for path in attentions]
    for together in zip_longest(*of_each):
        yield {path: group for path, group in zip(attentions, together, strict=True) if group is not None}


def _computing_otherwise(
    original: nn.Module, model: TorchModel, settings: CutSettings, narrowed: Mapping[str, ChannelGroup]
) -> list[str]:
    """Return the paths of the attentions whose group, narrowed, answers otherwise than in silence."""
    share, cut = _that_runs(original, model, settings, list(narrowed.values()))
    if cut is None:
        return []
    whole = replace(model, module=original)
    with _softmaxes(original) as before, ExitStack() as silence:
        answers = run_once(whole)
        for group in narrowed.values():
            silence.enter_context(without(original, group, round(share * group.width)))
        silenced = run_once(whole)
    with _softmaxes(cut) as after:
        gap = (run_once(replace(model, module=cut)) - silenced).norm()
    if gap <= OFF * (silenced - answers).norm() + ROUNDING * silenced.norm():
        return []
    # a softmax over channels: without some of them it differs from one over zeros, and rightly so
    judged = {path: group for path, group in narrowed.items() if before[path][: len(after[path])] == after[path]}
    if len(judged) == len(narrowed) == 1:
        return list(judged)
    parts = [judged] if len(judged) < len(narrowed) else [{path: group} for path, group in judged.items()]
    return [path for part in parts if part for path in _computing_otherwise(original, model, settings, part)]


def _that_runs(
    original: nn.Module, model: TorchModel, settings: CutSettings, groups: Sequence[ChannelGroup]
) -> tuple[float, nn.Module | None]:
    """Return the first share without which the module runs, taken from each group, and what is left of the module."""
    for share in SHARES:
        left = {tuple(one.outputs): (one.width - round(share * one.width) + 0.5) / one.width for one in groups}
        with suppress(ToolError):
            return share, cut_groups(original, model, settings, left)
    return 0.0, None


@contextmanager
def _softmaxes(module: nn.Module) -> Iterator[dict[str, list[int]]]:
    """Fill a dictionary while the module runs: path of each attention -> over how many scores each softmax goes."""
    found: dict[str, list[int]] = {}
    with paths_entered(module) as entered:

        class Watch(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
                named = named or {}
                size = _num_scores(getattr(function, "__name__", ""), arguments, named)
                owner = _owner(module, entered[-1]) if size and entered else ""
                if owner:
                    found.setdefault(owner, []).append(size)
                return function(*arguments, **named)

        with Watch(), torch.no_grad():
            yield found


def _num_scores(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """Return over how many scores a call of a torch function takes the softmax; 0 where it takes none."""
    if name == "scaled_dot_product_attention":
        key: Tensor = arguments[1] if len(arguments) > 1 else named["key"]
        return key.shape[-2]
    if name == "softmax":
        scores: Tensor = arguments[0] if arguments else named["input"]
        dim = arguments[1] if len(arguments) > 1 else named.get("dim")
        return scores.shape[-1 if dim is None else dim]
    return 0


def _owner(module: nn.Module, path: str) -> str:
    """Return the path of the innermost module with layers in it; empty for the whole, which is no attention."""
    while path and not any(isinstance(one, LAYERS) for one in module.get_submodule(path).modules()):
        path = path.rpartition(".")[0]
    return path


def _known(module: nn.Module) -> set[str]:
    """Return the paths of the projections whose heads are known by name."""
    path_of = {one: path for path, one in module.named_modules()}
    return {path_of[layer] for layer in split_projections(module)}


def _holds(path: str, group: ChannelGroup) -> bool:
    return all(is_inside(one, path) for one in group.outputs)
