"""What the command line shows a person: reports as tables on stdout; progress and log lines on stderr."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PLAIN_LINE_SECONDS = 10.0
SHORTEST_S = 1e-9  # a clock may stand still between two calls: Windows's ticks every 16 ms
ANY_WIDTH = 10_000
NOTHING: tuple[Any, ...] = (None, (), [], {}, "")  # what a report need not be shown to hold
OUR_LOGGERS = ("recipe", "runner", "stages", "run_folder", "core", "compress", "export", "bench")


def set_up_logging(*, verbose: bool, quiet: bool) -> None:
    """Send our log lines to stderr, and the libraries' warnings only when asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO if verbose else logging.ERROR)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")


@contextmanager
def progress_shown(*, quiet: bool) -> Iterator[Callable[[str, int, int, str], None]]:
    """Yield a progress function: a bar with rate and ETA on a terminal, a line every ten seconds elsewhere."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _plain_lines()


def show_report(report: Any) -> None:
    """Print a report as tables on stdout."""
    console = _console()
    if report.stage == "run":
        console.print(_stages_table(report))
        if report.bench is not None:
            _print_bench(console, report.bench)
        for bar in report.bars:
            console.print(f"{'ok    ' if bar.ok else 'MISSED'} {bar.name}: {bar.value:.4g} (limit {bar.limit:g})")
        if report.artifact is not None:
            console.print(f"wrote {report.artifact}", highlight=False)
    elif report.stage == "bench":
        _print_bench(console, report)
    elif report.stage == "plan":
        console.print(_plan_table(report))
    else:
        console.print(_fields_table(report))
        if getattr(report, "tried", ()):
            _print_dumps(console, [one.model_dump() for one in report.tried])


def show_tried(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print, on stderr, what was tried before a limit was missed."""
    from rich.console import Console

    _print_dumps(Console(stderr=True, width=None if sys.stderr.isatty() else 140), rows)


def _print_dumps(console: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [["" if value is None else _cell(value) for value in row.values()] for row in rows]
    print_rows(console, [name.replace("_", " ") for name in rows[0]], cells)


def print_rows(console: Any, header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows as a table, or below one another where the console is too narrow for it."""
    table = _table(*header)
    table.caption = title or None
    for row in rows:
        table.add_row(*row)
    if console.measure(table, options=console.options.update(width=ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    if title:
        console.print(title, style="italic")
    for row in rows:
        block = _table("", "")
        block.show_header = False
        for name, cell in zip(header, row, strict=True):
            if cell:
                block.add_row(name, cell)
        console.print(block)


def _print_bench(console: Any, report: Any) -> None:
    from bench.extras import FullReport
    from bench.regression import ComparedReport
    from bench.table import bench_remarks, bench_tables, extra_tables, regression_table

    extra = extra_tables(report) if isinstance(report, FullReport) else []
    compared = [regression_table(report.regression)] if isinstance(report, ComparedReport) else []
    for text in [*bench_tables(report), *extra, *compared]:
        print_rows(console, text.header, text.rows, text.title)
    for remark in bench_remarks(report):
        console.print(remark)
    for missed in report.regression.not_compared if isinstance(report, ComparedReport) else ():
        console.print(f"not compared: {missed}")


def _plan_table(report: Any) -> Any:
    table = _table("stage", "kind", "from", "state")
    for stage in report.stages:
        named = ", ".join(f"{role}={value}" for role, value in stage.references.items())
        table.add_row(stage.name, stage.kind, named, "done" if stage.done else "to do")
    return table


def _stages_table(report: Any) -> Any:
    table = _table("stage", "kind", "seconds", "result")
    for stage in report.stages:
        seconds = f"{stage.seconds:.1f}" + (" (done before)" if stage.cached else "")
        table.add_row(stage.name, stage.kind, seconds, _one_line(stage.report))
    return table


def _one_line(fields: dict[str, Any]) -> str:
    """Sum up a stage's report in a few words."""
    words = {
        "validation_accuracy": "validation {:.2f} %",
        "macs_ratio": "{:.2f}x fewer MACs",
        "measured_speedup": "{:.2f}x the speed",
        "size_bytes": "{} bytes",
    }
    found = [text.format(fields[name]) for name, text in words.items() if isinstance(fields.get(name), (int, float))]
    if fields.get("comparisons"):
        found.append(f"largest error {max(one['max_abs_err'] for one in fields['comparisons']):.2g}")
    return ", ".join(found)


def _fields_table(report: Any) -> Any:
    table = _table("", "")
    table.show_header = False
    for name, value in report.model_dump().items():
        if name not in ("format_version", "metrics", "tried") and value not in NOTHING:
            table.add_row(name, _cell(value))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item not in NOTHING}
        return ", ".join(f"{key} {_cell(item)}" for key, item in said.items())
    if isinstance(value, (list, tuple)):
        separator = "\n" if value and isinstance(value[0], dict) else ", "
        return separator.join(_cell(item) for item in value)
    return str(value)


def _console() -> Any:
    """Make the console of stdout; where that is no terminal, wide enough for every table."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def _table(*header: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(
            name, overflow="fold", no_wrap=index == 0, justify="left" if index == 0 or name in _TEXT else "right"
        )
    return table


_TEXT = {"", "kind", "from", "state", "result", "setting", "figure", "verdict", "fell back", "form"}


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task: Any = None
        now_shown, reached = "", 0

        def show(description: str, done: int, total: int, unit: str) -> None:
            nonlocal task, now_shown, reached
            if description != now_shown or done < reached:  # another job
                if task is not None:
                    bars.remove_task(task)
                task = bars.add_task(description, total=total, completed=done, unit=unit, rate="")
            now_shown, reached = description, done
            speed = bars.tasks[-1].speed
            bars.update(task, completed=done, unit=unit, rate=f"{speed:.1f}/s" if speed else "")

        yield show


def _plain_lines() -> Callable[[str, int, int, str], None]:
    now_shown, started, first, reached = "", 0.0, 0, 0
    last_line = time.monotonic()

    def show(description: str, done: int, total: int, unit: str) -> None:
        nonlocal now_shown, started, first, reached, last_line
        now = time.monotonic()
        if description != now_shown or done < reached:  # another job
            started, first = now, done
        now_shown, reached = description, done
        if done == first or now - last_line < PLAIN_LINE_SECONDS:
            return
        last_line = now
        rate = (done - first) / max(now - started, SHORTEST_S)
        left = (total - done) / rate
        duration = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        sys.stderr.write(f"{description}: {done}/{total} {unit}, {rate:.1f}/s, {duration} left\n")

    return show
