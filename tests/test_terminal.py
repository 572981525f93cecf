"""Tables on a terminal: side by side where there is room, else below one another, and no word is broken."""

import io

from rich.console import Console

from terminal import print_rows

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
