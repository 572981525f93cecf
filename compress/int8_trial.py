"""What a form of int8 is put through: it is written, run once, timed beside float32, and scored."""

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnxruntime
from pydantic import BaseModel

from compress.calibration import Method
from compress.int8_file import multiplies_in_int8
from compress.int8_layouts import Layout
from core.errors import ToolError, UnreadableSampleError
from core.onnx_model import OnnxModel, open_onnx, read_proto
from core.progress import Progress

logger = logging.getLogger(__name__)

Treatment = Literal["equalized", "bias corrected"]
CLOSE = 0.02  # of a speedup, within which one file is about as fast as another
FASTER = 1 + CLOSE  # from which a speedup is more than the noise of timing a file against itself
ONNX_RUNTIME = Path(onnxruntime.__file__).parent


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


class TriedForm(BaseModel, frozen=True):
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
class Measured:
    """A form that was written, and what is known of its file."""

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
        """Whether it is known to be faster than float32."""
        return self.speedup is not None and self.speedup >= FASTER


def usable(form: Form, trial: Trial, name: str, tried: list[TriedForm]) -> Measured | None:
    """Write a form to a file of this name and see that it runs; note it as tried where it does not."""

    def written() -> Measured:
        path = trial.folder / f"{name}.onnx"
        trial.write(form, path)
        if not multiplies_in_int8(read_proto(path).graph):
            raise ToolError("no product in it could be made int8")
        trial.run_once(open_onnx(path))
        return Measured(form, path)

    return _or_noted(form, None, tried, written)


def scored(one: Measured, trial: Trial, tried: list[TriedForm]) -> Measured | None:
    """Score a form; note it as tried where it cannot be used."""
    return _or_noted(one.form, one.speedup, tried, lambda: replace(one, drop=trial.drop_of(open_onnx(one.path))))


def timed(found: Sequence[Measured], trial: Trial) -> list[Measured]:
    """Time files, all side by side."""
    speedups = trial.measure_speedups([open_onnx(one.path) for one in found]) if found else ()
    return [replace(one, speedup=speedup) for one, speedup in zip(found, speedups, strict=True)]


def about_as_fast(found: Sequence[Measured]) -> list[Measured]:
    """Return the fastest of files that were timed, and those that are about as fast, the fastest first."""
    ordered = sorted(found, key=lambda one: one.speedup or 0, reverse=True)
    return [one for one in ordered if (one.speedup or 0) * (1 + CLOSE) >= (ordered[0].speedup or 0)]


def _or_noted(
    form: Form, speedup: float | None, tried: list[TriedForm], make: Callable[[], Measured]
) -> Measured | None:
    """Make something of a form; where the form is to blame that it cannot be made, note it as tried."""
    try:
        return make()
    except (OSError, UnreadableSampleError):  # the disk is full, say, or an image is cut short: no form is to blame
        raise
    except Exception as error:  # ONNX Runtime's quantizer and kernels do not know every operator in every form
        if not _comes_of_the_form(error):
            raise
        logger.debug("%s cannot be used", form.title, exc_info=True)
        reason = f"cannot be used: {' '.join(str(error).split())[:200]}"
        tried.append(TriedForm(form=form.title, speedup=speedup, drop=None, verdict=reason))
        return None


def _comes_of_the_form(error: Exception) -> bool:
    """Return whether the form is to blame: a `ToolError`, or one from inside ONNX Runtime; else it is a bug of ours."""
    files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ToolError) or any(file.is_relative_to(ONNX_RUNTIME) for file in files)
