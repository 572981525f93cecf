"""How a model stands images that are not as clean as the test split's: common corruptions, and a small attack.

Two models that score alike on clean images need not be alike: what compression cost may show only off the clean split.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from bench.corruptions import CORRUPTIONS, CorruptedSamples, Corruption
from core.batches import loader, raised
from core.compatibility import preprocessing_of
from core.data import Data, Split, spread
from core.errors import ToolError, require
from core.machine import package_versions
from core.model import Model, model_digest
from core.outputs import logits_in
from core.predict import Logits, accuracy, fixed_batch_of, logits_of, predict
from core.preprocessing import Preprocessing, model_input, normalise
from core.progress import Progress, no_progress
from core.result import Report
from core.torch_model import TorchModel

SEVERITIES = (1, 3, 5)  # of the field's 1 to 5


class CorruptedAccuracy(BaseModel, frozen=True):
    """One model under one corruption.

    Attributes:
        corruption: Its name.
        severity: 1 to 5.
        accuracy: Top-1, in percent.
        drop: Points below the same model on clean images; negative when it gained.
    """

    corruption: Corruption
    severity: int
    accuracy: float
    drop: float


class CorruptionRow(BaseModel, frozen=True):
    """One model.

    Attributes:
        name: The model.
        sha256: Digest of the file, or of a torch model's architecture and weights.
        clean_accuracy: Top-1 on the images as they are, in percent.
        mean_accuracy: Mean over all corruptions and severities, in percent.
        mean_drop: Points that the mean lies below the clean accuracy.
        corrupted: Each corruption at each severity, in the same order for every model.
    """

    name: str
    sha256: str
    clean_accuracy: float
    mean_accuracy: float
    mean_drop: float
    corrupted: tuple[CorruptedAccuracy, ...]


class CorruptionReport(Report, frozen=True):
    """Models in the order they were given, and what they were shown."""

    data: str
    split: str
    samples: int
    severities: tuple[int, ...]
    seed: int
    provider: str
    versions: dict[str, str]
    rows: tuple[CorruptionRow, ...]


class AttackRow(BaseModel, frozen=True):
    """One model under the attack.

    Attributes:
        name: The model.
        sha256: Digest of the file, or of a torch model's architecture and weights.
        is_transfer: Whether the images were crafted on another model than this. An attack on the model's own gradients
            could hurt more, so the accuracy of such a row flatters.
        clean_accuracy: Top-1 on the images as they are, in percent.
        attacked_accuracy: Top-1 on the adversarial images, in percent.
        drop: Points between the two.
    """

    name: str
    sha256: str
    is_transfer: bool
    clean_accuracy: float
    attacked_accuracy: float
    drop: float


class AttackReport(Report, frozen=True):
    """Models in the order they were given, and what they were attacked with.

    Attributes:
        epsilon: Size of the step, as a share of the pixel range.
        source: The model the images were crafted on; its row says how well the attack works where it must.
        rows: The models.
    """

    attack: Literal["fgsm"] = "fgsm"
    epsilon: float
    data: str
    split: str
    samples: int
    provider: str
    versions: dict[str, str]
    source: AttackRow
    rows: tuple[AttackRow, ...]


def measure_corruptions(
    models: Sequence[Model],
    data: Data,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    severities: Sequence[int] = SEVERITIES,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = no_progress,
) -> CorruptionReport:
    """Measure accuracy under common corruptions, after Hendrycks and Dietterich 2019 (arXiv 1903.12261).

    Images are corrupted at the size the model takes, before they are normalised, so models of one size see the very
    same images. Their mean over corruptions is plain, as for CIFAR-10-C, not relative to another network's.

    Args:
        models: What to measure; an ONNX file must say how images become its input.
        data: Images.
        split: Split to measure on.
        limit: Most images, spread evenly over the split; None for all.
        batch_size: Images a run.
        seed: Seeds the noise and the shifts.
        severities: Which of 1 to 5.
        provider: Where ONNX files run.
        threads: Threads of an ONNX session; 0 takes the cores this process may use.
        progress: Told of every pass over the images.

    Raises:
        ToolError: The data are not images, a model cannot read them, or a value is out of range.
    """
    _check(models, data, split, limit, batch_size)
    require(seed >= 0, f"seed is {seed}; it must not be negative")
    require(
        bool(severities) and all(severity in range(1, 6) for severity in severities),
        f"severities is {tuple(severities)}; give one or more of 1 to 5",
    )
    cells = [(corruption, severity) for corruption in CORRUPTIONS for severity in severities]
    shown = [data, *(_corrupted(data, split, corruption, severity, seed) for corruption, severity in cells)]
    rows = []
    for index, model in enumerate(models):
        measured = []
        for position, disturbed in enumerate(shown):
            progress("corruptions", index * len(shown) + position, len(models) * len(shown), "passes")
            logits, targets = predict(
                model, disturbed, split, batch_size=batch_size, limit=limit, provider=provider, threads=threads
            )
            measured.append(accuracy(logits, targets))
        rows.append(_corruption_row(model, cells, measured[0], measured[1:]))
    progress("corruptions", len(models) * len(shown), len(models) * len(shown), "passes")
    return CorruptionReport(
        stage="corruptions",
        data=data.reference,
        split=split,
        samples=len(_chosen(data, split, limit)),
        severities=tuple(severities),
        seed=seed,
        provider=provider,
        versions=package_versions(),
        rows=tuple(rows),
    )


def measure_fgsm(
    models: Sequence[Model],
    source: TorchModel,
    data: Data,
    *,
    epsilon: float = 2 / 255,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 256,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = no_progress,
) -> AttackReport:
    """Measure accuracy under the fast gradient sign method (Goodfellow et al. 2014, arXiv 1412.6572).

    An .onnx file has no gradients, so the adversarial images are crafted once, on a torch model, and shown to every
    model: for all but the source a transfer attack, which says that a model falls with its source, not that it stands
    where an attack on its own gradients would hit it.

    Args:
        models: What to measure; their inputs are fitted as the source's.
        source: The torch model whose gradients the images are crafted with.
        data: Images.
        epsilon: Size of the step, as a share of the pixel range: 2/255 is two grey levels.
        split: Split to measure on.
        limit: Most images, spread evenly over the split; None for all.
        batch_size: Images a run.
        provider: Where ONNX files run; gradients are torch's, on the CPU.
        threads: Threads of an ONNX session; 0 takes the cores this process may use.
        progress: Told of every batch.

    Raises:
        ToolError: The data are not images, a model cannot read them or takes another size than the source, the source
            gives no gradient, or a value is out of range.
    """
    _check(models, data, split, limit, batch_size)
    require(0 <= epsilon <= 1, f"epsilon is {epsilon}; it is a share of the pixel range, 0 to 1")
    for model in models:
        _check_fitted_alike(model, source, data)
    measured: list[Model] = [source, *models]
    clean = [
        accuracy(*predict(model, data, split, batch_size=batch_size, limit=limit, provider=provider, threads=threads))
        for model in measured
    ]
    runs = [_chunked(logits_of(model, provider=provider, threads=threads), fixed_batch_of(model)) for model in measured]
    chosen = _chosen(data, split, limit)
    logits: list[list[Tensor]] = [[] for _ in measured]
    for adversarial in _crafted(source, chosen, _common_batch(measured, batch_size), epsilon, progress):
        for model, run, found in zip(measured, runs, logits, strict=True):
            found.append(run(model_input((adversarial,), preprocessing_of(model, data))))
    attacked = [accuracy(torch.cat(found).numpy(), chosen.labels().numpy()) for found in logits]
    rows = [_attack_row(model, source, *both) for model, *both in zip(measured, clean, attacked, strict=True)]
    return AttackReport(
        stage="attack",
        epsilon=epsilon,
        data=data.reference,
        split=split,
        samples=len(chosen),
        provider=provider,
        versions=package_versions(),
        source=rows[0],
        rows=tuple(rows[1:]),
    )


def fgsm(module: nn.Module, images: Tensor, targets: Tensor, preprocessing: Preprocessing, epsilon: float) -> Tensor:
    """Move every pixel by `epsilon` in the direction that raises the loss: x + epsilon * sign(dL/dx), clipped.

    The gradient is taken through the normalisation, by the raw pixels. Where it underflows to 0, as for an image that
    the module is extremely sure of, the pixel stays.

    Args:
        module: In evaluation mode: inputs (N, C, H, W) -> logits (N, K).
        images: Raw and fitted, (N, C, H, W) uint8.
        targets: Their true classes, int64 (N,).
        preprocessing: How they become the module's inputs.
        epsilon: Size of the step, as a share of the pixel range.

    Returns:
        (N, C, H, W) float32 from 0 to 255; whole numbers where 255 * epsilon is one.
    """
    pixels = images.to(torch.float32, copy=True).requires_grad_()
    with torch.enable_grad():
        logits = logits_in(module(*normalise((pixels,), preprocessing)))
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return (pixels.detach() + 255 * epsilon * gradient.sign()).clamp(0, 255)


def _corrupted(data: Data, name: str, corruption: Corruption, severity: int, seed: int) -> Data:
    split = data.split(name)
    changed: dict[str, Any] = {
        name: replace(split, samples=CorruptedSamples(split.samples, corruption, severity, seed))
    }
    return replace(data, **changed)


def _crafted(source: TorchModel, split: Split, batch_size: int, epsilon: float, progress: Progress) -> Iterator[Tensor]:
    """Yield the split's images in order, batch by batch, as `fgsm` moves them."""
    module = copy.deepcopy(source.module).eval().requires_grad_(False)
    done = 0
    for batch in raised(loader(split, source.preprocessing, batch_size), split):
        progress("fgsm", done, len(split), "images")
        try:
            adversarial = fgsm(module, batch.samples[0], batch.targets, source.preprocessing, epsilon)
        except RuntimeError as error:
            raise ToolError(
                f"{source.name} gives no gradient by its input, which the attack follows: {error}; "
                "craft the images on another torch model"
            ) from error
        yield adversarial
        done += len(batch.targets)
    progress("fgsm", done, len(split), "images")


def _check(models: Sequence[Model], data: Data, split: str, limit: int | None, batch_size: int) -> None:
    require(len(models) > 0, "there are no models to measure; give at least one")
    require(limit is None or limit >= 1, f"limit is {limit}; it must be at least 1")
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    require(split in ("train", "validation", "test"), f"split is {split!r}; it is train, validation or test")
    if data.kind != "image":
        raise ToolError(f"{data.reference} holds samples that are not images; robustness is measured on images only")


def _check_fitted_alike(model: Model, source: TorchModel, data: Data) -> None:
    """Check that the images crafted for `source` are those that `model` would be shown."""
    for field in ("image_size", "channels", "crop_ratio", "interpolation"):
        taken = getattr(preprocessing_of(model, data), field)
        crafted = getattr(source.preprocessing, field)
        if taken != crafted:
            raise ToolError(
                f"{model.name} takes images of {field} {taken}, the attack's source {source.name} of {crafted}; "
                "craft the attack on a model that reads the same images"
            )


def _chosen(data: Data, split: str, limit: int | None) -> Split:
    """Return the samples that `predict` runs over."""
    whole = data.split(split)
    return whole if limit is None else whole.take(spread(len(whole), limit))


def _common_batch(models: Sequence[Model], batch_size: int) -> int:
    """Return the batch size near `batch_size` that every fixed batch divides."""
    unit = math.lcm(*(fixed_batch_of(model) or 1 for model in models))
    return max(1, batch_size // unit) * unit


def _chunked(run: Logits, chunk: int | None) -> Logits:
    if chunk is None:
        return run
    return lambda inputs: torch.cat(
        [run(part) for part in zip(*(torch.split(one, chunk) for one in inputs), strict=True)]
    )


def _corruption_row(
    model: Model, cells: Sequence[tuple[Corruption, int]], clean: float, measured: Sequence[float]
) -> CorruptionRow:
    mean = float(np.mean(measured))
    return CorruptionRow(
        name=model.name,
        sha256=model_digest(model),
        clean_accuracy=clean,
        mean_accuracy=mean,
        mean_drop=clean - mean,
        corrupted=tuple(
            CorruptedAccuracy(corruption=corruption, severity=severity, accuracy=found, drop=clean - found)
            for (corruption, severity), found in zip(cells, measured, strict=True)
        ),
    )


def _attack_row(model: Model, source: TorchModel, clean: float, attacked: float) -> AttackRow:
    sha256 = model_digest(model)
    return AttackRow(
        name=model.name,
        sha256=sha256,
        is_transfer=sha256 != model_digest(source),
        clean_accuracy=clean,
        attacked_accuracy=attacked,
        drop=clean - attacked,
    )
