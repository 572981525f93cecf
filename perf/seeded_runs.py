"""A training repeated with several seeds: each run is made once, and all are summed up as their mean and spread."""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results_file import commit

from compress.training.loop import TrainReport
from core.data import Data
from core.machine import this_machine
from core.predict import accuracy, predict
from core.result import Result
from core.torch_model import TorchModel
from core.whole_output import whole_file
from stages import drop_state, save_trained

SEED_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "test accuracy %": lambda row: f"{row['test_accuracy']:.2f}",
    "standard deviation": lambda row: "" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2f}",
    "each seed": lambda row: ", ".join(f"{one:.2f}" for one in row["accuracies"]),
}


def seeded_parser(doc: str | None, *, runs: Path, epochs: int) -> argparse.ArgumentParser:
    """Return a parser of what such trainings are told; `doc` describes the script."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher-file")
    parser.add_argument("--runs", type=Path, default=runs)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=_seeds, default=[0, 1])
    parser.add_argument("--only", type=_names, help="which to make, separated by commas; default all")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


def noted_runs(output: Path) -> list[dict[str, Any]]:
    """Return what `trained_once` found of a run, if its folder holds one."""
    note = output / "accuracies.json"
    return [json.loads(note.read_text())] if note.exists() else []


def trained_once(
    output: Path, key: str, data: Data, train: Callable[[], Result[TorchModel, TrainReport]]
) -> dict[str, Any]:
    """Train into a folder unless that was done under the same key, and return the accuracies.

    Args:
        output: The folder.
        key: Digest of all that the run follows from, the data included.
        data: Whose test split is read.
        train: Does it.
    """
    if done := [run for run in noted_runs(output) if run["key"] == key]:
        return done[0]
    result = train()
    save_trained(result.model, result.report, output)
    found = {
        "key": key,
        "test_accuracy": accuracy(*predict(result.model, data, "test")),
        "validation_accuracy": result.report.validation_accuracy,
        "commit": commit(),
        "cpu": this_machine().cpu,
    }
    with whole_file(output / "accuracies.json") as part:
        part.write_text(json.dumps(found))
    drop_state(output)
    return found


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean test accuracy, its standard deviation (None for one run), and that of each."""
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "test_accuracy": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
    }


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
