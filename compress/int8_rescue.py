"""What is done where every form that is faster than float32 loses too much.

Ranges are found in other ways, then the graph is equalized and its biases corrected, and then the layers that lose most
go back to float, no more of them than it takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from compress.calibration import Method
from compress.int8_sensitivity import LayerDamage
from compress.int8_trial import Form, Measured, Trial, TriedForm, scored, timed, usable

Sensitivity = Callable[[Form], Sequence[LayerDamage]]
"""What each layer loses in a form."""


def rescued(
    start: Measured, trial: Trial, methods: Sequence[Method], sensitivity: Sensitivity, tried: list[TriedForm]
) -> tuple[list[Measured], Measured | None]:
    """Return all that was made of a form that loses too much, and what serves: it fits, and is timed to be faster.

    Args:
        start: The form.
        trial: What they are put through.
        methods: Other ways to find ranges.
        sensitivity: Asked for where neither ranges nor treatments serve.
        tried: Told what cannot be used.
    """
    others = _with_other_ranges(start, trial, methods, tried)
    nearest = min([start, *others], key=lambda one: one.lost)
    for treatment in trial.treatments:
        if nearest.lost <= trial.max_drop:
            break
        treated = replace(nearest.form, treatments=(*nearest.form.treatments, treatment))
        one = _usable_and_scored(treated, trial, treatment.replace(" ", "-"), tried)
        others += [one] if one else []
        nearest = min([nearest, *others], key=lambda one: one.lost)
    if nearest.lost <= trial.max_drop:
        return _timed_last([one for one in others if one is not nearest], nearest, trial)
    tried_in_float, serves = _with_layers_in_float(nearest, trial, hardest_first(sensitivity(nearest.form)), tried)
    others += tried_in_float
    return _timed_last(others, serves, trial) if serves else (others, None)


def hardest_first(layers: Sequence[LayerDamage]) -> list[str]:
    """Return the nodes' names, that of the layer that loses most first."""
    return [one.node for one in sorted(layers, key=lambda one: one.total, reverse=True)]


def _with_other_ranges(
    start: Measured, trial: Trial, methods: Sequence[Method], tried: list[TriedForm]
) -> list[Measured]:
    layout = start.form.layout
    if layout.form == "dynamic":  # whose ranges are found when it runs
        return []
    found = [_usable_and_scored(Form(layout, method), trial, method, tried) for method in methods]
    return [one for one in found if one]


def _with_layers_in_float(
    nearest: Measured, trial: Trial, order: Sequence[str], tried: list[TriedForm]
) -> tuple[list[Measured], Measured | None]:
    """Leave the first so many in float; return what else was made, and what fits with the fewest."""
    others: list[Measured] = []
    serves: Measured | None = None
    low, high = 0, len(order)  # so many are too few, so many are enough
    while high - low > 1:
        count = low + 1 if low == 0 else (low + high) // 2  # one layer is the usual answer
        form = replace(nearest.form, in_float=tuple(order[:count]))
        one = _usable_and_scored(form, trial, f"float{count}", tried)
        if one and one.lost <= trial.max_drop:
            others += [serves] if serves else []
            high, serves = count, one
        else:
            low = count
            others += [one] if one else []
    return others, serves


def _timed_last(others: list[Measured], serves: Measured, trial: Trial) -> tuple[list[Measured], Measured | None]:
    """Time the form that fits; return all forms, and that one if it is faster than float32, else None."""
    [one] = timed([serves], trial)
    return [*others, one], one if one.is_faster else None


def _usable_and_scored(form: Form, trial: Trial, name: str, tried: list[TriedForm]) -> Measured | None:
    one = usable(form, trial, name, tried)
    return one and scored(one, trial, tried)
