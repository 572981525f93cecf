"""A bench report against an older one: what regressed, told from what is noise."""

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from bench.compare import BENCH_FORMAT_VERSION, BenchReport, BenchRow
from bench.extras import FullReport
from bench.intervals import Interval
from bench.quality import Quality, accuracy_change, right_samples
from core.errors import GateMissedError, ToolError
from core.references import missing_path

SPEEDUP_TOLERANCE = 0.03  # a ratio to the same baseline moves by this much between runs of one machine
LATENCY_TOLERANCE = 0.10  # and a latency alone, with nothing beside it to tell the machine's mood, by this much
SIZE_TOLERANCE = 0.01

Figure = Literal["speedup", "p50_ms", "accuracy", "size_bytes"]
Verdict = Literal["regressed", "improved", "no difference shown"]


class Change(BaseModel, frozen=True):
    """One figure of one row in both reports.

    Attributes:
        name: The row's model; runtime, provider, threads and batch size say which row.
        figure: ``speedup`` against a baseline that is the same in both, else ``p50_ms``; ``accuracy`` in percent;
            ``size_bytes``.
        before: Its value in the old report.
        after: Its value in the new one.
        interval: Of after over before for speedup and p50_ms (99 %), of the points lost for accuracy (95 %).
        verdict: ``regressed`` or ``improved`` where the whole interval lies beyond the tolerance.
    """

    name: str
    runtime: str
    provider: str
    threads: int
    batch_size: int
    figure: Figure
    before: float
    after: float
    interval: Interval | None
    verdict: Verdict


class Regression(BaseModel, frozen=True):
    """All changes, and what could not be compared."""

    changes: tuple[Change, ...]
    not_compared: tuple[str, ...]


class ComparedReport(FullReport, frozen=True):
    """A bench report and what regressed since an older one."""

    regression: Regression


class _Head(BaseModel, frozen=True):
    """What every report begins with, whatever its format version."""

    stage: str
    format_version: str


def load_report(path: Path) -> BenchReport:
    """Read a report that ``bench --json`` wrote.

    Raises:
        ToolError: It is missing, damaged or of another format version.
    """
    if not path.is_file():
        raise missing_path(path)
    contents = path.read_bytes()
    try:
        head = _Head.model_validate_json(contents)
        if head.stage == "bench" and head.format_version != BENCH_FORMAT_VERSION:
            raise ToolError(
                f"{path} is a report of format version {head.format_version}, this onnxpress compares with "
                f"{BENCH_FORMAT_VERSION}; make it again with `bench --json`"
            )
        return BenchReport.model_validate_json(contents)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ToolError(f"{path} is no report of `bench --json`: {where} {first['msg']}") from error


def compare_reports(old: BenchReport, new: FullReport) -> ComparedReport:
    """Compare the rows that both reports have, and return the new one with what changed.

    Accuracy is compared on the same samples only, speed on the same machine only: through the speedup to a baseline
    that was timed in the same run, which the machine's mood does not move, where that is the same model in both; of the
    baseline itself through the p50.

    Raises:
        ToolError: They have no row in common.
    """
    before = {_key(row): row for row in old.rows}
    pairs = [(before[_key(row)], row) for row in new.rows if _key(row) in before]
    if not pairs:
        raise ToolError("the reports have no model and setting in common; bench the same files in the same setting")
    same_machine = old.machine.model_dump(exclude={"system"}) == new.machine.model_dump(exclude={"system"})
    missed = [] if same_machine else ["latencies: the reports are of different machines"]
    if old.sequence_length != new.sequence_length:
        missed.append(f"latencies: of texts of {old.sequence_length} and of {new.sequence_length} tokens")
    same_data = (old.samples_digest, old.split) == (new.samples_digest, new.split)
    changes: list[Change] = []
    for first, second in pairs:
        if same_machine and old.sequence_length == new.sequence_length:
            changes.append(_speed(first, second, _baseline(old, first), _baseline(new, second)))
        if first.quality and second.quality and same_data and first.quality.samples == second.quality.samples:
            changes.append(_accuracy(first.quality, second.quality, second))
        elif second.quality:
            missed.append(f"accuracy of {second.name}: the old report has none on the same samples")
        changes.append(_size(first, second))
    found = Regression(changes=tuple(changes), not_compared=tuple(missed))
    return ComparedReport(**dict(new), regression=found)


def require_no_regression(found: Regression) -> None:
    """Raise `GateMissedError` when a figure regressed."""
    worse = [
        f"{one.name}: {one.figure} {one.before:.4g} -> {one.after:.4g}"
        for one in found.changes
        if one.verdict == "regressed"
    ]
    if worse:
        raise GateMissedError(f"regressed against the old report: {'; '.join(worse)}")


def _key(row: BenchRow) -> tuple[object, ...]:
    return row.name, row.runtime, *row.setting


def _baseline(report: BenchReport, row: BenchRow) -> BenchRow:
    return next(one for one in report.rows if one.setting == row.setting)


def _speed(old: BenchRow, new: BenchRow, old_baseline: BenchRow, new_baseline: BenchRow) -> Change:
    same = (old_baseline.sha256, old_baseline.runtime) == (new_baseline.sha256, new_baseline.runtime)
    if same and old.speedup and new.speedup:
        before, after = old.speedup.ratio, new.speedup.ratio
        interval = _ratio_interval(before, old.speedup.interval, after, new.speedup.interval)
        verdict = _verdict(interval, SPEEDUP_TOLERANCE, above="improved", below="regressed")
        return _change(new, "speedup", before, after, interval, verdict)
    before, after = old.latency.p50_ms, new.latency.p50_ms
    interval = _ratio_interval(before, old.latency.p50_interval_ms, after, new.latency.p50_interval_ms)
    verdict = _verdict(interval, LATENCY_TOLERANCE, above="regressed", below="improved")
    return _change(new, "p50_ms", before, after, interval, verdict)


def _accuracy(before: Quality, after: Quality, row: BenchRow) -> Change:
    found = accuracy_change(right_samples(before), right_samples(after))
    verdicts: dict[str, Verdict] = {"worse": "regressed", "better": "improved"}
    verdict = verdicts.get(found.verdict, "no difference shown")
    return _change(row, "accuracy", before.accuracy, after.accuracy, found.drop_interval, verdict)


def _size(old: BenchRow, new: BenchRow) -> Change:
    ratio = new.size_bytes / old.size_bytes
    verdict = _verdict((ratio, ratio), SIZE_TOLERANCE, above="regressed", below="improved")
    return _change(new, "size_bytes", old.size_bytes, new.size_bytes, None, verdict)


def _change(
    row: BenchRow, figure: Figure, before: float, after: float, interval: Interval | None, verdict: Verdict
) -> Change:
    return Change(
        name=row.name,
        runtime=row.runtime,
        provider=row.provider,
        threads=row.threads,
        batch_size=row.batch_size,
        figure=figure,
        before=before,
        after=after,
        interval=interval,
        verdict=verdict,
    )


def _verdict(interval: Interval | None, tolerance: float, *, above: Verdict, below: Verdict) -> Verdict:
    """Judge the interval of a ratio: it must lie beyond the tolerance as a whole."""
    if interval is None:
        return "no difference shown"
    if interval[0] > 1 + tolerance:
        return above
    return below if interval[1] < 1 - tolerance else "no difference shown"


def _ratio_interval(
    before: float, before_interval: Interval | None, after: float, after_interval: Interval | None
) -> Interval | None:
    """Return the interval of after over before, whose errors are independent."""
    if before_interval is None or after_interval is None:
        return None
    half = math.hypot(*(math.log(high / low) / 2 for low, high in (before_interval, after_interval)))
    centre = math.log(after / before)
    return math.exp(centre - half), math.exp(centre + half)
