"""A bench report as tables of text, for a terminal and for Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from bench.compare import BenchReport, BenchRow
from bench.extras import FullReport
from bench.intervals import Interval
from bench.regression import Change, Regression
from bench.robustness import AttackReport, CorruptionReport
from bench.service import ServiceReport


@dataclass(frozen=True, slots=True)
class TextTable:
    """One table: a title, a header, and rows of as many cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def bench_tables(report: BenchReport) -> list[TextTable]:
    """Return the tables: speed in every setting, accuracy on every provider, cost and placement."""
    tables = []
    for setting in dict.fromkeys(row.setting for row in report.rows):
        rows = [row for row in report.rows if row.setting == setting]
        tables.append(_table(setting_words(*setting), SPEED, rows))
    for provider in dict.fromkeys(row.provider for row in report.rows):
        first = next(row for row in report.rows if row.provider == provider)
        rows = [row for row in report.rows if row.setting == first.setting]
        if rows[0].quality is not None:
            title = f"{rows[0].quality.samples} samples of the {report.split} split, on {provider}"
            tables.append(_table(title, QUALITY, rows))
        files = [row for row in rows if row.cost is not None]
        if files:
            tables.append(_table(f"a process of its own: {setting_words(*first.setting)}", COST, files))
    return tables


def extra_tables(report: FullReport) -> list[TextTable]:
    """Return the tables of robustness and of service figures, where they were measured."""
    tables = []
    if report.corruptions:
        tables.append(_corruptions_table(report.corruptions))
    if report.attack:
        tables.append(_attack_table(report.attack))
    if report.service:
        tables.append(_service_table(report.service))
    return tables


def regression_table(found: Regression) -> TextTable:
    """Return the table of what changed since an older report."""
    rows = tuple(
        (one.name, setting_words(one.provider, one.threads, one.batch_size), *_figures(one), one.verdict)
        for one in found.changes
    )
    return TextTable(
        "against the old report", ("model", "setting", "figure", "before", "after", "interval", "verdict"), rows
    )


def setting_words(provider: str, threads: int, batch_size: int) -> str:
    """Say where and how rows were measured."""
    words = {0: "all cores", 1: "1 thread"}.get(threads, f"{threads} threads")
    return f"{provider}, batch {batch_size}, {words}"


def bench_remarks(report: BenchReport) -> list[str]:
    """Say what the reader of the figures should know of how they were measured."""
    remarks = [f"latency of texts of {report.sequence_length} tokens"] if report.sequence_length else []
    if report.noise.noisy:
        remarks.append(f"noisy machine: {report.noise}")
    if not report.sharp and len({row.name for row in report.rows}) > 1:
        wide = f"the speedups' intervals are wider than {100 * report.half_width:g} %"
        remarks.append(f"{wide}: measure for longer or on a quieter machine")
    return remarks


def markdown(table: TextTable) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _table(title: str, columns: dict[str, Callable[[BenchRow], str]], rows: Sequence[BenchRow]) -> TextTable:
    cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
    return TextTable(title, tuple(columns), cells)


def _corruptions_table(found: CorruptionReport) -> TextTable:
    kinds = list(dict.fromkeys(one.corruption for one in found.rows[0].corrupted))
    rows = []
    for row in found.rows:
        means = [
            mean(one.accuracy for one in row.corrupted if one.corruption == kind)  # over severities
            for kind in kinds
        ]
        cells = (row.clean_accuracy, *means, row.mean_accuracy, row.mean_drop)
        rows.append((row.name, *(f"{cell:.2f}" for cell in cells)))
    severities = ", ".join(str(severity) for severity in found.severities)
    return TextTable(
        f"accuracy % under corruptions, mean of severities {severities}, {found.samples} samples",
        ("model", "clean", *kinds, "mean", "points lost"),
        tuple(rows),
    )


def _attack_table(found: AttackReport) -> TextTable:
    rows = tuple(
        (
            row.name,
            f"{row.clean_accuracy:.2f}",
            f"{row.attacked_accuracy:.2f}",
            f"{row.drop:.2f}",
            found.source.name if row.is_transfer else "itself",
        )
        for row in (found.source, *found.rows)
    )
    title = f"accuracy % under {found.attack}, a step of {255 * found.epsilon:g}/255, {found.samples} samples"
    return TextTable(title, ("model", "clean", "attacked", "points lost", "crafted on"), rows)


def _service_table(found: Sequence[ServiceReport]) -> TextTable:
    rows = []
    for one in found:
        single, offline, server = one.single_stream, one.offline, one.server
        rows.append(
            (
                one.name,
                f"{single.p50_ms:.3f}" if single else "-",
                f"{single.p90_ms:.3f}" if single else "-",
                f"{single.p99_ms:.3f}" if single else "-",
                f"{offline.samples_per_second:.0f}" if offline else "-",
                f"{server.rate:.0f}" if server and server.rate is not None else "none" if server else "-",
                f"{server.p99_ms:.3f}" if server and server.p99_ms is not None else "-",
            )
        )
    slo = next((f"p99 within {one.server.slo_ms:g} ms" for one in found if one.server), "no SLO")
    title = f"MLPerf LoadGen {found[0].loadgen}: {found[0].provider}, {slo}"
    header = ("model", "single p50 ms", "p90 ms", "p99 ms", "offline samples/s", "server queries/s", "server p99 ms")
    return TextTable(title, header, tuple(rows))


def _figures(change: Change) -> tuple[str, str, str, str]:
    interval = "-" if change.interval is None else f"{change.interval[0]:.3f} to {change.interval[1]:.3f}"
    return change.figure, f"{change.before:.6g}", f"{change.after:.6g}", interval


def _within(value: float | None, interval: Interval | None, digits: int, unit: str = "") -> str:
    if value is None:
        return "-"
    text = f"{value:.{digits}f}{unit}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})"


def _signed(value: float, interval: Interval) -> str:
    return f"{value:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def _runtime(row: BenchRow) -> str:
    return row.name if row.runtime == "onnxruntime" else f"{row.name}, {row.runtime}"


SPEED: dict[str, Callable[[BenchRow], str]] = {
    "model": _runtime,
    "p50 ms": lambda row: _within(row.latency.p50_ms, row.latency.p50_interval_ms, 3),
    "p90 ms": lambda row: _within(row.latency.p90_ms, None, 3),
    "p99 ms": lambda row: _within(row.latency.p99_ms, None, 3),
    "samples/s": lambda row: f"{row.throughput:.0f}",
    "speedup": lambda row: _within(row.speedup.ratio, row.speedup.interval, 2, "x") if row.speedup else "1.00x",
    "verdict": lambda row: row.speedup.verdict if row.speedup else "baseline",
    "KiB": lambda row: f"{row.size_bytes / 1024:.0f}",
}
QUALITY: dict[str, Callable[[BenchRow], str]] = {
    "model": _runtime,
    "accuracy %": lambda row: _within(row.quality.accuracy, row.quality.accuracy_interval, 2) if row.quality else "-",
    "top-5 %": lambda row: _within(row.quality.top5_accuracy, None, 2) if row.quality else "-",
    "F1 %": lambda row: f"{row.quality.f1:.2f}" if row.quality else "-",
    "points lost": lambda row: _signed(row.change.drop, row.change.drop_interval) if row.change else "",
    "McNemar p": lambda row: f"{row.change.mcnemar_p:.2g}" if row.change else "",
    "agreement %": lambda row: f"{row.change.agreement:.2f}" if row.change else "",
    "verdict": lambda row: row.change.verdict if row.change else "baseline",
}
COST: dict[str, Callable[[BenchRow], str]] = {
    "model": _runtime,
    "load ms": lambda row: f"{row.cost.load_ms:.1f}" if row.cost else "-",
    "first run ms": lambda row: f"{row.cost.first_run_ms:.1f}" if row.cost else "-",
    "peak MiB": lambda row: f"{row.cost.peak_rss_bytes / 2**20:.1f}" if row.cost else "-",
    "of it the model": lambda row: (
        f"{(row.cost.peak_rss_bytes - row.cost.empty_rss_bytes) / 2**20:.1f}" if row.cost else "-"
    ),
    "nodes": lambda row: (
        ", ".join(f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in row.placement.nodes.items())
        if row.placement
        else "-"
    ),
    "placed": lambda row: f"{100 * row.placement.placed_ratio:.1f} %" if row.placement else "-",
    "fell back": lambda row: (
        ", ".join(f"{name} ({count})" for name, count in row.placement.fell_back.items()) or "none"
        if row.placement
        else "-"
    ),
    "copies": lambda row: str(row.placement.copies) if row.placement else "-",
}
