"""What a file returns of a sample, its logits, probabilities or most probable classes, and how two kinds are compared.

Everything that scores, teaches or compares reads logits (N, K). A log-probability is a logit less a constant of its
sample, so one form serves all: softmax gives the same probabilities, argmax the same class. What a file that returns
its k most probable classes does not return is minus infinity.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

LOGITS, PROBABILITIES = "logits", "probabilities"
LEAST = 1e-30  # of a probability: below it float32 counts in ever coarser steps

FloatArray = npt.NDArray[np.float32]


def top_k(returns: str) -> int | None:
    """Return k of ``top-k``, or None for anything else."""
    found = re.fullmatch(r"top-([1-9]\d*)", returns)
    return int(found[1]) if found else None


def is_known(returns: str) -> bool:
    """Tell whether this is a way to answer: ``logits``, ``probabilities`` or ``top-5`` with any number."""
    return returns in (LOGITS, PROBABILITIES) or top_k(returns) is not None


def as_logits(outputs: Sequence[np.ndarray], returns: str, num_classes: int) -> FloatArray:
    """Read what a file returns as logits (N, K).

    Args:
        outputs: Logits (N, K), probabilities (N, K), or probabilities (N, k) and their classes (N, k).
        returns: Which of them.
        num_classes: K, which only ``top-k`` leaves open.
    """
    if returns == LOGITS:
        return outputs[0]
    logits: FloatArray = np.log(np.maximum(outputs[0], np.float32(LEAST)))
    if top_k(returns) is None:
        return logits
    whole = np.full((len(logits), num_classes), -np.inf, np.float32)
    np.put_along_axis(whole, outputs[1], logits, axis=1)
    return whole


def in_like_terms(
    reference: FloatArray, candidate: FloatArray, returns: tuple[str, str]
) -> tuple[FloatArray, FloatArray]:
    """Bring two models' logits (N, K) to what can be compared element by element.

    Two models that return logits stay as they are. Else both become log-probabilities, which tell small probabilities
    as finely as large ones, so that limits on logits serve. A class that ``top-k`` leaves out is at most as probable as
    the last one returned: it takes the other model's value, capped at that bound.

    Args:
        reference: As `as_logits` gives them.
        candidate: Likewise.
        returns: What the reference and the candidate return.
    """
    if returns == (LOGITS, LOGITS):
        return reference, candidate
    both = [
        np.maximum(log_softmax(one, axis=1), np.float32(np.log(LEAST))) if kind == LOGITS else one
        for one, kind in zip((reference, candidate), returns, strict=True)
    ]
    missing = [one == -np.inf for one in both]
    least = [np.where(gone, np.inf, one).min(1, keepdims=True) for one, gone in zip(both, missing, strict=True)]
    bounds = [np.nextafter(one, np.float32(-np.inf)) for one in least]  # below what was returned, for argmax
    unknown = missing[0] & missing[1]
    first = np.where(missing[0], np.minimum(both[1], bounds[0]), both[0])
    second = np.where(missing[1], np.minimum(both[0], bounds[1]), both[1])
    return np.where(unknown, bounds[0], first), np.where(unknown, bounds[0], second)
