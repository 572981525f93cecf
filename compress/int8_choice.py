"""Which form of int8 serves here: each is written, timed against float32 and scored; the fastest that fits is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from compress.int8_layouts import Layout
from core.data import Data
from core.errors import GateMissedError
from core.onnx_model import OnnxModel, open_onnx
from core.predict import accuracy, predict
from core.progress import Progress

SCORED = 2000  # samples of the validation split
KEPT = "kept"
CLOSE = 0.02  # of a speedup, within which the earlier candidate is taken


class Tried(BaseModel, frozen=True):
    """One candidate.

    Attributes:
        layout: What it is, in a few words.
        speedup: Latency of float32 over its own, on ONNX Runtime; None where it was not measured.
        drop: Points of accuracy lost, of agreement with float32 where the data has no labels.
        verdict: Why it was kept or dropped.
    """

    layout: str
    speedup: float | None
    drop: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class _Measured:
    layout: Layout
    path: Path
    speedup: float
    drop: float


def choose(
    model: OnnxModel,
    data: Data,
    candidates: Sequence[Layout],
    write: Callable[[Layout, Path], None],
    measure_speedup: Callable[[OnnxModel, OnnxModel], float],
    folder: Path,
    *,
    max_drop: float,
    provider: str,
    progress: Progress,
) -> tuple[Path, Layout, tuple[Tried, ...]]:
    """Return the file that is fastest within the drop allowed, its layout, and what was tried.

    Args:
        model: The float32 file.
        data: Its validation split is scored.
        candidates: In the order of preference among equals.
        write: Writes a candidate's file.
        measure_speedup: Speedup of the second file over the first.
        folder: Where the files go.
        max_drop: Points of accuracy that may be lost.
        provider: Where the files run.
        progress: Told of every candidate.

    Raises:
        GateMissedError: None is faster than float32, or none of those that are keeps its accuracy.
    """
    score = _scorer(model, data, provider)
    found: list[_Measured] = []
    failed: list[Tried] = []
    for index, layout in enumerate(candidates):
        path = folder / f"candidate{index}.onnx"
        try:
            write(layout, path)
            candidate = open_onnx(path)
            found.append(_Measured(layout, path, measure_speedup(model, candidate), score(candidate)))
        except Exception as error:  # ONNX Runtime's quantizer and kernels do not know every operator in every form
            reason = f"cannot be used: {' '.join(str(error).split())[:200]}"
            failed.append(Tried(layout=layout.title, speedup=None, drop=None, verdict=reason))
        progress("choose", index + 1, len(candidates), "candidates")
    best = _fastest([one for one in found if one.speedup > 1 and one.drop <= max_drop])
    tried = (*(_told(one, best, max_drop) for one in found), *failed)
    if best is None:
        raise GateMissedError(_why_none(found, max_drop), [one.model_dump() for one in tried])
    return best.path, best.layout, tried


def _fastest(found: Sequence[_Measured]) -> _Measured | None:
    best: _Measured | None = None
    for one in found:
        if best is None or one.speedup > best.speedup * (1 + CLOSE):
            best = one
    return best


def _scorer(model: OnnxModel, data: Data, provider: str) -> Callable[[OnnxModel], float]:
    """Return the function that says how many points a file loses."""
    logits, targets = predict(model, data, "validation", limit=SCORED, provider=provider)
    if not data.split("validation").is_labelled:
        targets = logits.argmax(1)
    before = accuracy(logits, targets)
    return lambda candidate: (
        before - accuracy(predict(candidate, data, "validation", limit=SCORED, provider=provider)[0], targets)
    )


def _told(one: _Measured, best: _Measured | None, max_drop: float) -> Tried:
    if one is best:
        verdict = KEPT
    elif one.speedup <= 1:
        verdict = "not faster than float32"
    elif one.drop > max_drop:
        verdict = f"loses more than {max_drop:g} points"
    else:
        verdict = "no faster than what was kept"
    return Tried(layout=one.layout.title, speedup=one.speedup, drop=one.drop, verdict=verdict)


def _why_none(found: Sequence[_Measured], max_drop: float) -> str:
    if not found:
        return "no int8 form of this model can be used here; keep the float32 file"
    faster = [one for one in found if one.speedup > 1]
    if not faster:
        fastest = max(found, key=lambda one: one.speedup)
        return (
            f"no int8 form is faster than float32 here: the fastest, {fastest.layout.title}, runs at "
            f"{fastest.speedup:.2f}x its speed; keep the float32 file"
        )
    closest = min(faster, key=lambda one: one.drop)
    return (
        f"no int8 form that is faster keeps accuracy within {max_drop:g} points: {closest.layout.title} runs at "
        f"{closest.speedup:.2f}x and loses {closest.drop:.2f}; try --calibration-method mse, --exclude or a higher "
        "--max-drop"
    )
