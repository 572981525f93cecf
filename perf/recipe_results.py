"""Run a recipe and write its table to docs/results: NAME.json (what was measured) and NAME.md (rendered from it).

Usage: python perf/recipe_results.py recipes/cifar10-resnet56.toml [--output runs/NAME] [--set KEY=VALUE ...]

Stages that are done in the output folder are not run again; the bench is, so that the table is of this commit.
Exits 3 when a bar of the recipe's gate is missed.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bars import bars_table
from results_file import commit, markdown_table, mistakes_told, page, publish

from bench.compare import BenchReport
from bench.table import bench_remarks, bench_tables, markdown
from core.errors import ToolError
from core.result import FORMAT_VERSION
from recipe import find_recipe, load_recipe
from runner import RunReport, run
from terminal import progress_shown, set_up_logging


def main() -> None:
    """Parse, run, write, and exit with the gate's verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the run; default runs/NAME")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    set_up_logging(verbose=False, quiet=False)
    made_at = commit()
    with mistakes_told():
        path = find_recipe(given.recipe)
        recipe = load_recipe(path, tuple(given.overrides))
        output = given.output or Path("runs") / recipe.name
        for stage in recipe.stages:
            if stage.kind == "bench":
                shutil.rmtree(output / stage.name, ignore_errors=True)
        with progress_shown(quiet=False) as progress:
            report = run(recipe, output, progress=progress)
        result = _result(report, path, given.overrides, made_at)
    publish(result, _markdown(result), as_json=given.json)


def _result(report: RunReport, recipe: Path, overrides: list[str], made_at: str) -> dict[str, Any]:
    if report.bench is None:
        raise ToolError(f"{recipe} has no bench stage, so there is no table to write")
    bench = report.bench
    named = [_without_folder(override) for override in overrides]
    return {
        "format_version": FORMAT_VERSION,
        "name": report.recipe,
        "command": " ".join(
            ["python perf/recipe_results.py", f"recipes/{recipe.name}", *(f"--set {one}" for one in named)]
        ),
        "commit": made_at,
        "machine": bench.machine.model_dump(),
        "versions": bench.versions,
        "recipe": recipe.read_text(),
        "bench": bench.model_dump(exclude={"machine", "versions", "rows"}),
        "rows": [row.model_dump() for row in bench.rows],
        "stages": [stage.model_dump(exclude={"cached"}) for stage in report.stages],
        "bars": [bar.model_dump() for bar in report.bars],
    }


def _markdown(result: dict[str, Any]) -> str:
    bench = BenchReport.model_validate(
        {**result["bench"], "machine": result["machine"], "versions": result["versions"], "rows": result["rows"]}
    )
    return page(
        result["name"],
        result,
        *_bench_lines(bench),
        bars_table(result["bars"]),
        "## How it came about\n",
        markdown_table(result["stages"], STAGE_COLUMNS),
        "## The recipe\n",
        f"```toml\n{result['recipe'].rstrip()}\n```\n",
        "## Where\n",
    )


def _bench_lines(bench: BenchReport) -> list[str]:
    lines = []
    for table in bench_tables(bench):
        lines += [f"{table.title[0].upper()}{table.title[1:]}:", "", markdown(table)]
    first = bench.rows[0].latency
    lines.append(
        f"{first.iterations} runs of each model, interleaved in {len(first.round_p50_ms)} rounds; in brackets the 95 % "
        "interval, of speedups the 99 % interval. " + " ".join(f"{remark}." for remark in bench_remarks(bench))
    )
    return [*lines, ""]


def _accuracy_cell(stage: dict[str, Any]) -> str:
    report = stage["report"]
    accuracy = report.get("validation_accuracy") or (report.get("accuracy") or [None])[-1]
    return "" if accuracy is None else f"{accuracy:.2f}"


STAGE_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "stage": lambda stage: stage["name"],
    "kind": lambda stage: stage["kind"],
    "validation accuracy %": _accuracy_cell,
    "MACs": lambda stage: f"{stage['report']['macs_ratio']:.2f}x fewer" if "macs_ratio" in stage["report"] else "",
    "ONNX Runtime speed against the stage before": lambda stage: (
        f"{stage['report']['measured_speedup']:.2f}x" if stage["report"].get("measured_speedup") else ""
    ),
}


def _without_folder(override: str) -> str:
    """Name files without the folder they have on this machine."""
    key, _, value = override.partition("=")
    return f"{key}={Path(value).name}"


if __name__ == "__main__":
    main()
