"""The bench report in words."""

import pytest

from bench.compare import BenchConfig, BenchReport, bench, sweep
from bench.extras import FullReport
from bench.noise import noise
from bench.regression import compare_reports
from bench.table import bench_remarks, bench_tables, markdown, regression_table, setting_words
from core.data import Data
from core.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def report(exported: OnnxModel, quantized: OnnxModel, digits: Data) -> BenchReport:
    config = BenchConfig(iterations=2, rounds=2, max_rounds=2, threads=1)
    return bench([exported, quantized], sweep(config, ["cpu"], [1, 8], [1]), digits)


def test_there_is_a_speed_table_a_setting_and_one_of_quality_and_of_cost(report: BenchReport) -> None:
    tables = bench_tables(report)
    titles = [table.title for table in tables]
    assert titles[:2] == ["cpu, batch 1, 1 thread", "cpu, batch 8, 1 thread"]
    assert titles[2].endswith("samples of the test split, on cpu")
    assert titles[3] == "a process of its own: cpu, batch 1, 1 thread"
    names = [row.name for row in report.rows[:2]]
    assert all([row[0] for row in table.rows] == names for table in tables)
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)


def test_figures_are_those_of_the_report(report: BenchReport) -> None:
    speed = dict(zip(bench_tables(report)[0].header, bench_tables(report)[0].rows[1], strict=True))
    row = report.rows[1]
    assert row.speedup is not None
    assert speed["p50 ms"] == f"{row.latency.p50_ms:.3f}"
    assert speed["speedup"] == f"{row.speedup.ratio:.2f}x"
    assert speed["p99 ms"] == speed["p90 ms"] == "-"
    assert speed["verdict"] == "no difference shown"


def test_markdown_has_a_line_a_row(report: BenchReport) -> None:
    lines = markdown(bench_tables(report)[0]).splitlines()
    assert lines[0].startswith("| model | p50 ms |")
    assert len(lines) == 4


def test_a_noisy_machine_and_blunt_speedups_are_remarked_on(report: BenchReport) -> None:
    quiet = report.model_copy(update={"noise": noise(0.01, 0.01), "sharp": True})
    assert bench_remarks(quiet) == []
    loud = report.model_copy(update={"noise": noise(0.2, 0.5), "sharp": False})
    assert bench_remarks(loud)[0].startswith("noisy machine: the baseline's rounds are 20.0 % off")
    assert "wider than 1 %: measure for longer" in bench_remarks(loud)[1]


def test_what_changed_is_tabled(report: BenchReport) -> None:
    table = regression_table(compare_reports(report, FullReport(**dict(report))).regression)
    assert {row[-1] for row in table.rows} == {"no difference shown"}
    assert {row[2] for row in table.rows} == {"p50_ms", "speedup", "accuracy", "size_bytes"}


@pytest.mark.parametrize(
    ("threads", "words"),
    [(0, "cpu, batch 1, all cores"), (1, "cpu, batch 1, 1 thread"), (4, "cpu, batch 1, 4 threads")],
)
def test_a_setting_is_said_in_words(threads: int, words: str) -> None:
    assert setting_words("cpu", threads, 1) == words
