"""An older report against a new one: what regressed is found, what is noise is not."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.compare import BenchConfig, BenchRow
from bench.extras import ExtrasConfig, FullReport, full_bench
from bench.latency import latency, speedup
from bench.quality import quality
from bench.regression import Change, compare_reports, load_report, require_no_regression
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel


@pytest.fixture(scope="module")
def report(exported: OnnxModel, quantized: OnnxModel) -> FullReport:
    """A real report whose timings `timed` replaces."""
    return full_bench(
        [exported, quantized], [BenchConfig(iterations=20, rounds=2, max_rounds=2, threads=1)], ExtrasConfig()
    )


def timed(report: FullReport, *milliseconds: float, accuracy: float | None = None, seed: int = 0) -> FullReport:
    """The report as it were had its models taken so long, with 2 % of noise between rounds."""
    random = np.random.default_rng(seed)
    mood = random.normal(1, 0.02, 12)
    rounds = [[mood[i] * value * random.normal(1, 0.005, (12, 5)) for i in range(12)] for value in milliseconds]
    rows = []
    for row, times in zip(report.rows, rounds, strict=True):
        change = {
            "latency": latency(times, 10),
            "speedup": speedup(rounds[0], times) if row.speedup else None,
            "quality": None if accuracy is None else scored(accuracy),
        }
        rows.append(row.model_copy(update=change))
    return report.model_copy(update={"rows": tuple(rows), "samples_digest": "the digits" if accuracy else None})


def scored(accuracy: float) -> object:
    targets = np.zeros(1000, np.int64)
    logits = np.zeros((1000, 3), np.float32)
    logits[: round(10 * accuracy), 0] = 1
    logits[round(10 * accuracy) :, 1] = 1
    return quality(logits, targets)


def changes(old: FullReport, new: FullReport) -> dict[tuple[int, str], Change]:
    names = [row.name for row in new.rows]
    return {(names.index(one.name), one.figure): one for one in compare_reports(old, new).regression.changes}


def test_a_report_against_itself_shows_nothing(report: FullReport) -> None:
    same = timed(report, 2.0, 1.0, accuracy=90)
    found = compare_reports(same, same)
    assert {one.verdict for one in found.regression.changes} == {"no difference shown"}
    require_no_regression(found.regression)


def test_another_day_of_the_same_files_shows_nothing(report: FullReport) -> None:
    old = timed(report, 2.0, 1.0)
    for seed in range(1, 8):
        slower_day = timed(report, 2.1, 1.05, seed=seed)
        assert {one.verdict for one in changes(old, slower_day).values()} == {"no difference shown"}


def test_a_model_that_lost_a_tenth_of_its_speedup_regressed(report: FullReport) -> None:
    found = changes(timed(report, 2.0, 1.0), timed(report, 2.1, 1.17, seed=1))
    assert found[1, "speedup"].verdict == "regressed"
    assert found[0, "p50_ms"].verdict == "no difference shown"
    interval = found[1, "speedup"].interval
    assert interval is not None
    assert interval[0] < 1.05 / 1.17 < interval[1]
    assert changes(timed(report, 2.0, 1.0), timed(report, 2.0, 0.8, seed=1))[1, "speedup"].verdict == "improved"


def test_a_baseline_far_slower_than_before_regressed(report: FullReport) -> None:
    found = changes(timed(report, 2.0, 1.0), timed(report, 2.6, 1.3, seed=1))
    assert found[0, "p50_ms"].verdict == "regressed"
    assert found[1, "speedup"].verdict == "no difference shown"


def test_accuracy_is_tested_on_the_same_samples(report: FullReport) -> None:
    old = timed(report, 2.0, 1.0, accuracy=90)
    assert changes(old, timed(report, 2.0, 1.0, accuracy=88))[1, "accuracy"].verdict == "regressed"
    assert changes(old, timed(report, 2.0, 1.0, accuracy=89.8))[1, "accuracy"].verdict == "no difference shown"
    assert changes(old, timed(report, 2.0, 1.0, accuracy=93))[1, "accuracy"].verdict == "improved"


def test_a_regression_closes_the_gate(report: FullReport) -> None:
    found = compare_reports(timed(report, 2.0, 1.0), timed(report, 2.0, 1.3, seed=1))
    with pytest.raises(GateMissedError, match=r"regressed against the old report: .*: speedup \d\.?\d* -> 1\.5"):
        require_no_regression(found.regression)


def test_a_larger_file_is_a_regression(report: FullReport) -> None:
    grown = report.rows[1].model_copy(update={"size_bytes": 2 * report.rows[1].size_bytes})
    found = changes(report, report.model_copy(update={"rows": (report.rows[0], grown)}))
    assert found[1, "size_bytes"].verdict == "regressed"


def test_speeds_of_two_machines_are_not_compared(report: FullReport) -> None:
    other = report.model_copy(update={"machine": report.machine.model_copy(update={"cpu": "another"})})
    found = compare_reports(report, other).regression
    assert {one.figure for one in found.changes} == {"size_bytes"}
    assert "latencies: the reports are of different machines" in found.not_compared


def test_accuracy_that_was_not_measured_before_is_said(report: FullReport) -> None:
    found = compare_reports(timed(report, 2.0, 1.0), timed(report, 2.0, 1.0, accuracy=90)).regression
    assert len([one for one in found.not_compared if "has none on the same samples" in one]) == 2


def test_accuracy_on_changed_data_is_not_compared(report: FullReport) -> None:
    old = timed(report, 2.0, 1.0, accuracy=90)
    new = timed(report, 2.0, 1.0, accuracy=80).model_copy(update={"samples_digest": "the digits, relabelled"})
    found = compare_reports(old, new).regression
    assert "accuracy" not in {one.figure for one in found.changes}
    assert len([one for one in found.not_compared if "has none on the same samples" in one]) == 2


def test_another_torch_module_is_another_baseline(
    untrained: TorchModel, trained: TorchModel, exported: OnnxModel
) -> None:
    """They go by one name, and the machine's mood alone does not tell the speedups to them apart."""
    setting = BenchConfig(iterations=20, rounds=2, max_rounds=2, threads=1)
    old, new, same = (
        full_bench([replace(model, name="net"), exported], [setting], ExtrasConfig())
        for model in (untrained, trained, trained)
    )
    assert "speedup" not in {one.figure for one in compare_reports(old, new).regression.changes}
    assert "speedup" in {one.figure for one in compare_reports(new, same).regression.changes}


def test_a_report_of_another_format_version_is_told(report: FullReport, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(report.model_copy(update={"format_version": "1.0"}).model_dump_json())
    with pytest.raises(
        ToolError, match=r"old\.json is a report of format version 1\.0, this .* compares with 1\.1; make"
    ):
        load_report(tmp_path / "old.json")


def test_reports_of_other_models_are_refused(report: FullReport) -> None:
    renamed = tuple(row.model_copy(update={"name": f"other-{row.name}"}) for row in report.rows)
    with pytest.raises(ToolError, match="no model and setting in common"):
        compare_reports(report, report.model_copy(update={"rows": renamed}))


def test_a_report_survives_json(report: FullReport, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(report.model_dump_json())
    assert load_report(tmp_path / "old.json").rows == report.rows


@pytest.mark.parametrize("contents", ["{}", "[", '{"stage": "export"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, contents: str) -> None:
    (tmp_path / "old.json").write_text(contents)
    with pytest.raises(ToolError, match=r"old\.json is no report of `bench --json`"):
        load_report(tmp_path / "old.json")


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(ToolError, match=r"odl\.json does not exist.*Did you mean.*old\.json"):
        load_report(tmp_path / "odl.json")


def test_rows_are_matched_by_setting(report: FullReport) -> None:
    row: BenchRow = report.rows[0]
    moved = row.model_copy(update={"batch_size": 8})
    found = compare_reports(report, report.model_copy(update={"rows": (row, moved)})).regression
    assert {one.batch_size for one in found.changes} == {1}
    assert math.isclose(found.changes[-1].before, row.size_bytes)
