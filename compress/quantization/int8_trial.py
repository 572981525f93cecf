"""What every form of int8 goes through: it is written, run once, timed beside float32, and scored."""

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnxruntime
from pydantic import BaseModel

from compress.quantization.calibration import Method
from compress.quantization.int8_file import multiplies_in_int8
from compress.quantization.int8_layouts import Layout
from core.errors import ToolError, UnreadableSampleError
from core.onnx_model import OnnxModel, open_onnx, read_proto
from core.progress import Progress

logger = logging.getLogger(__name__)

Treatment = Literal["equalized", "bias corrected"]
CLOSE = 0.02  # Files whose speedups differ by no more than this share are about as fast.
FASTER = 1 + CLOSE  # A smaller speedup may be the noise of timing a file against itself.
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
    """What candidates go through.

    Attributes:
        write: Writes a form to a file.
        run_once: Runs a file on one sample.
        measure_speedups: Speedups of files over float32, timed in the same rounds.
        drop_of: Points of accuracy that a file loses.
        folder: Where the files go.
        max_drop: Points that may be lost.
        progress: Told of every candidate.
        treatments: What can be done to this file where the fast forms lose too much.
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
    """A form, and what is known of its file.

    Attributes:
        form: The form.
        path: The file.
        speedup: Latency of float32 over its own; None where it was not timed.
        drop: Points of accuracy lost; None where it was not scored.
        unusable: Why it cannot be written, run or scored; None where it can.
    """

    form: Form
    path: Path
    speedup: float | None = None
    drop: float | None = None
    unusable: str | None = None

    @property
    def lost(self) -> float:
        """Points that it is known to lose; infinite where it was not scored."""
        return math.inf if self.drop is None else self.drop

    @property
    def is_faster(self) -> bool:
        """Whether it is known to be faster than float32."""
        return self.speedup is not None and self.speedup >= FASTER


def written(form: Form, trial: Trial, name: str) -> Measured:
    """Write a form to a file of this name, and run it once; the result says why it cannot be used where it cannot."""
    candidate = Measured(form, trial.folder / f"{name}.onnx")

    def write_and_run() -> Measured:
        trial.write(form, candidate.path)
        if not multiplies_in_int8(read_proto(candidate.path).graph):
            raise ToolError("no product in it could be made int8")
        trial.run_once(open_onnx(candidate.path))
        return candidate

    return _or_unusable(candidate, write_and_run)


def scored(candidate: Measured, trial: Trial) -> Measured:
    """Score a form's file; the result says why it cannot be used where it cannot."""
    return _or_unusable(candidate, lambda: replace(candidate, drop=trial.drop_of(open_onnx(candidate.path))))


def written_and_scored(form: Form, trial: Trial, name: str) -> Measured:
    """Do both, where the first shows that the form can be used."""
    candidate = written(form, trial, name)
    return candidate if candidate.unusable else scored(candidate, trial)


def timed(candidates: Sequence[Measured], trial: Trial) -> list[Measured]:
    """Time files, all side by side."""
    speedups = trial.measure_speedups([open_onnx(candidate.path) for candidate in candidates]) if candidates else ()
    return [replace(candidate, speedup=speedup) for candidate, speedup in zip(candidates, speedups, strict=True)]


def about_as_fast(candidates: Sequence[Measured]) -> list[Measured]:
    """Return the fastest of files that were timed, and those that are about as fast, the fastest first."""
    ordered = sorted(candidates, key=lambda candidate: candidate.speedup or 0, reverse=True)
    return [candidate for candidate in ordered if (candidate.speedup or 0) * (1 + CLOSE) >= (ordered[0].speedup or 0)]


def _or_unusable(candidate: Measured, measure: Callable[[], Measured]) -> Measured:
    """Return what is measured of a candidate; where its form is to blame for an error, the candidate with the reason.

    Raises:
        Exception: One that the form is not to blame for.
    """
    try:
        return measure()
    except (OSError, UnreadableSampleError):  # the disk is full, say, or an image is cut short: no form is to blame
        raise
    except Exception as error:  # ONNX Runtime's quantizer and kernels do not know every operator in every form
        if not _comes_of_the_form(error):
            raise
        logger.debug("%s cannot be used", candidate.form.title, exc_info=True)
        return replace(candidate, unusable=f"cannot be used: {' '.join(str(error).split())[:200]}")


def _comes_of_the_form(error: Exception) -> bool:
    """Return whether the form is to blame: a `ToolError`, or an error inside ONNX Runtime; others are bugs of ours."""
    files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ToolError) or any(file.is_relative_to(ONNX_RUNTIME) for file in files)
