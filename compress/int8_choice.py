"""Which form of int8 serves here: all are written and timed beside float32; of the fastest, one that scores well stays.

Where what is fast loses too much, `compress.int8_rescue` follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.calibration import Method
from compress.int8_layouts import Layout, layouts_ruled_out
from compress.int8_rescue import Sensitivity, hardest_first, rescued
from compress.int8_trial import FASTER, Form, Measured, Trial, TriedForm, about_as_fast, scored, timed, usable
from core.errors import GateMissedError

KEPT = "kept"
SAME_DROP = 0.1  # points, within which one file loses about what another does


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
        trial: What they are put through.
        methods: Ways to find ranges: the first serves all layouts, the others one that loses too much.
        sensitivity: What each layer loses in a form; asked for where none fits.

    Raises:
        GateMissedError: None is faster than float32, or none that is keeps its accuracy.
    """
    written: list[Measured] = []
    tried: list[TriedForm] = []
    for index, layout in enumerate(layouts):
        one = usable(Form(layout, methods[0]), trial, f"layout{index}", tried)
        written += [one] if one else []
        trial.progress("choose", index + 1, len(layouts), "forms")
    best, found = _fastest_that_fits(timed(written, trial), trial, tried)
    hardest = None
    start = None if best else _nearest_of_the_fastest(found)
    if start is not None:
        hardest = next(iter(hardest_first(sensitivity(start.form))), None)
        others, best = rescued(start, trial, methods[1:], sensitivity, tried)
        found += others
    unmeasured = [
        TriedForm(form=one.title, speedup=None, drop=None, verdict=f"not tried: {one.reason}")
        for one in layouts_ruled_out(layouts)
    ]
    told = (*(_told(one, best, trial.max_drop) for one in found), *tried, *unmeasured)
    if best is None:
        raise GateMissedError(_why_none(found, tried, trial.max_drop, hardest), [one.model_dump() for one in told])
    return Choice(best.form, best.path, best.speedup, best.lost, told, hardest)


def _fastest_that_fits(
    found: Sequence[Measured], trial: Trial, tried: list[TriedForm]
) -> tuple[Measured | None, list[Measured]]:
    """Score what is faster than float32, the fastest and what is about as fast first, until one loses little enough.

    Return that one, and all with what was measured of them. Of those within `max_drop`, it is the fastest within
    `SAME_DROP` of the smallest drop; a gain counts as a drop of 0.
    """
    by_path = {one.path: one for one in found}
    left = [one for one in found if one.is_faster]
    while left:
        alike = about_as_fast(left)
        left = [one for one in left if one not in alike]
        fitting = []
        for one in alike:
            told = scored(one, trial, tried)
            if told is None:
                del by_path[one.path]
                continue
            by_path[one.path] = told
            fitting += [told] if told.lost <= trial.max_drop else []
        if fitting:
            least = max(0.0, min(one.lost for one in fitting))
            # rounded: the arithmetic of percents must not make a difference of exactly the limit a bit more
            best = next(one for one in fitting if round(one.lost - least, 6) <= SAME_DROP)
            return best, list(by_path.values())
    return None, list(by_path.values())


def _nearest_of_the_fastest(found: Sequence[Measured]) -> Measured | None:
    """Return the form to rescue: of the fastest that were scored, that which loses least."""
    told = [one for one in found if one.drop is not None]
    whole = [one for one in told if one.form.layout.form != "qoperator"]  # a node let out reads what is not rounded
    return min(about_as_fast(whole or told), key=lambda one: one.lost, default=None)


def _told(one: Measured, best: Measured | None, max_drop: float) -> TriedForm:
    if one is best:
        verdict = KEPT
    elif one.speedup is not None and not one.is_faster:
        verdict = "not faster than float32"
    elif one.drop is not None and one.drop > max_drop:
        verdict = f"loses more than {max_drop:g} points"
    elif one.speedup is None:
        verdict = "not timed: another that fits was"
    elif best is not None and one.speedup > (best.speedup or 0):
        verdict = "about as fast as what was kept, and loses more"
    else:
        verdict = "no faster than what was kept"
    return TriedForm(form=one.form.title, speedup=one.speedup, drop=one.drop, verdict=verdict)


def _why_none(found: Sequence[Measured], tried: Sequence[TriedForm], max_drop: float, hardest: str | None) -> str:
    faster = [one for one in found if one.is_faster]
    unusable = [one for one in tried if one.speedup is not None and one.speedup >= FASTER]
    if unusable and not faster:
        return f"no int8 form that is faster can be used: {unusable[0].form} {unusable[0].verdict}"
    if not found:
        return "no int8 form of this model can be used here; keep the float32 file"
    if not faster:
        fastest = max(found, key=lambda one: one.speedup or 0)
        return (
            f"no int8 form is faster than float32 here: the fastest, {fastest.form.title}, runs at "
            f"{fastest.speedup:.2f}x its speed; keep the float32 file"
        )
    told = [one for one in found if one.drop is not None and (one.is_faster or one.speedup is None)]
    closest = min((one for one in told if one.lost > max_drop), key=lambda one: one.lost)
    culprit = f", most of it in {hardest}" if hardest else ""
    runs = "" if closest.speedup is None else f"runs at {closest.speedup:.2f}x and "
    return (
        f"no int8 form that is faster keeps accuracy within {max_drop:g} points: {closest.form.title} {runs}"
        f"loses {closest.lost:.2f}{culprit}; calibrate on samples like those it will see, or raise --max-drop"
    )
