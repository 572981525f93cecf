"""What a comparison must keep to, and which of that it misses."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from export.comparison import ComparedOutput, Comparison, difference_of, sqnr_db
from export.shared_inputs import WHOLE

FLOAT_ATOL, FLOAT_RTOL = 1e-4, 1e-3
SQNR_DB = {"int4": 10.0, "int8": 10.0, "bfloat16": 20.0, "float16": 35.0}


def limits_of(given: Mapping[str, float | None], precision: str | None) -> dict[str, float]:
    """Return the limits that are given, or else those that are usual for a file's precision.

    Args:
        given: By name; None where one is not. Of atol and rtol, the one that is not given is 0 beside the other.
        precision: Of the candidate; None of a torch model.
    """
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if "atol" in limits or "rtol" in limits:
        return {"atol": 0.0, "rtol": 0.0} | limits
    if limits:
        return limits
    if precision in SQNR_DB:
        return {"min_sqnr_db": SQNR_DB[precision]}
    return {"atol": FLOAT_ATOL, "rtol": FLOAT_RTOL}


def misses_of_each(compared: Sequence[ComparedOutput], limits: dict[str, float]) -> list[list[str]]:
    """Return the limits that each comparison misses; those of a few samples are judged beside those of all, if any."""
    levels = {
        output.comparison.output: float(np.square(output.reference).mean())
        for output in compared
        if output.comparison.inputs == WHOLE
    }
    return [
        list(
            _misses(output.comparison, limits)
            if output.comparison.inputs == WHOLE or not levels
            else _misses_of_few(output, levels[output.comparison.output], limits)
        )
        for output in compared
    ]


def _misses_of_few(output: ComparedOutput, level: float, limits: dict[str, float]) -> Iterator[str]:
    """Yield the limits that a few of the samples miss.

    Their own answers may be faint, or near a tie: their noise is compared with the mean square of all samples' answers.
    """
    noise = float(np.square(difference_of(output.reference, output.candidate)).mean())
    without = {name: limit for name, limit in limits.items() if name != "min_agreement"}
    yield from _misses(output.comparison.model_copy(update={"sqnr_db": sqnr_db(level, noise)}), without)


def _misses(comparison: Comparison, limits: dict[str, float]) -> Iterator[str]:
    is_first = comparison.agreement is not None
    where = f"on {comparison.inputs}" if is_first else f"in output {comparison.output!r} on {comparison.inputs}"
    if not np.isfinite(comparison.max_abs_err):
        yield f"NaN or infinity {where}"
        return
    if "atol" in limits and comparison.excess > limits["atol"]:
        yield (
            f"max_abs_err {comparison.max_abs_err:.3g} {where}, beyond atol {limits['atol']:g} and rtol "
            f"{limits['rtol']:g} (atol {comparison.excess:.2g} would pass)"
        )
    if "min_sqnr_db" in limits and comparison.sqnr_db < limits["min_sqnr_db"]:
        yield f"sqnr_db {comparison.sqnr_db:.1f} {where}, below {limits['min_sqnr_db']:g}"
    agreement = comparison.agreement
    if "min_agreement" in limits and agreement is not None and agreement < limits["min_agreement"]:
        yield f"agreement {agreement:.2f} % {where}, below {limits['min_agreement']:g} %"
