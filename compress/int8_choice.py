"""Which form of int8 serves here: all are written and timed beside float32, and the fastest that scores well is kept.

Where what is fast loses too much, the ranges are found in other ways, then the graph is equalized and its biases
corrected, and then the fewest layers go back to float.
"""

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import onnxruntime
from pydantic import BaseModel

from compress.calibration import Method
from compress.int8_file import multiplies_in_int8
from compress.int8_layouts import Layout, layouts_ruled_out
from compress.int8_sensitivity import LayerDamage
from core.data import Data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel, open_onnx, read_proto
from core.predict import accuracy, predict
from core.progress import Progress

logger = logging.getLogger(__name__)

Treatment = Literal["equalized", "bias corrected"]
SCORED = 2000  # samples of the validation split
SCORED_AT_ONCE = 16  # what simulates saturation holds a tensor for every pair of weights
KEPT = "kept"
CLOSE = 0.02  # of a speedup, within which one file is about as fast as another
SAME = 0.1  # points, within which one file loses about what another does
ONNX_RUNTIME = Path(onnxruntime.__file__).parent
FASTER = 1 + CLOSE  # from which a speedup is more than the noise of timing a file against itself


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write the file.

    Attributes:
        layout: Its element types and operators.
        method: How its ranges are found.
        in_float: Names of nodes that stay in float.
        treatments: What is done to the float32 graph before it is rounded, in this order.
    """

    layout: Layout
    method: Method
    in_float: tuple[str, ...] = ()
    treatments: tuple[Treatment, ...] = ()

    @property
    def title(self) -> str:
        """Describe the form in a few words."""
        words = [self.layout.title, *[self.method] * (self.layout.form != "dynamic"), *self.treatments]
        return ", ".join(words + [f"{len(self.in_float)} layers in float"] * bool(self.in_float))


class Tried(BaseModel, frozen=True):
    """One candidate.

    Attributes:
        form: What it is, in a few words.
        speedup: Latency of float32 over its own, on ONNX Runtime; None where it was not timed.
        drop: Points of accuracy lost, of agreement with float32 where the data has no labels; None where not scored.
        verdict: Why it was kept, dropped or not tried.
    """

    form: str
    speedup: float | None
    drop: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What candidates are put through.

    Attributes:
        write: Writes a form to a file.
        run_once: Runs a file on one sample.
        measure_speedups: Speedups of files over float32, timed in the same rounds.
        drop_of: Points of accuracy that a file loses.
        folder: Where the files go.
        max_drop: Points that may be lost.
        progress: Told of every candidate.
        treatments: What can be done to this file where what is fast loses too much.
    """

    write: Callable[[Form, Path], None]
    run_once: Callable[[OnnxModel], object]
    measure_speedups: Callable[[Sequence[OnnxModel]], Sequence[float]]
    drop_of: Callable[[OnnxModel], float]
    folder: Path
    max_drop: float
    progress: Progress
    treatments: tuple[Treatment, ...] = ()


@dataclass(frozen=True, slots=True)
class _Measured:
    form: Form
    path: Path
    speedup: float | None = None
    drop: float | None = None

    @property
    def lost(self) -> float:
        """Points that it is known to lose: without end where it was not scored."""
        return math.inf if self.drop is None else self.drop

    @property
    def is_faster(self) -> bool:
        return self.speedup is not None and self.speedup >= FASTER


@dataclass(frozen=True, slots=True)
class Choice:
    """The form that is kept, its file, its own speedup and drop, and everything that was tried or ruled out.

    Where the fastest form lost too much, the layer that loses most in it is named.
    """

    form: Form
    path: Path
    speedup: float | None
    drop: float
    tried: tuple[Tried, ...]
    hardest_layer: str | None = None


def choose(
    layouts: Sequence[Layout],
    trial: Trial,
    methods: Sequence[Method],
    sensitivity: Callable[[Form], Sequence[LayerDamage]],
) -> Choice:
    """Return the fastest form that loses no more than it may.

    Args:
        layouts: In the order of preference among equals.
        trial: What they are put through.
        methods: Ways to find ranges: the first serves all layouts, the others the fastest where it loses too much.
        sensitivity: What each layer loses in a form; asked for where no method serves.

    Raises:
        GateMissedError: None is faster than float32, or none that is keeps its accuracy.
    """
    usable: list[_Measured] = []
    tried: list[Tried] = []
    for index, layout in enumerate(layouts):
        one = _usable(Form(layout, methods[0]), trial, f"layout{index}", tried)
        usable += [one] if one else []
        trial.progress("choose", index + 1, len(layouts), "forms")
    timed = _timed(usable, trial)
    best, found = _fastest_that_fits(timed, trial, tried)
    scored = [one for one in found if one.drop is not None]
    whole = [one for one in scored if one.form.layout.form != "qoperator"]  # a node let out reads what is not rounded
    fastest = _fastest(whole or scored)
    hardest = None
    if best is None and fastest is not None:
        hardest = next(iter(_hardest_first(sensitivity(fastest.form))), None)
        others, best = _rescued(fastest, trial, methods[1:], sensitivity, tried)
        found += others
    unmeasured = [
        Tried(form=one.title, speedup=None, drop=None, verdict=f"not tried: {one.reason}")
        for one in layouts_ruled_out(layouts)
    ]
    told = (*(_told(one, best, trial.max_drop) for one in found), *tried, *unmeasured)
    if best is None:
        raise GateMissedError(_why_none(found, trial.max_drop, hardest), [one.model_dump() for one in told])
    return Choice(best.form, best.path, best.speedup, best.lost, told, hardest)


def drop_against(model: OnnxModel, data: Data, provider: str) -> Callable[[OnnxModel], float]:
    """Return the function that says how many points of accuracy a file loses on the validation split.

    Without labels it is points of agreement.
    """
    limit = min(SCORED, len(data.split("validation")))
    limit = limit - limit % (model.fixed_batch or 1) or limit  # what is left tells that it is too few
    score = partial(predict, data=data, split="validation", batch_size=SCORED_AT_ONCE, limit=limit, provider=provider)
    logits, targets = score(model)
    if not data.split("validation").is_labelled:
        targets = logits.argmax(1)
    before = accuracy(logits, targets)
    # rounded: a sample too many lost by the arithmetic of percents would miss the limit
    return lambda candidate: round(before - accuracy(score(candidate)[0], targets), 6)


def _comes_of_the_form(error: Exception) -> bool:
    """Tell an error that is told as one, or that ONNX Runtime was running when it came, from a bug of ours."""
    files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ToolError) or any(file.is_relative_to(ONNX_RUNTIME) for file in files)


def _rescued(
    fastest: _Measured,
    trial: Trial,
    methods: Sequence[Method],
    sensitivity: Callable[[Form], Sequence[LayerDamage]],
    tried: list[Tried],
) -> tuple[list[_Measured], _Measured | None]:
    """Find ranges in other ways, treat the graph, then put layers back; return what was tried and what serves."""
    layout = fastest.form.layout
    methods = () if layout.form == "dynamic" else methods  # whose ranges are found when it runs
    ranged = [_usable_and_scored(Form(layout, method), trial, method, tried) for method in methods]
    others = [one for one in ranged if one]
    nearest = min([fastest, *others], key=lambda one: one.lost)
    for treatment in trial.treatments:
        if nearest.lost <= trial.max_drop:
            break
        treated = replace(nearest.form, treatments=(*nearest.form.treatments, treatment))
        one = _usable_and_scored(treated, trial, treatment.replace(" ", "-"), tried)
        others += [one] if one else []
        nearest = min([nearest, *others], key=lambda one: one.lost)
    if nearest.lost <= trial.max_drop:
        return _timed_last([one for one in others if one is not nearest], nearest, trial)
    order = _hardest_first(sensitivity(nearest.form))
    low, high = 0, len(order)  # so many are too few, so many are enough
    serves: _Measured | None = None
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
    return _timed_last(others, serves, trial) if serves else (others, None)


def _timed_last(others: list[_Measured], serves: _Measured, trial: Trial) -> tuple[list[_Measured], _Measured | None]:
    """Time what serves, which scoring does not tell, and return all, and it where it is still faster."""
    [timed] = _timed([serves], trial)
    return [*others, timed], timed if timed.is_faster else None


def _hardest_first(layers: Sequence[LayerDamage]) -> list[str]:
    return [one.node for one in sorted(layers, key=lambda one: one.total, reverse=True)]


def _usable(form: Form, trial: Trial, name: str, tried: list[Tried]) -> _Measured | None:
    """Write a form and see that it runs; note it as tried where it does not."""

    def written() -> _Measured:
        path = trial.folder / f"{name}.onnx"
        trial.write(form, path)
        if not multiplies_in_int8(read_proto(path).graph):
            raise ToolError("no product in it could be made int8")
        trial.run_once(open_onnx(path))
        return _Measured(form, path)

    return _or_noted(form, tried, written)


def _scored(one: _Measured, trial: Trial, tried: list[Tried]) -> _Measured | None:
    """Score a form; note it as tried where it cannot be used."""
    return _or_noted(one.form, tried, lambda: replace(one, drop=trial.drop_of(open_onnx(one.path))))


def _usable_and_scored(form: Form, trial: Trial, name: str, tried: list[Tried]) -> _Measured | None:
    one = _usable(form, trial, name, tried)
    return one and _scored(one, trial, tried)


def _or_noted(form: Form, tried: list[Tried], make: Callable[[], _Measured]) -> _Measured | None:
    """Make something of a form; where the form is to blame that it cannot be made, note it as tried."""
    try:
        return make()
    except OSError:  # the disk is full, say: no form is to blame
        raise
    except Exception as error:  # ONNX Runtime's quantizer and kernels do not know every operator in every form
        if not _comes_of_the_form(error):
            raise
        logger.debug("%s cannot be used", form.title, exc_info=True)
        reason = f"cannot be used: {' '.join(str(error).split())[:200]}"
        tried.append(Tried(form=form.title, speedup=None, drop=None, verdict=reason))
        return None


def _timed(found: Sequence[_Measured], trial: Trial) -> list[_Measured]:
    """Time files, all side by side."""
    speedups = trial.measure_speedups([open_onnx(one.path) for one in found]) if found else ()
    return [replace(one, speedup=speedup) for one, speedup in zip(found, speedups, strict=True)]


def _fastest_that_fits(
    timed: Sequence[_Measured], trial: Trial, tried: list[Tried]
) -> tuple[_Measured | None, list[_Measured]]:
    """Score what is faster than float32, the fastest and what is about as fast first, until one loses little enough.

    Return the fastest of those that lose about as little as the best of them, and all.
    """
    found = {one.path: one for one in timed}
    left = sorted((one for one in timed if one.is_faster), key=lambda one: one.speedup or 0, reverse=True)
    while left:
        limit = (left[0].speedup or 0) / (1 + CLOSE)
        alike = [one for one in left if (one.speedup or 0) >= limit]
        left = left[len(alike) :]
        fitting = []
        for one in alike:
            scored = _scored(one, trial, tried)
            if scored is None:
                del found[one.path]
                continue
            found[one.path] = scored
            fitting += [scored] if scored.lost <= trial.max_drop else []
        if fitting:
            least = min(one.lost for one in fitting)
            return next(one for one in fitting if one.lost <= least + SAME), list(found.values())
    return None, list(found.values())


def _fastest(found: Sequence[_Measured]) -> _Measured | None:
    best: _Measured | None = None
    for one in found:
        if best is None or (one.speedup or 0) > (best.speedup or 0) * (1 + CLOSE):
            best = one
    return best


def _told(one: _Measured, best: _Measured | None, max_drop: float) -> Tried:
    if one is best:
        verdict = KEPT
    elif one.speedup is not None and not one.is_faster:
        verdict = "not faster than float32"
    elif one.drop is not None and one.drop > max_drop:
        verdict = f"loses more than {max_drop:g} points"
    elif best and one.drop is not None and one.lost > best.lost + SAME:
        verdict = "about as fast as what was kept, and loses more"
    elif one.speedup is None:
        verdict = "not timed: another serves as well"
    else:
        verdict = "no faster than what was kept"
    return Tried(form=one.form.title, speedup=one.speedup, drop=one.drop, verdict=verdict)


def _why_none(found: Sequence[_Measured], max_drop: float, hardest: str | None) -> str:
    if not found:
        return "no int8 form of this model can be used here; keep the float32 file"
    if not any(one.is_faster for one in found):
        fastest = max(found, key=lambda one: one.speedup or 0)
        return (
            f"no int8 form is faster than float32 here: the fastest, {fastest.form.title}, runs at "
            f"{fastest.speedup:.2f}x its speed; keep the float32 file"
        )
    scored = [one for one in found if one.drop is not None and (one.is_faster or one.speedup is None)]
    closest = min((one for one in scored if one.lost > max_drop), key=lambda one: one.lost)
    culprit = f", most of it in {hardest}" if hardest else ""
    runs = "" if closest.speedup is None else f"runs at {closest.speedup:.2f}x and "
    return (
        f"no int8 form that is faster keeps accuracy within {max_drop:g} points: {closest.form.title} {runs}"
        f"loses {closest.lost:.2f}{culprit}; calibrate on samples like those it will see, or raise --max-drop"
    )
