"""Remove whole channels with torch-pruning's dependency graph (DepGraph, Fang et al. 2023, arXiv 2301.12900)."""

import copy
import logging
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any, Literal

import torch
import torch_pruning
from pydantic import BaseModel
from torch import nn
from torch.nn import functional

from compress.batch_norm import re_estimate_batch_norm
from core.data import Data, batches
from core.describe import num_macs
from core.errors import GateMissedError, ToolError, require
from core.history import step
from core.module_paths import module_at
from core.predict import accuracy, check_reads, predict
from core.progress import Progress, no_progress
from core.pruning_plan import PruningPlan, architecture, difference
from core.result import Report, Result
from core.torch_model import TorchModel, example_inputs, num_params, run_once, torch_digest
from core.trace_failure import failing_module

logger = logging.getLogger(__name__)

MeasureSpeedup = Callable[[TorchModel, TorchModel], float]
"""Speedup of the second model over the first, measured on ONNX Runtime."""

Importance = Callable[[Any], torch.Tensor | None]
"""A torch-pruning group -> the score of each of its channels, (channels,); None where it cannot tell."""

PROTECTION = 1e6  # above any score: torch-pruning's are normalised to a mean of 1
TAYLOR_SAMPLES = 512
BATCH_NORM_SAMPLES = 2048
BISECTION_STEPS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """What to remove.

    Attributes:
        pruning_ratio: Share of channels to remove, in (0, 1). Give this or `speedup`.
        speedup: Factor by which the MACs are to fall, above 1.
        importance: ``magnitude`` (L2 norm of a channel's weights), ``taylor`` (first-order change of the loss,
            Molchanov et al. 2019; needs data) or ``bn`` (batch-norm scale, Liu et al. 2017).
        allocation: ``global`` ranks the channels of all layers together; ``uniform`` takes the same share of each.
        round_to: Keep channel counts at multiples of this; 1 for any count.
        max_pruning_ratio: Share of one layer's channels that is never exceeded, in (0, 1].
        ignore: Paths of modules to leave whole; the classifier always is.
        seed: Seeds the choice among equals.
    """

    pruning_ratio: float | None = None
    speedup: float | None = None
    importance: Literal["magnitude", "taylor", "bn"] = "magnitude"
    allocation: Literal["global", "uniform"] = "global"
    round_to: int = 1
    max_pruning_ratio: float = 0.9
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        require((self.pruning_ratio is None) != (self.speedup is None), "give one of pruning_ratio and speedup")
        require(
            self.pruning_ratio is None or 0 < self.pruning_ratio < 1,
            f"pruning_ratio is {self.pruning_ratio}; it must be in (0, 1)",
        )
        require(self.speedup is None or self.speedup > 1, f"speedup is {self.speedup}; it must be above 1")
        require(self.round_to >= 1, f"round_to is {self.round_to}; it must be at least 1")
        require(0 < self.max_pruning_ratio <= 1, f"max_pruning_ratio is {self.max_pruning_ratio}; it must be in (0, 1]")


class LayerReport(BaseModel, frozen=True):
    """One layer whose number of output channels changed."""

    name: str
    channels: int
    channels_left: int


class PruneReport(Report, frozen=True):
    """What pruning removed and what that did.

    Attributes:
        pruning_ratio: The ratio that torch-pruning was given.
        macs: Multiply-accumulates of one sample before and after.
        params: Parameters before and after.
        macs_ratio: MACs before over MACs after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        accuracy: On the validation split, in percent: before, right after pruning, and with batch-norm statistics
            re-estimated; None without data.
        layers: The layers that became narrower.
    """

    pruning_ratio: float
    macs: tuple[int, int]
    params: tuple[int, int]
    macs_ratio: float
    measured_speedup: float | None
    accuracy: tuple[float, float, float] | None
    layers: tuple[LayerReport, ...]


def prune(
    model: TorchModel,
    config: PruneConfig,
    *,
    data: Data | None = None,
    measure_speedup: MeasureSpeedup | None = None,
    progress: Progress = no_progress,
) -> Result[TorchModel, PruneReport]:
    """Remove channels from a copy of a model; re-estimate batch-norm statistics when data is given.

    Args:
        model: What to prune; left untouched.
        config: What to remove.
        data: Needed by ``taylor``; train gives gradients and statistics, validation the accuracies in the report.
        measure_speedup: Measures the pruned model against the original.
        progress: Told of every attempt at a MACs target.

    Raises:
        ToolError: A module to ignore does not exist, the model cannot be traced, or importance needs data.
        GateMissedError: The MACs target cannot be reached within `max_pruning_ratio`.
    """
    original = copy.deepcopy(model.module)
    for path in config.ignore:
        module_at(original, path, "ignore")
    ignored = [*_classifiers(model, config.ignore), *config.ignore]
    if data is not None:
        check_reads(model, data)
        if not data.split("train").is_labelled:
            raise ToolError(f"{data.reference} has no labels, from which accuracies and gradients come; drop --data")
    if config.importance == "taylor":
        _accumulate_gradients(original, model, data)
    if config.pruning_ratio is not None:
        ratio, module = config.pruning_ratio, _pruned(original, model, config, config.pruning_ratio, ignored)
    else:
        assert config.speedup is not None
        ratio, module = _prune_to_macs(original, model, config, config.speedup, ignored, progress)
    module.zero_grad(set_to_none=True)
    before = architecture(model.module)
    pruned = replace(
        model,
        module=module,
        plan=_combined(model.plan, before, module),
        history=(
            *model.history,
            step("prune", asdict(config), parent=torch_digest(model), data=data.fingerprint if data else None),
        ),
    )
    accuracies = _recover(model, pruned, data)
    macs = (num_macs(model, model.module), num_macs(model, module))
    if not _narrower(model.module, module):
        raise ToolError(
            f"nothing was removed: raise the pruning ratio ({ratio:.3g}), lower round_to ({config.round_to}) or "
            "ignore less" + ("; importance 'bn' needs batch norm" if config.importance == "bn" else "")
        )
    speedup = measure_speedup(model, pruned) if measure_speedup else None
    if speedup is not None and speedup < 1:
        logger.warning("the pruned model runs at %.2fx the speed on ONNX Runtime: try --round-to 8 or 16", speedup)
    report = PruneReport(
        stage="prune",
        pruning_ratio=ratio,
        macs=macs,
        params=(num_params(model.module), num_params(module)),
        macs_ratio=macs[0] / macs[1],
        measured_speedup=speedup,
        accuracy=accuracies,
        layers=_narrower(model.module, module),
    )
    return Result(pruned, report)


def _pruned(
    original: nn.Module, model: TorchModel, config: PruneConfig, ratio: float, ignored: Iterable[str]
) -> nn.Module:
    """Return a copy of the module with this share of its channels removed."""
    module = copy.deepcopy(original)
    for parameter, source in zip(module.parameters(), original.parameters(), strict=True):
        parameter.grad = None if source.grad is None else source.grad.clone()
    inputs = example_inputs(model, 2)
    torch.manual_seed(config.seed)
    try:
        pruner = torch_pruning.pruner.BasePruner(
            module,
            inputs,
            importance=_protecting(_IMPORTANCE[config.importance](), config.max_pruning_ratio),
            global_pruning=config.allocation == "global",
            pruning_ratio=min(ratio, config.max_pruning_ratio),  # more would reach into what is protected
            max_pruning_ratio=config.max_pruning_ratio,
            ignored_layers=[module.get_submodule(path) for path in ignored],
            round_to=config.round_to if config.round_to > 1 else None,
            # the library's defaults are one mutable dictionary that all pruners of a process would share
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
    except Exception as error:
        where = failing_module(original, inputs, _trace)
        raise ToolError(
            f"torch-pruning cannot follow {model.name} in its module {where or '(root)'!r}: {error}; "
            f"leave it whole with --ignore {where or 'MODULE'}"
        ) from error
    module.eval()
    run_once(replace(model, module=module))
    return module


def _protecting(importance: Importance, max_pruning_ratio: float) -> Importance:
    """Put the most important channels of every group out of reach, so that no layer loses more than its share.

    torch-pruning checks that share before a step only, and one step may take a whole layer.
    """

    def estimate(group: Any) -> torch.Tensor | None:
        scores = importance(group)
        if scores is None:
            return None
        num_kept = max(1, round((1 - max_pruning_ratio) * len(scores)))
        protected = scores.clone()
        protected[scores.topk(num_kept).indices] += PROTECTION
        return protected

    return estimate


def _prune_to_macs(
    original: nn.Module,
    model: TorchModel,
    config: PruneConfig,
    speedup: float,
    ignored: list[str],
    progress: Progress,
) -> tuple[float, nn.Module]:
    """Bisect the pruning ratio for the least cut that divides the MACs by at least `speedup`."""
    macs = num_macs(model, original)
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module] | None = None
    closest = 1.0
    for attempt in range(BISECTION_STEPS):
        middle = (low + high) / 2
        module = _pruned(original, model, config, middle, ignored)
        reached = macs / num_macs(model, module)
        closest = max(closest, reached)
        if reached >= speedup:
            high, best = middle, (middle, module)
        else:
            low = middle
        progress("prune", attempt + 1, BISECTION_STEPS, "attempts")
    if best is None:
        raise GateMissedError(
            f"{speedup}x fewer MACs is out of reach: {closest:.2f}x is the closest within "
            f"max_pruning_ratio {config.max_pruning_ratio}; raise that or ignore fewer modules"
        )
    return best


def _classifiers(model: TorchModel, ignore: tuple[str, ...]) -> list[str]:
    """Return the path of the layer that makes the logits: the last one run that is as wide as they are.

    Raises:
        ToolError: There is none, and the user names no module to ignore either.
    """
    order: list[tuple[str, int]] = []
    handles = [
        module.register_forward_hook(lambda module, _i, _o, path=path: order.append((path, module.weight.shape[0])))
        for path, module in model.module.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    try:
        num_classes = run_once(model).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    last = [path for path, width in order if width == num_classes][-1:]
    if not last and not ignore:
        raise ToolError(
            f"cannot tell which layer of {model.name} makes its {num_classes} logits; name it with --ignore"
        )
    return last


def _accumulate_gradients(module: nn.Module, model: TorchModel, data: Data | None) -> None:
    """Leave in every parameter the gradient of the loss over training samples."""
    if data is None:
        raise ToolError("importance 'taylor' needs the gradient of the loss on samples; give --data")
    module.zero_grad()
    for inputs, targets in batches(data.split("train"), model.preprocessing, 64, limit=TAYLOR_SAMPLES):
        torch.autograd.backward(functional.cross_entropy(module(inputs), targets))


def _recover(model: TorchModel, pruned: TorchModel, data: Data | None) -> tuple[float, float, float] | None:
    """Re-estimate batch-norm statistics of `pruned` in place; return the validation accuracies before and after."""
    if data is None:
        return None
    before = accuracy(*predict(model, data, "validation"))
    cut = accuracy(*predict(pruned, data, "validation"))
    re_estimate_batch_norm(pruned.module, data.split("train"), model.preprocessing, BATCH_NORM_SAMPLES)
    return before, cut, accuracy(*predict(pruned, data, "validation"))


def _combined(earlier: PruningPlan | None, before: PruningPlan, module: nn.Module) -> PruningPlan:
    """Add what pruning changed now to what it changed earlier; both are measured from the source."""
    now = difference(before, architecture(module))
    if earlier is None:
        return now
    attributes = {path: dict(values) for path, values in earlier.attributes.items()}
    for path, values in now.attributes.items():
        attributes[path] = attributes.get(path, {}) | values
    return PruningPlan(attributes=attributes, shapes=earlier.shapes | now.shapes)


def _narrower(original: nn.Module, pruned: nn.Module) -> tuple[LayerReport, ...]:
    after = dict(pruned.named_modules())
    layers = []
    for path, module in original.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            width, left = module.weight.shape[0], after[path].weight.shape[0]
            if width != left:
                layers.append(LayerReport(name=path, channels=width, channels_left=left))
    return tuple(layers)


def _trace(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Trace a submodule alone, with inputs that carry a gradient as they do inside the whole."""
    tracked = tuple(
        one.detach().requires_grad_(one.is_floating_point()) if isinstance(one, torch.Tensor) else one for one in inputs
    )
    with redirect_stdout(StringIO()):
        torch_pruning.DependencyGraph().build_dependency(module, example_inputs=tracked)


_IMPORTANCE: dict[str, Callable[[], Importance]] = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "bn": torch_pruning.importance.BNScaleImportance,
}
