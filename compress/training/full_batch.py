"""Optimizers that see all samples at once: L-BFGS and nonlinear conjugate gradient, through SciPy."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from compress.training.config import FULL_BATCH_OPTIMIZERS, TrainConfig
from compress.training.penalties import has_penalty, penalty, weights_of
from compress.training.step import Loop, epoch_batches, loss_of
from core.data import ArraySamples, Split
from core.errors import ToolError
from core.processes import num_processes

logger = logging.getLogger(__name__)

METHODS = {"lbfgs": "L-BFGS-B", "cg": "CG"}
Vector = npt.NDArray[np.float64]


def check_full_batch(split: Split, config: TrainConfig) -> None:
    """Raise `ToolError` where an optimizer that sees all samples at once cannot serve: before the training."""
    if config.optimizer not in FULL_BATCH_OPTIMIZERS:
        return
    if not isinstance(split.samples, ArraySamples):
        raise ToolError(
            f"{config.optimizer} reads all samples several times an iteration, and these are not held in memory but "
            "read anew each time, from disk or as texts; take sgd or adamw"
        )
    if num_processes() > 1:
        raise ToolError(f"{config.optimizer} runs in one process; take sgd or adamw to share the work")


def minimise(loop: Loop, first_iteration: int, after_iteration: Callable[[float], bool]) -> None:
    """Minimise the mean loss of all training samples, leaving the weights in the loop's module.

    Batch norm uses the statistics it has, so that the loss is one function of the weights.

    Args:
        loop: What to train, and on what.
        first_iteration: Iterations that are done already.
        after_iteration: Told the loss after each; returns whether to go on.

    Raises:
        ToolError: The loss is not finite.
    """
    parameters = [one for one in loop.trainee.parameters() if one.requires_grad]

    def value_and_slope(flat: Vector) -> tuple[float, Vector]:
        _set(parameters, flat)
        loop.trainee.zero_grad()
        loss = _whole_loss(loop)
        return loss, _flat([torch.zeros_like(one) if one.grad is None else one.grad for one in parameters])

    def after(intermediate_result: OptimizeResult) -> None:  # SciPy goes by the argument's name
        _set(parameters, intermediate_result.x)
        if not after_iteration(float(intermediate_result.fun)):
            raise StopIteration

    found = minimize(  # type: ignore[call-overload]  # its stubs do not know a callback of this kind beside a gradient
        value_and_slope,
        _flat(parameters),
        jac=True,
        method=METHODS[loop.config.optimizer],
        callback=after,
        options={"maxiter": loop.config.epochs - first_iteration},
    )
    _set(parameters, found.x)
    if found.nit < loop.config.epochs - first_iteration:
        logger.info(
            "%s ended after %d iterations: %s", loop.config.optimizer, first_iteration + found.nit, found.message
        )


def _whole_loss(loop: Loop) -> float:
    """Return the mean loss of all samples and leave its gradient in the parameters."""
    loop.trainee.eval()
    total = 0.0
    for batch in epoch_batches(loop, 0):
        loss = loss_of(loop, batch) * (len(batch.targets) / len(loop.split))
        torch.autograd.backward(loss)
        total += float(loss.detach())
    weights = weights_of(loop.module)
    extra = loop.config.weight_decay / 2 * sum((one.square().sum() for one in weights.values()), torch.zeros(()))
    if has_penalty(loop.config):
        extra = extra + penalty(loop.module, loop.start, loop.config)
    if extra.requires_grad:  # not where all that is left to train are biases
        torch.autograd.backward(extra)
    total += float(extra.detach())
    if not np.isfinite(total):
        raise ToolError(
            f"the training loss became {total} with {loop.config.optimizer}; its line search went too far: take adamw, "
            "or start from a trained model"
        )
    return total


def _flat(tensors: Sequence[Tensor]) -> Vector:
    return torch.cat([one.detach().flatten() for one in tensors]).cpu().double().numpy()


def _set(parameters: Sequence[Tensor], flat: Vector) -> None:
    values = torch.split(torch.from_numpy(flat), [one.numel() for one in parameters])
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value.view_as(parameter))
