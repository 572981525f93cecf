"""Two outputs on the same inputs, compared: errors, signal to noise, and the share of equal classes."""

import math
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from core.answers import LOGITS
from core.errors import ToolError
from core.preprocessing import Tensors
from core.sessions import Array


class Comparison(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """Two outputs (N, ...) on the same inputs; log-probabilities where a model returns probabilities.

    Attributes:
        inputs: What went in: ``batch 7``, or a split's name.
        output: The output's name.
        samples: N.
        max_abs_err: Largest absolute difference of an element.
        excess: Largest |difference| - rtol * |reference|: the least atol that would pass.
        sqnr_db: 10 log10(sum reference^2 / sum difference^2), in dB; infinite when equal.
        agreement: Share of samples with the same highest element, in percent; None for all outputs but the logits.
    """

    inputs: str
    output: str
    samples: int
    max_abs_err: float
    excess: float
    sqnr_db: float
    agreement: float | None


@dataclass(frozen=True, slots=True)
class ComparedOutput:
    """An output of both models, (N, ...) each and in like terms, and the batches that they made it from."""

    comparison: Comparison
    reference: Array
    candidate: Array
    batches: list[Tensors]


def compare(
    inputs: str,
    reference: Array,
    candidate: Array,
    *,
    rtol: float,
    output: str = LOGITS,
    is_first: bool = True,
) -> Comparison:
    """Compare two outputs (N, ...) on the same inputs; the first ones, which are logits, also by their classes.

    Raises:
        ToolError: They differ in shape, or the first have no class axis.
    """
    if reference.shape != candidate.shape:
        raise ToolError(
            f"the candidate returns {candidate.shape} where the reference returns {reference.shape}, as {output!r}"
        )
    if is_first and reference.ndim < 2:
        raise ToolError(f"the models return {reference.shape}; outputs of at least two axes, (N, K), can be compared")
    reference = reference.astype(np.float64)
    difference = difference_of(reference, candidate)
    noise, signal = float(np.square(difference).sum()), float(np.square(reference).sum())
    with np.errstate(invalid="ignore"):
        excess = float((difference - rtol * np.abs(reference)).max())
    return Comparison(
        inputs=inputs,
        output=output,
        samples=len(reference),
        max_abs_err=float(difference.max()),
        excess=excess,
        sqnr_db=sqnr_db(signal, noise),
        agreement=_agreement(reference, candidate) if is_first else None,
    )


def sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), in dB; infinite where there is no noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return math.inf if noise == 0 else float(10 * np.log10(signal / noise))


def difference_of(reference: Array, candidate: Array) -> np.ndarray:
    """Return how far each element is off; NaN where both have the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.abs(candidate.astype(np.float64) - reference)


def _agreement(reference: Array, candidate: Array) -> float:
    """Return the share of equal classes, in percent: one division, so that a limit compares exactly."""
    same = reference.argmax(1) == candidate.argmax(1)
    return 100 * int(same.sum()) / int(same.size)
