"""Remove channels and blocks, to a share, to fewer MACs or parameters, or to a latency measured on ONNX Runtime."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.pruning.attention_check import check_attention
from compress.pruning.batch_norm import re_estimate_batch_norm
from compress.pruning.channel_cut import PRUNED_LAYERS, CutSettings
from compress.pruning.cut_to_target import Cut, cut_to_size, cut_to_speed, size_reach
from compress.pruning.latency_search import SearchStep
from compress.pruning.ranking import RankingConfig, prepare_ranking
from compress.pruning.recurrent_channels import RECURRENT
from core.data import Data
from core.describe import num_macs
from core.errors import GateMissedError, ToolError, require
from core.history import step
from core.measuring import Measuring, SpeedTarget, Timed
from core.predict import accuracy, predict
from core.progress import Progress, no_progress
from core.pruning_plan import architecture, combined, difference
from core.result import Report, Result
from core.torch_model import TorchModel, num_params, torch_digest

logger = logging.getLogger(__name__)

BATCH_NORM_SAMPLES = 2048
TARGETS = ("pruning_ratio", "macs_ratio", "params_ratio", "speedup", "latency_ms")
MEASURED_TARGETS = ("speedup", "latency_ms")
NO_FACTORS = ("latency_ms", "pruning_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig(RankingConfig):
    """What to remove; one of the five targets is given.

    Attributes:
        pruning_ratio: Share of channels to remove, in (0, 1).
        macs_ratio: Factor by which the MACs are to fall, above 1.
        params_ratio: Factor by which the parameters are to fall, above 1.
        speedup: Factor by which the latency on ONNX Runtime is to fall, above 1.
        latency_ms: What the latency on ONNX Runtime is to be, in milliseconds.
        allocation: ``latency`` takes from each layer, and leaves out residual blocks, as damage per measured
            millisecond says; ``global`` ranks the channels of all layers together; ``uniform`` takes the same share
            of each; ``isomorphic`` ranks those of like layers together (Fang et al. 2024, arXiv 2407.04616). None
            takes ``latency`` for a measured target and ``global`` for the others.
        precision: What the file will be deployed in, and is timed in: ``float32`` or ``int8``.
        batch_size: What it is timed at.
        round_to: Keep channel counts at multiples of this; 1 for any count. ``latency`` finds those that are fast by
            itself, among these.
        drop_blocks: Whether ``latency`` may leave out residual blocks whole.
        prune_heads: Whether whole attention heads go, in place of channels of every head; with ``uniform``.
    """

    pruning_ratio: float | None = None
    macs_ratio: float | None = None
    params_ratio: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    allocation: Literal["latency", "global", "uniform", "isomorphic"] | None = None
    precision: Literal["float32", "int8"] = "float32"
    batch_size: int = 1
    round_to: int = 1
    drop_blocks: bool = True
    prune_heads: bool = False

    def __post_init__(self) -> None:
        RankingConfig.__post_init__(self)  # super() does not find its class in one with slots
        given = [name for name in TARGETS if getattr(self, name) is not None]
        require(len(given) == 1, f"give one of {', '.join(TARGETS)}")
        name, value = given[0], getattr(self, given[0])
        if name == "pruning_ratio":
            require(0 < value < 1, f"pruning_ratio is {value}; it must be in (0, 1)")
            require(
                value <= self.max_pruning_ratio,
                f"pruning_ratio is {value}, above max_pruning_ratio {self.max_pruning_ratio}; raise that too",
            )
        elif name == "latency_ms":
            require(value > 0, f"latency_ms is {value}; it must be positive")
        else:
            require(value > 1, f"{name} is {value}; it must be above 1")
        require(
            self.allocation != "latency" or name in MEASURED_TARGETS,
            f"allocation 'latency' goes by speedup or latency_ms, not {name}",
        )
        require(
            not self.prune_heads or self.allocation == "uniform",
            "prune_heads takes the same share of every attention; it needs allocation 'uniform'",
        )
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        require(self.round_to >= 1, f"round_to is {self.round_to}; it must be at least 1")

    @property
    def target(self) -> str:
        """The name of the target that is given."""
        return next(name for name in TARGETS if getattr(self, name) is not None)


class LayerReport(BaseModel, frozen=True):
    """One layer whose number of output channels, or of hidden units, changed."""

    name: str
    channels: int
    channels_left: int


class PruneReport(Report, frozen=True):
    """What pruning removed and what that did.

    Attributes:
        allocation: How it was spread over the layers.
        pruning_ratio: The ratio that torch-pruning was given; None where each layer has its own.
        macs: Multiply-accumulates of one sample before and after.
        params: Parameters before and after.
        macs_ratio: MACs before over MACs after.
        measured_speedup: Latency before over latency after, on ONNX Runtime; None when it was not measured.
        baseline_speedup: The same against the baseline; None without one, or when it was not measured.
        latency_ms: On ONNX Runtime, before and after; None when it was not measured.
        precision: Of what was timed.
        accuracy: On the validation split, in percent: before, right after pruning, and with batch-norm statistics
            re-estimated; None without data, or where that split has no labels.
        layers: The layers that became narrower.
        dropped_blocks: The residual blocks that were left out.
        search: What was tried on the way to a measured target.
    """

    allocation: str
    pruning_ratio: float | None
    macs: tuple[int, int]
    params: tuple[int, int]
    macs_ratio: float
    measured_speedup: float | None
    baseline_speedup: float | None
    latency_ms: tuple[float, float] | None
    precision: str
    accuracy: tuple[float, float, float] | None
    layers: tuple[LayerReport, ...]
    dropped_blocks: tuple[str, ...]
    search: tuple[SearchStep, ...]


def prune(
    model: TorchModel,
    config: PruneConfig,
    *,
    data: Data | None = None,
    measuring: Measuring | None = None,
    baseline: TorchModel | None = None,
    progress: Progress = no_progress,
) -> Result[TorchModel, PruneReport]:
    """Remove channels, and blocks, from a copy of a model; re-estimate batch-norm statistics when data is given.

    Args:
        model: What to prune; left untouched.
        config: What to remove.
        data: Needed by ``latency`` and by importances that look at gradients; train gives gradients and statistics,
            validation the accuracies in the report.
        measuring: Times models and layers where they are to run; needed by a measured target.
        baseline: What factors are counted from, where that is not `model` itself: the unpruned one, say, when pruning
            goes in steps.
        progress: Told of every attempt at a target.

    Raises:
        ToolError: The target is reached already, or is no factor and there is a baseline; a module to ignore does not
            exist; the model cannot be traced, attention computes something else when narrower, or data is needed.
        GateMissedError: The target cannot be reached within `max_pruning_ratio`.
    """
    if baseline is not None and config.target in NO_FACTORS:
        raise ToolError(f"{config.target} is no factor, to be counted from another model; leave out the baseline")
    original, ignored = prepare_ranking(model, config, data)
    allocation = config.allocation or ("latency" if config.target in MEASURED_TARGETS else "global")
    settings = CutSettings(
        importance=config.importance,
        allocation=allocation,
        round_to=config.round_to,
        max_pruning_ratio=config.max_pruning_ratio,
        ignored=ignored,
        seed=config.seed,
        prune_heads=config.prune_heads,
    )
    check_attention(original, model, settings)
    own_ms = _own_ms(model, config, measuring)
    target = _own_target(model, baseline, config, measuring, own_ms)
    cut = _cut(original, model, config, settings, target, own_ms, data, measuring, progress)
    module = cut.module
    module.zero_grad(set_to_none=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(model.module.get_parameter(name).requires_grad)
    layers = _narrower(model.module, module)
    if not layers and not cut.dropped:
        wanted = "target" if cut.ratio is None else f"pruning ratio ({cut.ratio:.3g})"
        raise ToolError(
            f"nothing was removed: raise the {wanted}, lower round_to ({config.round_to}) or ignore less"
            + ("; importance 'bn' needs batch norm" if config.importance == "bn" else "")
        )
    pruned = replace(
        model,
        module=module,
        plan=combined(model.plan, difference(architecture(model.module), architecture(module))),
        history=(
            *model.history,
            step("prune", asdict(config), parent=torch_digest(model), data=data.fingerprint if data else None),
        ),
    )
    timed = cut.timed or (_timed(model, pruned, measuring) if measuring else None)
    if timed is not None and timed.speedup < 1:
        logger.warning(
            "the pruned model runs at %.2fx the speed on ONNX Runtime: give --speedup in place of a share",
            timed.speedup,
        )
    macs = (num_macs(model, model.module), num_macs(model, module))
    from_baseline = _timed(baseline, pruned, measuring) if measuring and baseline else None
    accuracies = _recover(model, pruned, data)
    report = PruneReport(
        stage="prune",
        allocation=allocation,
        pruning_ratio=cut.ratio,
        macs=macs,
        params=(num_params(model.module), num_params(module)),
        macs_ratio=macs[0] / macs[1],
        measured_speedup=timed.speedup if timed else None,
        baseline_speedup=from_baseline.speedup if from_baseline else None,
        latency_ms=(timed.baseline_ms, timed.candidate_ms) if timed else None,
        precision=config.precision,
        accuracy=accuracies,
        layers=layers,
        dropped_blocks=cut.dropped,
        search=cut.search,
    )
    return Result(pruned, report)


def _timed(model: TorchModel, pruned: TorchModel, measuring: Measuring) -> Timed | None:
    """Time a model that has reached its size; where that fails, say why, since the cut is there all the same."""
    try:
        return measuring.models(model, pruned)
    except ToolError as error:
        logger.warning("how fast the pruned model is cannot be measured: %s", error)
        return None


def _cut(
    original: nn.Module,
    model: TorchModel,
    config: PruneConfig,
    settings: CutSettings,
    target: float,
    own_ms: float | None,
    data: Data | None,
    measuring: Measuring | None,
    progress: Progress,
) -> Cut:
    """Cut to the target, a share or a factor of what the model is; where out of reach, say what it is counted from."""
    try:
        if measuring is None or own_ms is None:
            return cut_to_size(original, model, settings, config.target, target, progress)
        return cut_to_speed(
            original,
            model,
            settings,
            SpeedTarget(target, config.latency_ms),
            own_ms,
            data,
            measuring,
            num_samples=config.sensitivity_samples,
            drop_blocks=config.drop_blocks,
            progress=progress,
        )
    except GateMissedError as error:
        asked: float = getattr(config, config.target)
        if config.target == "latency_ms" or asked == target:
            raise
        counted = f"counted from the model as it is, at {asked / target:.2f}x its baseline"
        raise GateMissedError(f"{error} ({counted})", error.tried) from error


def _own_ms(model: TorchModel, config: PruneConfig, measuring: Measuring | None) -> float | None:
    """Return what the model takes as it is; None where the target is not measured."""
    if config.target not in MEASURED_TARGETS:
        return None
    if measuring is None:
        raise ToolError(f"{config.target} is measured, and nothing to measure with was given")
    return measuring.models(model, model).baseline_ms


def _own_target(
    model: TorchModel,
    baseline: TorchModel | None,
    config: PruneConfig,
    measuring: Measuring | None,
    own_ms: float | None,
) -> float:
    """Return the target as a share, or as a factor of what the model itself is."""
    target: float = getattr(config, config.target)
    if config.target == "latency_ms" and own_ms is not None:
        if own_ms <= target:
            raise ToolError(f"the model takes {own_ms:.3g} ms as it is; {target:g} ms asks for nothing to go")
        return own_ms / target
    if baseline is None:
        return target
    if measuring is not None and config.target == "speedup":
        reached = measuring.models(baseline, model).speedup
    else:
        reached = size_reach(config.target, baseline)(model.module)
    if reached >= target:
        raise ToolError(
            f"the model is at {reached:.2f}x its baseline as it is; {config.target} {target:g} asks for nothing to go"
        )
    return target / reached


def _recover(model: TorchModel, pruned: TorchModel, data: Data | None) -> tuple[float, float, float] | None:
    """Re-estimate batch-norm statistics of `pruned` in place; return the validation accuracies before and after."""
    if data is None:
        if any(isinstance(one, _BatchNorm) and one.track_running_stats for one in pruned.module.modules()):
            logger.warning("batch-norm statistics are those of the unpruned model: give --data to re-estimate them")
        return None
    if not data.split("validation").is_labelled:
        re_estimate_batch_norm(pruned.module, data.split("train"), model.preprocessing, BATCH_NORM_SAMPLES)
        return None
    before = accuracy(*predict(model, data, "validation"))
    cut = accuracy(*predict(pruned, data, "validation"))
    re_estimate_batch_norm(pruned.module, data.split("train"), model.preprocessing, BATCH_NORM_SAMPLES)
    return before, cut, accuracy(*predict(pruned, data, "validation"))


def _narrower(original: nn.Module, pruned: nn.Module) -> tuple[LayerReport, ...]:
    after = dict(pruned.named_modules())
    layers = []
    for path, module in original.named_modules():
        if isinstance(module, PRUNED_LAYERS):
            width, left = _width(module), _width(after[path]) if isinstance(after.get(path), PRUNED_LAYERS) else 0
            if 0 < left != width:
                layers.append(LayerReport(name=path, channels=width, channels_left=left))
    return tuple(layers)


def _width(layer: Any) -> int:
    return int(layer.hidden_size if isinstance(layer, RECURRENT) else layer.weight.shape[0])
