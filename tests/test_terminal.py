"""Tables on a terminal: side by side where there is room, else below one another, and no word is broken."""

import io
import time

import pytest
from rich.console import Console

from terminal import print_rows, progress_shown

HEADER = ("model", "speedup", "accuracy %", "verdict")
ROWS = (("a.onnx", "1.00x", "98.11 (97.20-99.02)", ""), ("b.onnx", "2.05x", "98.00", "no faster than what was kept"))


def shown(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_rows(console, HEADER, ROWS, "cpu, batch 1")
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_table_that_fits_has_a_line_a_row() -> None:
    lines = shown(120)
    assert [line.split()[0] for line in lines if ".onnx" in line] == ["a.onnx", "b.onnx"]
    assert lines[0].split() == ["model", "speedup", "accuracy", "%", "verdict"]


def test_a_table_that_does_not_fit_is_stacked() -> None:
    lines = shown(50)
    assert lines[0] == "cpu, batch 1"
    assert sum(line.split()[0] == "model" for line in lines) == 2
    assert any("no faster than what was kept" in line for line in lines)
    assert sum("verdict" in line for line in lines) == 1, "what is empty is left out"
    assert all(len(line) <= 50 for line in lines)


def test_without_a_terminal_progress_is_a_line_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 5.0, 21.0, 41.0, 100.0, 120.0])
    monkeypatch.setattr("terminal.time.monotonic", lambda: next(clock))
    with progress_shown(quiet=False) as show:
        show("distill", 100, 2000, "steps, epoch 1/2")
        show("distill", 110, 2000, "steps, epoch 1/2")  # too soon for a line
        show("distill", 300, 2000, "steps, epoch 1/2")
        show("distill", 1900, 2000, "steps, epoch 2/2")
        show("distill", 1, 50, "steps, epoch 1/1")  # another stage
        show("distill", 11, 50, "steps, epoch 1/1")
    assert capsys.readouterr().err.splitlines() == [
        "distill: 300/2000 steps, epoch 1/2, 10.0/s, 3 min left",
        "distill: 1900/2000 steps, epoch 2/2, 45.0/s, 2 s left",
        "distill: 11/50 steps, epoch 1/1, 0.5/s, 78 s left",
    ]


def test_on_a_terminal_progress_is_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    stderr.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress_shown(quiet=False) as show:
        for total in (40, 30):  # two stages
            for done in range(0, total + 1, 5):
                time.sleep(0.01)
                show("distill", done, total, "steps, epoch 1/2")
    written = stderr.getvalue()
    assert all(one in written for one in ("distill", "30/30", "steps, epoch 1/2", "/s", "0:00:0"))


def test_a_rate_needs_no_clock_that_moves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between two calls of one tick, as Windows's clock has, no time passes."""
    with progress_shown(quiet=False) as progress:
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        progress("train", 1, 10, "steps")
        progress("train", 5, 10, "steps")
    assert "train: 5/10 steps" in capsys.readouterr().err
