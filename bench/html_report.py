"""The bench report as one HTML file that opens offline: data, charts and the code that draws them are all inside."""

from pathlib import Path
from string import Template

from bench.compare import BenchReport
from core.errors import ToolError
from core.whole_output import require_writable, whole_file

_PARTS = Path(__file__).with_name("html_report_page")
_SCRIPTS = ("words.js", "charts.js", "tables.js", "downloads.js", "extras.js", "page.js")


def refuse_report(path: Path) -> None:
    """Raise `ToolError` where a page cannot be written, or would replace a file that is no page: a model, data."""
    require_writable(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        raise ToolError(f"{path} exists already and is no .html file, which a report may replace; choose another")


def write_html(report: BenchReport, path: Path) -> None:
    """Write a report as a page for any browser, which draws it from the report's own JSON.

    Raises:
        ToolError: The file cannot be written.
    """
    from plotly.offline import get_plotlyjs

    page = Template(_part("page.html")).substitute(
        style=_part("page.css"),
        report=_within_script(report.model_dump_json(indent=2)),
        plotly=get_plotlyjs(),
        script="\n".join(map(_part, _SCRIPTS)),
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _within_script(json: str) -> str:
    """Escape what could end a script element; JSON has it inside strings only, where the escape means the same."""
    return json.replace("<", "\\u003c")
