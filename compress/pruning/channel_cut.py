"""The bridge to torch-pruning: whole channels removed along its dependency graph (DepGraph, Fang et al. 2023).

DepGraph: https://arxiv.org/abs/2301.12900
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import torch
import torch_pruning
from torch import nn

from compress.pruning.attention_heads import fit_attention, split_projections
from compress.pruning.channel_graph import SEEN_WHEN_CALLED, ChannelGraph, ChannelPruner, least_kept
from compress.pruning.held_widths import fit_widths
from compress.pruning.left_whole import is_layer, left_whole
from compress.pruning.recurrent_channels import RECURRENT, RecurrentPruner, opaque_recurrence
from compress.pruning.split_channels import fit_splits
from core.errors import ToolError
from core.pruning_plan import drop
from core.torch_model import ForwardError, TorchModel, example_inputs, forward_once
from core.trace_failure import failing_module

Importance = Callable[[Any], torch.Tensor | None]
"""A torch-pruning group -> the score of each of its channels, (channels,); None where it cannot tell."""

PRUNED_LAYERS = (*SEEN_WHEN_CALLED, *RECURRENT)
PROTECTION = 1e6  # above any score: torch-pruning's are normalised to a mean of 1

IMPORTANCES: dict[str, Callable[[], Importance]] = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "bn": torch_pruning.importance.BNScaleImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "hessian": torch_pruning.importance.GroupHessianImportance,
    "random": torch_pruning.importance.RandomImportance,
}


class WidthNeededError(ToolError):
    """A module does not run with fewer channels.

    Attributes:
        path: Of what is to be left whole for that; empty for the whole model, whose own forward fails.
        cause: What it fails with, and where.
    """

    def __init__(self, name: str, path: str, cause: Exception) -> None:
        self.path = path
        self.cause = cause
        whole = f"--ignore {path}" if path else "--ignore LAYER, of each layer whose channels its own forward counts on"
        super().__init__(f"{name} does not run with fewer channels, {cause}; leave that whole with {whole}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutSettings:
    """What every cut of a model has in common.

    Attributes:
        importance: One of `IMPORTANCES`.
        allocation: Which channels are ranked together: ``global``, ``uniform`` (each layer's own), ``isomorphic``, or
            ``latency``, where each group is told what stays.
        round_to: Channel counts stay multiples of this.
        max_pruning_ratio: Share of a layer's channels that is never exceeded.
        ignored: Paths of modules to leave whole.
        seed: Seeds the choice among equals.
        prune_heads: Whether whole heads of attention go, in place of channels of every head.
    """

    importance: str
    allocation: str
    round_to: int
    max_pruning_ratio: float
    ignored: tuple[str, ...]
    seed: int
    prune_heads: bool = False


def cut_share(original: nn.Module, model: TorchModel, settings: CutSettings, ratio: float) -> nn.Module:
    """Return a copy of the module with this share of its channels removed.

    Args:
        original: The module to cut, with gradients where the importance needs them; left untouched.
        model: The model it is of.
        settings: How to rank.
        ratio: Share of the channels, `max_pruning_ratio` of the settings at most.

    Raises:
        ToolError: torch-pruning cannot follow the module, or some of what is in it does not run when narrower: all of
            that is named.
    """
    return naming_all(model, settings, lambda own: _cut_share(original, model, own, ratio))


def naming_all(model: TorchModel, settings: CutSettings, cut: Callable[[CutSettings], nn.Module]) -> nn.Module:
    """Return what a cut makes; where modules inside do not run when narrower, find all of them first.

    Args:
        model: The model that is cut.
        settings: How.
        cut: Cuts, given settings that may leave more whole.

    Raises:
        ToolError: As `cut`; what does not run is named at once.
    """
    try:
        return cut(settings)
    except WidthNeededError as error:
        first = error
    found = [first.path]
    with suppress(ToolError):  # of another kind, which comes up again when what was found is left whole
        while "" not in found:
            try:
                cut(replace(settings, ignored=(*settings.ignored, *found)))
                break
            except WidthNeededError as error:
                found += [error.path] if error.path not in found else [""]
    others = [path for path in dict.fromkeys(found) if path]
    if len(others) < 2:
        raise first
    raise ToolError(
        f"{model.name} does not run with fewer channels in {', '.join(others)}, {first.cause}; leave that whole with "
        + " ".join(f"--ignore {path}" for path in others)
    ) from first


def _cut_share(original: nn.Module, model: TorchModel, settings: CutSettings, ratio: float) -> nn.Module:
    module = copy_with_gradients(original)
    heads = {
        layer: _least_of_heads(ratio, count, settings.max_pruning_ratio)
        for layer, count in split_projections(module).items()
    }
    _step(
        module,
        model,
        settings,
        original,
        pruning_ratio=ratio,
        prune_num_heads=settings.prune_heads,
        prune_head_dims=not settings.prune_heads,
        head_pruning_ratio_dict=heads if settings.prune_heads else None,
    )
    return module


def _least_of_heads(ratio: float, count: int, max_pruning_ratio: float) -> float:
    """Return a share that torch-pruning, which rounds up, takes for the nearest number of heads that leaves enough."""
    return (min(round(ratio * count), count - least_kept(count, max_pruning_ratio)) - 0.5) / count


def cut_groups(
    original: nn.Module,
    model: TorchModel,
    settings: CutSettings,
    left: Mapping[tuple[str, ...], float],
    dropped: Sequence[str] = (),
) -> nn.Module:
    """Return a copy of the module with each named group narrowed to a share of its width, and whole blocks left out.

    Args:
        original: As for `cut_share`.
        model: As for `cut_share`.
        settings: How to rank; what the shares may be was settled when they were chosen.
        left: Paths of the layers whose outputs a group is -> the share of its channels that stays.
        dropped: Paths of blocks that pass on what they are given.

    Raises:
        ToolError: torch-pruning cannot follow the module.
        WidthNeededError: What is left does not run.
    """
    module = copy_with_gradients(original)
    drop(module, dropped)
    present = dict(module.named_modules())
    ratios = {}
    for paths, share in left.items():
        layer = next((present[path] for path in paths if isinstance(present.get(path), PRUNED_LAYERS)), None)
        if layer is not None:
            ratios[layer] = 1 - share
    if ratios:
        own = replace(settings, allocation="uniform", round_to=1, max_pruning_ratio=1.0)
        _step(module, model, own, original, pruning_ratio=0.0, pruning_ratio_dict=ratios)
    return module.eval()


def copy_with_gradients(original: nn.Module) -> nn.Module:
    """Return a copy of a module that has its gradients too."""
    module = copy.deepcopy(original)
    for parameter, source in zip(module.parameters(), original.parameters(), strict=True):
        parameter.grad = None if source.grad is None else source.grad.clone()
    return module


@contextmanager
def pruner_of(
    module: nn.Module, model: TorchModel, settings: CutSettings, original: nn.Module, **more: Any
) -> Iterator[Any]:
    """Yield torch-pruning's pruner of a module that is `original`, or a copy of it.

    Raises:
        ToolError: torch-pruning cannot follow the module, there or in what is done with the pruner.
    """
    present = dict(module.named_modules())
    importance = IMPORTANCES[settings.importance]()

    def protecting(group: Any) -> torch.Tensor | None:
        scores = importance(group)
        if scores is None:
            return None
        return _protect(scores, pruner._get_channel_groups(group), settings.max_pruning_ratio)

    try:
        with left_whole(module, settings.ignored) as whole:
            with opaque_recurrence(module):
                pruner = ChannelPruner(
                    module,
                    example_inputs(model, 2),
                    importance=protecting,
                    global_pruning=settings.allocation != "uniform",
                    isomorphic=settings.allocation == "isomorphic",
                    max_pruning_ratio=settings.max_pruning_ratio,
                    ignored_layers=[present[path] for path in settings.ignored if path in present],
                    round_to=settings.round_to,
                    # the library's defaults are one mutable dictionary that all pruners of a process would share
                    in_channel_groups={},
                    out_channel_groups={},
                    num_heads=split_projections(module),
                    root_module_types=list(PRUNED_LAYERS),
                    customized_pruners={kind: RecurrentPruner() for kind in RECURRENT} | whole,
                    **more,
                )
            _require_followed(pruner, model)
            yield pruner
    except ToolError:
        raise
    except Exception as error:
        raise _cannot_follow(original, model, error) from error


def _step(module: nn.Module, model: TorchModel, settings: CutSettings, original: nn.Module, **more: Any) -> None:
    torch.manual_seed(settings.seed)
    with pruner_of(module, model, settings, original, **more) as pruner:
        for layer, ratio in more.get("pruning_ratio_dict", {}).items():  # the library takes only kinds it knows
            pruner._layer_to_scope.setdefault(layer, (f"own {id(layer)}", [layer]))
            pruner.pruning_ratio_dict.setdefault(layer, pruner.iterative_pruning_ratio_scheduler(ratio, 1))
        for group in pruner.step(interactive=True):
            if len(group):  # a low ratio may leave a group with nothing to take
                group.prune()
        fit_splits(pruner.DG.splits)
        heads = dict(pruner.num_heads)
    fit_attention(original, module, heads, lambda whole: whole(*example_inputs(model, 2)))
    _run_narrower(module, model, settings, original)


def _run_narrower(module: nn.Module, model: TorchModel, settings: CutSettings, original: nn.Module) -> None:
    """Run the module once, and let those inside that fail know their widths."""
    told: set[str] = set()
    runs = False
    while not runs:
        try:
            forward_once(replace(model, module=module.eval()))
            runs = True
        except ForwardError as error:
            path = error.path
            if path in told or not fit_widths(original.get_submodule(path), module.get_submodule(path)):
                raise _needs_its_width(original, model, settings, error) from error
            told.add(path)


def _require_followed(pruner: Any, model: TorchModel) -> None:
    """Raise `ToolError` where the graph lacks a layer, or is wrong about channels that are to go together."""
    unseen = [str(pruner.DG._module2name[layer]) for layer in pruner.DG.unseen]
    if unseen:
        raise ToolError(
            f"{model.name} uses the weights of {', '.join(unseen)} without calling them, where torch-pruning does not "
            "see it; leave that whole with "
            + " ".join(f"--ignore {path}" for path in dict.fromkeys(one.rpartition(".")[0] or one for one in unseen))
        )
    lost = [group for group in groups_of(pruner) if not pruner.is_followed(group)]
    if lost:
        raise ToolError(
            f"torch-pruning loses track of the channels of {model.name} that come from "
            f"{', '.join(root_of(pruner, group) for group in lost)}; leave them whole with "
            + " ".join(f"--ignore {root_of(pruner, group)}" for group in lost)
        )


def groups_of(pruner: Any) -> Iterator[Any]:
    """Yield the groups of channels that a pruner may narrow; those of attention from where heads are told apart."""
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        of_attention, _ = pruner._is_atten_group(group)
        found = pruner._downstream_node_as_root_if_attention(group) if of_attention else group
        if found is not None:
            yield found


def root_of(pruner: Any, group: Any) -> str:
    """Return the path of a layer that makes the channels of a group; empty where none can be narrowed."""
    makes = pruner.DG.is_out_channel_pruning_fn
    layers = (item.dep.target.module for item in group.items if makes(item.dep.handler))
    first = next((one for one in layers if isinstance(one, PRUNED_LAYERS)), None)
    return str(pruner.DG._module2name[first]) if first is not None else ""


def _needs_its_width(
    original: nn.Module, model: TorchModel, settings: CutSettings, error: ForwardError
) -> WidthNeededError:
    """Return the error that names the module that fails when it is narrower, and what keeps it as it is."""
    path = error.path
    while path and (path in settings.ignored or is_layer(original.get_submodule(path))):
        path = path.rpartition(".")[0]  # ignoring a layer alone keeps only its outputs
    return WidthNeededError(model.name, path, error)


def _cannot_follow(original: nn.Module, model: TorchModel, error: Exception) -> ToolError:
    """Return the error that names the module that torch-pruning cannot follow, and what to do."""
    where = failing_module(original, example_inputs(model, 2), _trace)
    if not where:
        return ToolError(
            f"torch-pruning cannot follow {model.name}: {error}; what its own forward does cannot be ignored, but what "
            "is a module of its own can"
        )
    return ToolError(
        f"torch-pruning cannot follow {model.name} in its module {where!r}: {error}; leave it whole with "
        f"--ignore {where}"
    )


def _protect(scores: torch.Tensor, num_groups: int, max_pruning_ratio: float) -> torch.Tensor:
    """Put the most important channels of a group out of reach, so that no layer loses more than its share.

    torch-pruning checks that share before a step only, and one step may take a whole layer.

    Args:
        scores: Of each channel, (num_groups * sets,).
        num_groups: Of which one channel each goes at once, as with the heads of attention.
        max_pruning_ratio: The share.
    """
    grouped = scores.clone().view(num_groups, -1)
    grouped[:, grouped.mean(0).topk(least_kept(grouped.shape[1], max_pruning_ratio)).indices] += PROTECTION
    return grouped.flatten()


def _trace(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Trace a submodule alone, with inputs that carry a gradient as they do inside the whole."""
    tracked = tuple(
        one.detach().requires_grad_(one.is_floating_point()).clone() if isinstance(one, torch.Tensor) else one
        for one in inputs
    )
    pruners = {kind: RecurrentPruner() for kind in RECURRENT}
    with redirect_stdout(StringIO()), opaque_recurrence(module):
        ChannelGraph().build_dependency(module, tracked, customized_pruners=pruners)
