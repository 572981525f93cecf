"""How right a model is, with how sure one can be, and whether it is worse than the baseline on the same samples."""

import base64
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from bench.intervals import Interval, mcnemar_p, paired_drop_interval, share_interval
from core.predict import accuracy
from core.sessions import FloatArray

ALPHA = 0.05  # a p below this is called a difference

QualityVerdict = Literal["better", "worse", "no difference shown"]


class Quality(BaseModel, frozen=True):
    """Figures on labelled samples, in percent.

    Attributes:
        samples: How many.
        accuracy: Share whose highest logit is the label's (top-1).
        accuracy_interval: Its 95 % interval (Wilson).
        top5_accuracy: Share whose label is among the five highest logits; None for five classes or fewer, and where a
            file returns fewer.
        f1: F1, the mean over classes.
        right: Which samples it gets right, a bit each, packed and in base64; a later report is compared by it.
    """

    samples: int
    accuracy: float
    accuracy_interval: Interval
    top5_accuracy: float | None
    f1: float
    right: str


class AccuracyChange(BaseModel, frozen=True):
    """Accuracy against another's on the same samples.

    Attributes:
        drop: Points of accuracy lost; negative when it is gained.
        drop_interval: Its 95 % interval.
        lost: Samples that only the other gets right.
        won: Samples that only this one gets right.
        mcnemar_p: Probability of disagreements at least as lopsided if both were equally right.
        verdict: ``worse`` or ``better`` where the p is below 0.05.
    """

    drop: float
    drop_interval: Interval
    lost: int
    won: int
    mcnemar_p: float
    verdict: QualityVerdict


class QualityChange(AccuracyChange, frozen=True):
    """A model against the baseline; `agreement` is the share of samples given the same class, in percent."""

    agreement: float


def quality(logits: FloatArray, targets: np.ndarray) -> Quality:
    """Score logits (N, num_classes) against class indices (N,)."""
    num_classes = logits.shape[1]
    right = logits.argmax(axis=1) == targets
    scores, labels = torch.from_numpy(logits), torch.from_numpy(targets)
    has_five = num_classes > 5 and (logits > -np.inf).sum(axis=1).min() >= 5
    top5 = multiclass_accuracy(scores, labels, num_classes, average="micro", top_k=5) if has_five else None
    return Quality(
        samples=len(targets),
        accuracy=accuracy(logits, targets),
        accuracy_interval=share_interval(int(right.sum()), len(targets)),
        top5_accuracy=None if top5 is None else 100 * float(top5),
        f1=100 * float(multiclass_f1_score(scores, labels, num_classes, average="macro")),
        right=base64.b64encode(np.packbits(right).tobytes()).decode(),
    )


def right_samples(found: Quality) -> np.ndarray:
    """Return which samples a model got right: bool (N,)."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(found.right), np.uint8), count=found.samples)
    return bits.astype(bool)


def quality_change(baseline: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> QualityChange:
    """Compare two models' classes on the same samples; all are class indices (N,)."""
    change = accuracy_change(baseline == targets, candidate == targets)
    return QualityChange(**change.model_dump(), agreement=100 * int((baseline == candidate).sum()) / len(targets))


def accuracy_change(before: np.ndarray, after: np.ndarray) -> AccuracyChange:
    """Test whether accuracy changed; both say which of the same samples were got right: bool (N,)."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p = mcnemar_p(lost, won)
    verdict: QualityVerdict = "no difference shown"
    if p < ALPHA:
        verdict = "worse" if lost > won else "better"
    return AccuracyChange(
        drop=100 * (lost - won) / len(before),
        drop_interval=paired_drop_interval(lost, won, len(before)),
        lost=lost,
        won=won,
        mcnemar_p=p,
        verdict=verdict,
    )
