"""Which channels matter: what ranks them, on what gradients, and what is left out of the ranking."""

import copy
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from core.batches import batches
from core.compatibility import check_reads
from core.data import Data
from core.errors import ToolError, require
from core.module_paths import module_at
from core.outputs import logits_in
from core.torch_model import TorchModel, run_once

GRADIENT_SAMPLES = 512
SQUARED_SAMPLES = 256  # fewer, since each has a backward pass to itself
NEED_GRADIENTS = ("taylor", "hessian")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingConfig:
    """How channels are ranked.

    Attributes:
        importance: Which channels of a layer go first: ``magnitude`` (L2 norm of a channel's weights), ``bn``
            (batch-norm scale, Liu et al. 2017), ``lamp`` (Lee et al. 2021), ``fpgm`` (after He et al. 2019, of squared
            weights), ``taylor`` (first-order change of the loss, Molchanov et al. 2019), ``hessian`` (second-order,
            LeCun et al. 1990), or ``random``.
        max_pruning_ratio: Share of one layer's channels that is never exceeded, in (0, 1]; a residual block that may
            go goes whole.
        ignore: Paths of modules to leave whole, blocks with their inputs; the classifier always is.
        sensitivity_samples: Samples that damage is measured on.
        seed: Seeds the choice among equals.
    """

    importance: Literal["magnitude", "bn", "lamp", "fpgm", "taylor", "hessian", "random"] = "magnitude"
    max_pruning_ratio: float = 0.9
    ignore: tuple[str, ...] = ()
    sensitivity_samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.sensitivity_samples >= 2, f"sensitivity_samples is {self.sensitivity_samples}; it must be at least 2"
        )
        require(0 < self.max_pruning_ratio <= 1, f"max_pruning_ratio is {self.max_pruning_ratio}; it must be in (0, 1]")


def prepare_ranking(model: TorchModel, config: RankingConfig, data: Data | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of the module, with gradients where the importance looks at them, and what is to be left whole.

    Nothing in the copy is frozen: the tracer follows gradients.

    Raises:
        ToolError: A module to ignore does not exist, the classifier cannot be told, the model cannot read the data, or
            the importance needs labelled data and has none.
    """
    module = copy.deepcopy(model.module)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for path in config.ignore:
        module_at(module, path, "ignore")
    if data is not None:
        check_reads(model, data)
    if config.importance in NEED_GRADIENTS:
        _accumulate_gradients(module, model, data, config.importance)
    return module, (*_classifiers(model, config.ignore), *_called(model, config.ignore))


def _classifiers(model: TorchModel, ignore: tuple[str, ...]) -> list[str]:
    """Return the path of the layer that makes the logits: the last one run that is as wide as they are.

    Raises:
        ToolError: There is none, and the user names no module to ignore either.
    """
    order: list[tuple[str, int]] = []
    with ExitStack() as hooks:
        for path, module in model.module.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                hooks.enter_context(
                    module.register_forward_hook(
                        lambda module, _i, _o, path=path: order.append((path, module.weight.shape[0]))
                    )
                )
        num_classes = run_once(model).shape[1]
    last = [path for path, width in order if width == num_classes][-1:]
    if not last and not ignore:
        raise ToolError(
            f"cannot tell which layer of {model.name} makes its {num_classes} logits; name it with --ignore"
        )
    return last


def _called(model: TorchModel, paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths, in place of one that is never called (`nn.ModuleList`) those of its nearest modules that are."""
    path_of = {one: path for path, one in model.module.named_modules()}
    called: set[str] = set()
    with ExitStack() as hooks:
        for one in path_of:
            hooks.enter_context(one.register_forward_pre_hook(lambda one, _: called.add(path_of[one])))
        run_once(model)
    return tuple(one for path in paths for one in _nearest(model.module, path, called))


def _nearest(module: nn.Module, path: str, called: Container[str]) -> Iterator[str]:
    """Yield a path that is called, or else the nearest below it that are, and layers that are never called."""
    below = [name for name, _ in module.get_submodule(path).named_children()]
    if path in called or not below:
        yield path
        return
    for name in below:
        yield from _nearest(module, f"{path}.{name}", called)


def _accumulate_gradients(module: nn.Module, model: TorchModel, data: Data | None, importance: str) -> None:
    """Leave in every parameter what the importance takes for the gradient of the loss over training samples."""
    if data is None:
        raise ToolError(f"importance {importance!r} needs the gradient of the loss on samples; give --data")
    if not data.split("train").is_labelled:
        raise ToolError(f"{data.reference} has no labels, which the gradients of {importance!r} come from")
    module.zero_grad()
    if importance == "hessian":
        _square_gradients(module, model, data)
        return
    for inputs, targets in batches(data.split("train"), model.preprocessing, 64, limit=GRADIENT_SAMPLES):
        torch.autograd.backward(functional.cross_entropy(logits_in(module(*inputs)), targets))


def _square_gradients(module: nn.Module, model: TorchModel, data: Data) -> None:
    """Leave in every parameter the mean of the squared gradients of single samples.

    That is the diagonal of the empirical Fisher information, which stands for the Hessian's; torch-pruning reads it
    where the gradient is, and multiplies it by the squared weights.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    num_samples = 0
    for inputs, targets in batches(data.split("train"), model.preprocessing, 1, limit=SQUARED_SAMPLES):
        loss = functional.cross_entropy(logits_in(module(*inputs)), targets)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for square, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:
                square.addcmul_(gradient, gradient)
        num_samples += 1
    for parameter, square in zip(parameters, squares, strict=True):
        parameter.grad = square / num_samples
