"""The learning-rate range test (Smith 2017, https://arxiv.org/abs/1506.01186): raise the rate until the loss breaks."""

import logging
import math
from collections.abc import Sequence
from itertools import count

import plotly.graph_objects as go

from compress.training.config import FULL_BATCH_OPTIMIZERS
from compress.training.finetune import FinetuneConfig
from compress.training.speed_trial import choose_execution
from compress.training.step import epoch_batches, prepare_loop, train_mode, train_step
from compress.training.task_losses import labels_loss
from core.compatibility import check_reads
from core.data import Data
from core.errors import ToolError
from core.processes import num_processes
from core.progress import Progress, no_progress
from core.result import Report
from core.torch_model import TorchModel, with_activation

logger = logging.getLogger(__name__)

LOWEST_LR, HIGHEST_LR = 1e-6, 10.0
NUM_STEPS = 100
SMOOTHING = 0.9  # of an exponential average, corrected for its start
BROKEN = 4.0  # times the lowest loss seen
QUIET_STEPS = 10  # at rates too low to change anything: how high they go, the loss goes by chance
SAFETY = 10.0  # the lowest loss comes just before it breaks


class LrRangeReport(Report, frozen=True):
    """What the test saw.

    Attributes:
        suggested_lr: A tenth of the rate at which the smoothed loss was lowest.
        broken_lr: The rate at which the test stopped, since the loss had grown; None where it never did.
        optimizer: Which it holds for.
        batch_size: Which it holds for.
        lrs: Learning rate of each step.
        losses: Smoothed loss of each step.
    """

    suggested_lr: float
    broken_lr: float | None
    optimizer: str
    batch_size: int
    lrs: tuple[float, ...]
    losses: tuple[float, ...]


def lr_range_test(
    model: TorchModel, data: Data, config: FinetuneConfig, *, progress: Progress = no_progress
) -> LrRangeReport:
    """Train a copy of a model at a rate that rises from 1e-6 to 10 over 100 steps, and say which rate to take.

    Args:
        model: What is to be fine-tuned; left untouched.
        data: Its train split is read.
        config: How it is to be fine-tuned; its lr, schedule and epochs are not read.
        progress: Told of every step.

    Raises:
        ToolError: The optimizer searches its own steps, several processes run, the data has no labels, or the model
            cannot read it.
    """
    if config.optimizer in FULL_BATCH_OPTIMIZERS:
        raise ToolError(f"{config.optimizer} searches the length of its steps itself; it has no learning rate")
    if not data.split("train").is_labelled:
        raise ToolError(f"{data.reference} has no labels to train on")
    if num_processes() > 1:
        raise ToolError("the learning-rate range test runs in one process; start it without torchrun")
    check_reads(model, data)
    if config.activation is not None:
        model = with_activation(model, config.activation)
    execution, _ = choose_execution(model, config, NUM_STEPS)
    loop = prepare_loop(model, data.split("train"), config, execution, labels_loss(config))
    train_mode(loop)
    lrs: list[float] = []
    losses: list[float] = []
    average = 0.0
    batches = (batch for epoch in count() for batch in epoch_batches(loop, epoch))
    for index, batch in zip(range(NUM_STEPS), batches, strict=False):
        lr = LOWEST_LR * (HIGHEST_LR / LOWEST_LR) ** (index / (NUM_STEPS - 1))
        for group in loop.optimizer.param_groups:
            group["lr"] = lr
        average = SMOOTHING * average + (1 - SMOOTHING) * float(train_step(loop, batch))
        smoothed = average / (1 - SMOOTHING ** (index + 1))
        if _is_broken(smoothed, losses):
            return _report(config, lrs, losses, broken_lr=lr)
        lrs.append(lr)
        losses.append(smoothed)
        progress("learning-rate range test", index + 1, NUM_STEPS, "steps")
    return _report(config, lrs, losses, broken_lr=None)


def _is_broken(smoothed: float, losses: Sequence[float]) -> bool:
    """Tell whether the loss has grown for good, after those of earlier steps."""
    if not math.isfinite(smoothed) or len(losses) < QUIET_STEPS:
        return not math.isfinite(smoothed)
    return smoothed > BROKEN * min(losses) and smoothed > max(losses[:QUIET_STEPS])


def lr_range_plot(report: LrRangeReport) -> str:
    """Return one HTML page with the loss over the learning rate; it opens offline."""
    figure = go.Figure(go.Scatter(x=report.lrs, y=report.losses, mode="lines", name="smoothed loss"))
    figure.add_vline(report.suggested_lr, line_dash="dash", annotation_text=f"suggested: {report.suggested_lr:.2g}")
    figure.update_layout(
        title=f"Learning-rate range test: {report.optimizer}, batch {report.batch_size}",
        xaxis={"type": "log", "title": "learning rate"},
        yaxis={"title": "training loss, smoothed"},
        template="plotly_white",
    )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _report(
    config: FinetuneConfig, lrs: Sequence[float], losses: Sequence[float], broken_lr: float | None
) -> LrRangeReport:
    if not losses:
        raise ToolError("the loss was not finite at the very first step; look at the data and the model's weights")
    lowest = min(range(len(losses)), key=losses.__getitem__)
    if lowest < QUIET_STEPS:
        logger.warning(
            "the loss fell at no rate: the model has learned this data already, or cannot; the suggestion means little"
        )
    elif broken_lr is None and lowest == len(losses) - 1:
        logger.warning("the loss still fell at %g, the highest rate tried; the suggestion may be too low", lrs[lowest])
    return LrRangeReport(
        stage="find-lr",
        suggested_lr=float(f"{lrs[lowest] / SAFETY:.2g}"),
        broken_lr=broken_lr,
        optimizer=config.optimizer,
        batch_size=config.batch_size,
        lrs=tuple(lrs),
        losses=tuple(losses),
    )
