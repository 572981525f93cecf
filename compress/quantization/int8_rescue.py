"""What is done where every form that is faster than float32 loses too much.

Ranges are found in other ways, then the graph is equalized and its biases corrected, and then the layers that lose most
go back to float, no more of them than it takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from compress.quantization.calibration import Method
from compress.quantization.int8_sensitivity import LayerDamage
from compress.quantization.int8_trial import Form, Measured, Trial, timed, written_and_scored

Sensitivity = Callable[[Form], Sequence[LayerDamage]]
"""What each layer loses in a form."""


def rescued(
    start: Measured, trial: Trial, methods: Sequence[Method], sensitivity: Sensitivity
) -> tuple[list[Measured], Measured | None]:
    """Return every candidate derived from `start`, and the one within `max_drop` that is measurably faster, or None.

    Args:
        start: A form that loses too much.
        trial: What candidates go through.
        methods: Other ways to find ranges.
        sensitivity: What each layer loses in a form; asked for where neither ranges nor treatments are enough.
    """
    candidates = _with_other_ranges(start, trial, methods)
    candidates += _treated(_nearest([start, *candidates]), trial)
    nearest = _nearest([start, *candidates])
    serves: Measured | None = nearest
    if nearest.lost > trial.max_drop:
        in_float, serves = _with_layers_in_float(nearest, trial, hardest_first(sensitivity(nearest.form)))
        candidates += in_float
    return _timed_last(candidates, serves, trial) if serves else (candidates, None)


def hardest_first(layers: Sequence[LayerDamage]) -> list[str]:
    """Return the nodes' names, that of the layer that loses most first."""
    return [layer.node for layer in sorted(layers, key=lambda layer: layer.total, reverse=True)]


def _nearest(candidates: Sequence[Measured]) -> Measured:
    """Return the candidate that loses least, the first of equals."""
    return min(candidates, key=lambda candidate: candidate.lost)


def _with_other_ranges(start: Measured, trial: Trial, methods: Sequence[Method]) -> list[Measured]:
    """Return the form with its ranges found in other ways; of the dynamic form they are found when it runs."""
    layout = start.form.layout
    if layout.form == "dynamic":
        return []
    return [written_and_scored(Form(layout, method), trial, method) for method in methods]


def _treated(nearest: Measured, trial: Trial) -> list[Measured]:
    """Treat the form that loses least in one way after another, until one loses little enough; return those made."""
    candidates: list[Measured] = []
    for treatment in trial.treatments:
        if nearest.lost <= trial.max_drop:
            break
        form = replace(nearest.form, treatments=(*nearest.form.treatments, treatment))
        candidates.append(written_and_scored(form, trial, treatment.replace(" ", "-")))
        nearest = _nearest([nearest, candidates[-1]])
    return candidates


def _with_layers_in_float(
    nearest: Measured, trial: Trial, order: Sequence[str]
) -> tuple[list[Measured], Measured | None]:
    """Leave the first layers of an order in float; return what was made, and what fits with the fewest of them."""
    candidates: list[Measured] = []
    serves: Measured | None = None
    low, high = 0, len(order)  # `low` layers are too few; `high` are enough, or all there are
    while high - low > 1:
        count = low + 1 if low == 0 else (low + high) // 2  # one layer is the usual answer
        form = replace(nearest.form, in_float=tuple(order[:count]))
        candidates.append(written_and_scored(form, trial, f"float{count}"))
        if candidates[-1].lost <= trial.max_drop:
            high, serves = count, candidates[-1]
        else:
            low = count
    return candidates, serves


def _timed_last(
    candidates: Sequence[Measured], serves: Measured, trial: Trial
) -> tuple[list[Measured], Measured | None]:
    """Time the candidate that fits; return all with it last, and that one if it is faster than float32, else None."""
    others = [candidate for candidate in candidates if candidate is not serves]
    [serves] = timed([serves], trial)
    return [*others, serves], serves if serves.is_faster else None
