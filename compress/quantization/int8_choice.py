"""Which form of int8 serves here: all are written and timed beside float32; of the fastest, one that scores well stays.

Where every fast form loses too much, `compress.quantization.int8_rescue` follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.quantization.calibration import Method
from compress.quantization.int8_layouts import Layout, layouts_ruled_out
from compress.quantization.int8_rescue import Sensitivity, hardest_first, rescued
from compress.quantization.int8_trial import Form, Measured, Trial, TriedForm, about_as_fast, scored, timed, written
from core.errors import GateMissedError

KEPT = "kept"
SAME_DROP = 0.1  # points; files whose drops differ by no more lose about the same


@dataclass(frozen=True, slots=True)
class Choice:
    """The form that is kept, its file, its own speedup and drop, and everything that was tried or ruled out.

    Where no form fitted as it is, the layer that loses most is named.
    """

    form: Form
    path: Path
    speedup: float | None
    drop: float
    tried: tuple[TriedForm, ...]
    hardest_layer: str | None = None


def choose(layouts: Sequence[Layout], trial: Trial, methods: Sequence[Method], sensitivity: Sensitivity) -> Choice:
    """Return the fastest form that loses no more than it may, and about as little as others that are about as fast.

    Args:
        layouts: Of the forms, in the order of preference among equals.
        trial: What candidates go through.
        methods: Ways to find ranges: the first serves all layouts, the others one that loses too much.
        sensitivity: What each layer loses in a form; asked for where none fits.

    Raises:
        GateMissedError: None is faster than float32, or none that is keeps its accuracy.
    """
    best, candidates = _fastest_that_fits(_written_and_timed(layouts, trial, methods[0]), trial)
    hardest = None
    start = None if best else _nearest_of_the_fastest(candidates)
    if start is not None:
        hardest = next(iter(hardest_first(sensitivity(start.form))), None)
        others, best = rescued(start, trial, methods[1:], sensitivity)
        candidates += others
    tried = (*_with_verdicts(candidates, best, trial.max_drop), *_ruled_out(layouts))
    if best is None:
        raise GateMissedError(_why_none(candidates, trial.max_drop, hardest), [form.model_dump() for form in tried])
    return Choice(best.form, best.path, best.speedup, best.lost, tried, hardest)


def _written_and_timed(layouts: Sequence[Layout], trial: Trial, method: Method) -> list[Measured]:
    """Write a form of each layout and time those that can be used side by side; those that cannot come last."""
    candidates: list[Measured] = []
    for index, layout in enumerate(layouts):
        candidates.append(written(Form(layout, method), trial, f"layout{index}"))
        trial.progress("choose", index + 1, len(layouts), "forms")
    unusable = [candidate for candidate in candidates if candidate.unusable]
    return [*timed([candidate for candidate in candidates if not candidate.unusable], trial), *unusable]


def _fastest_that_fits(candidates: Sequence[Measured], trial: Trial) -> tuple[Measured | None, list[Measured]]:
    """Score what is faster than float32, the fastest and what is about as fast first, until one loses little enough.

    Return that one, and all with what was measured of them. Of those within `max_drop`, it is the fastest within
    `SAME_DROP` of the smallest drop; a gain counts as a drop of 0.
    """
    by_path = {candidate.path: candidate for candidate in candidates}
    left = [candidate for candidate in candidates if candidate.is_faster]
    while left:
        fastest = about_as_fast(left)
        alike = [scored(candidate, trial) for candidate in fastest]
        by_path |= {candidate.path: candidate for candidate in alike}
        fitting = [candidate for candidate in alike if candidate.lost <= trial.max_drop]
        if fitting:
            return _first_of_the_least(fitting), list(by_path.values())
        left = [candidate for candidate in left if candidate not in fastest]
    return None, list(by_path.values())


def _first_of_the_least(fitting: Sequence[Measured]) -> Measured:
    """Return the first that loses about as little as any."""
    least = max(0.0, min(candidate.lost for candidate in fitting))
    # Rounded, so that floating point does not push a difference of exactly SAME_DROP over it.
    return next(candidate for candidate in fitting if round(candidate.lost - least, 6) <= SAME_DROP)


def _nearest_of_the_fastest(candidates: Sequence[Measured]) -> Measured | None:
    """Return the form to rescue: of the fastest that were scored, that which loses least."""
    are_scored = [candidate for candidate in candidates if candidate.drop is not None]
    # In QDQ a node left in float reads unrounded tensors; in QOperator it reads rounded ones.
    unrounded = [candidate for candidate in are_scored if candidate.form.layout.form != "qoperator"]
    return min(about_as_fast(unrounded or are_scored), key=lambda candidate: candidate.lost, default=None)


def _with_verdicts(candidates: Sequence[Measured], best: Measured | None, max_drop: float) -> list[TriedForm]:
    """Return what became of every candidate; those that cannot be used come last."""
    return [
        TriedForm(
            form=candidate.form.title,
            speedup=candidate.speedup,
            drop=candidate.drop,
            verdict=_verdict(candidate, best, max_drop),
        )
        for candidate in sorted(candidates, key=lambda candidate: candidate.unusable is not None)
    ]


def _verdict(candidate: Measured, best: Measured | None, max_drop: float) -> str:
    if candidate is best:
        return KEPT
    if candidate.unusable:
        return candidate.unusable
    if candidate.speedup is not None and not candidate.is_faster:
        return "not faster than float32"
    if candidate.drop is not None and candidate.drop > max_drop:
        return f"loses more than {max_drop:g} points"
    if candidate.speedup is None:
        return "not timed: another that fits was"
    if best is not None and candidate.speedup > (best.speedup or 0):
        return "about as fast as what was kept, and loses more"
    return "no faster than what was kept"


def _ruled_out(layouts: Sequence[Layout]) -> list[TriedForm]:
    return [
        TriedForm(form=layout.title, speedup=None, drop=None, verdict=f"not tried: {layout.reason}")
        for layout in layouts_ruled_out(layouts)
    ]


def _why_none(candidates: Sequence[Measured], max_drop: float, hardest: str | None) -> str:
    """Say why no candidate is kept."""
    usable = [candidate for candidate in candidates if not candidate.unusable]
    if not any(candidate.is_faster for candidate in usable):
        return _why_none_is_faster(candidates, usable)
    losing = [
        candidate
        for candidate in candidates
        if candidate.drop is not None
        and candidate.drop > max_drop
        and (candidate.is_faster or candidate.speedup is None)
    ]
    closest = min(losing, key=lambda candidate: candidate.lost)
    culprit = f", most of it in {hardest}" if hardest else ""
    runs = "" if closest.speedup is None else f"runs at {closest.speedup:.2f}x and "
    return (
        f"no int8 form that is faster keeps accuracy within {max_drop:g} points: {closest.form.title} {runs}"
        f"loses {closest.lost:.2f}{culprit}; calibrate on samples like those it will see, or raise --max-drop"
    )


def _why_none_is_faster(candidates: Sequence[Measured], usable: Sequence[Measured]) -> str:
    unusable = [candidate for candidate in candidates if candidate.unusable and candidate.is_faster]
    if unusable:
        fastest = max(unusable, key=lambda candidate: candidate.speedup or 0)
        return f"no int8 form that is faster can be used: {fastest.form.title} {fastest.unusable}"
    if not usable:
        return "no int8 form of this model can be used here; keep the float32 file"
    fastest = max(usable, key=lambda candidate: candidate.speedup or 0)
    return (
        f"no int8 form is faster than float32 here: the fastest, {fastest.form.title}, runs at "
        f"{fastest.speedup:.2f}x its speed; keep the float32 file"
    )
