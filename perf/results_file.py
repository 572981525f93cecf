"""What the scripts here share: where a result is written, what it says of itself, how it is rendered."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bench.table import TextTable, markdown
from core.errors import ToolError
from core.machine import package_versions, this_machine
from core.result import FORMAT_VERSION
from core.whole_output import whole_file

ROOT = Path(__file__).parent.parent


def measured_here(name: str, command: str, **figures: Any) -> dict[str, Any]:
    """Return a result with what it says of itself: by what it was made, at which commit, where."""
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "command": command,
        "commit": commit(),
        "machine": this_machine().model_dump(),
        "versions": package_versions(),
        **figures,
    }


def publish(result: dict[str, Any], text: str, *, as_json: bool) -> NoReturn:
    """Write docs/results/NAME.json and NAME.md, print one of them, and exit 3 when a bar is missed."""
    as_text = {".json": json.dumps(result, indent=2) + "\n", ".md": text}
    for suffix, contents in as_text.items():
        with whole_file(ROOT / "docs" / "results" / f"{result['name']}{suffix}") as part:
            part.write_text(contents)
    print(as_text[".json" if as_json else ".md"])
    sys.exit(0 if all(bar["ok"] for bar in result["bars"]) else 3)


@contextmanager
def mistakes_told() -> Iterator[None]:
    """End with one line and the command line's exit code where the block raises what a user can mend."""
    try:
        yield
    except ToolError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def published(name: str) -> dict[str, Any]:
    """Return the result that stands in docs/results under a name; empty where there is none."""
    path = ROOT / "docs" / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def commit() -> str:
    """Return the commit of this checkout, marked when it has uncommitted changes but for results, which run nothing."""
    sha, dirty = (
        subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--", ".", ":!docs/results"))
    )
    return sha + (" with uncommitted changes" if dirty else "")


def trees(*paths: str) -> str:
    """Return the hashes of folders and files as they are committed: what was tried by other code is tried again."""
    names = [f"HEAD:{path}" for path in paths]
    return subprocess.run(
        ["git", "rev-parse", *names], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def page(title: str, result: dict[str, Any], *parts: str, level: int = 1) -> str:
    """Return a result as Markdown: its title, by what it was made, the parts, and where it was measured."""
    made_by = f"Made by `{result['command']}` at commit {result['commit']}; do not edit."
    return "\n".join([f"{'#' * level} {title}\n", f"{made_by}\n", *parts, _where(result)])


def markdown_table(rows: Sequence[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """Return rows as a Markdown table: header to what a cell says of a row."""
    cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
    return markdown(TextTable("", tuple(columns), cells))


def _where(result: dict[str, Any]) -> str:
    """Say on which machine and with which packages a result was measured."""
    machine = result["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, int8 instructions "
        f"{', '.join(machine['int8_instructions']) or 'none'}, "
        f"GPU {machine['gpu'] or 'none'}, {machine['system']}, Python {machine['python']}.\n\n"
        + ", ".join(f"{package} {version}" for package, version in result["versions"].items())
        + ".\n"
    )
