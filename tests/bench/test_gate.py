"""Every gate word opens and closes."""

import numpy as np
import pytest

from bench.compare import BenchConfig, BenchReport, bench
from bench.gate import Gate, bars, require_bars
from bench.quality import QualityChange, accuracy_change
from core.data import Data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def report(exported: OnnxModel, quantized: OnnxModel, digits: Data) -> BenchReport:
    return bench([exported, quantized], [BenchConfig(iterations=20, rounds=2, max_rounds=2, threads=1)], digits)


@pytest.mark.parametrize(
    ("word", "kept", "missed"),
    [
        ("min_speedup", 0.001, 1000.0),
        ("max_latency_ms", 1000.0, 0.0),
        ("max_drop", 50.0, -50.0),
        ("min_accuracy", 50.0, 100.5),
        ("max_size_bytes", 10**9, 10),
    ],
)
def test_every_word_opens_and_closes(report: BenchReport, word: str, kept: float, missed: float) -> None:
    (bar,) = bars(Gate(**{word: kept}), report)
    assert bar.ok
    require_bars((bar,))
    (bar,) = bars(Gate(**{word: missed}), report)
    assert not bar.ok
    with pytest.raises(GateMissedError, match=f"the gate stays shut: {word} is {missed:g}, measured") as caught:
        require_bars((bar,))
    assert caught.value.exit_code == 3


def test_limits_that_are_not_set_are_not_checked(report: BenchReport) -> None:
    assert bars(Gate(), report) == ()


@pytest.mark.parametrize("word", ["max_drop", "min_accuracy"])
def test_accuracy_that_was_not_measured_cannot_pass(exported: OnnxModel, word: str) -> None:
    without = bench([exported], [BenchConfig(iterations=10, rounds=1, max_rounds=1)])
    with pytest.raises(ToolError, match=f"{word} limits accuracy, which the bench did not measure"):
        bars(Gate(**{word: 1.0}), without)


def test_a_drop_of_exactly_the_limit_is_kept(report: BenchReport) -> None:
    before = np.arange(1000) >= 100
    change = QualityChange(**accuracy_change(before, np.arange(1000) >= 107).model_dump(), agreement=99.3)
    last = report.rows[-1].model_copy(update={"change": change})
    lost = report.model_copy(update={"rows": (report.rows[0], last)})
    assert bars(Gate(max_drop=0.7), lost)[0].ok
    assert not bars(Gate(max_drop=0.69), lost)[0].ok
