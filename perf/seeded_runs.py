"""A training repeated with several seeds: each run is made once, and all are summed up as their mean and spread."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results_file import commit

from compress.training import TrainReport
from core.data import Data
from core.history import digest_of
from core.predict import accuracy, predict
from core.result import Result
from core.torch_model import TorchModel
from core.whole_output import whole_file
from stages import save_trained

SEED_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "test accuracy %": lambda row: f"{row['test_accuracy']:.2f}",
    "standard deviation": lambda row: "" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2f}",
    "each seed": lambda row: ", ".join(f"{one:.2f}" for one in row["accuracies"]),
}


def trained_once(
    output: Path,
    made_from: Sequence[object],
    data: Data,
    train: Callable[[], Result[TorchModel, TrainReport]],
    known: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Train into a folder unless that was done from the same, and return the accuracies.

    Args:
        output: The folder.
        made_from: What the run follows from, beside the data.
        data: Whose test split is read.
        train: Does it.
        known: What this returned of runs elsewhere, which are not made again.
    """
    note = output / "accuracies.json"
    key = digest_of([*made_from, data.fingerprint])
    noted = [json.loads(note.read_text())] if note.exists() else []
    for found in (*noted, *known):
        if found["key"] == key:
            return dict(found)
    result = train()
    save_trained(result.model, result.report, output)
    found = {
        "key": key,
        "test_accuracy": accuracy(*predict(result.model, data, "test")),
        "validation_accuracy": result.report.validation_accuracy,
        "commit": commit(),
    }
    with whole_file(note) as part:
        part.write_text(json.dumps(found))
    return found


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean test accuracy, its standard deviation (None for one run), and that of each."""
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "test_accuracy": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
    }
