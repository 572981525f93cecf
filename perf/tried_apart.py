"""What the coverage scripts share: each model is tried once, in a process of its own, which may take long or die."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_file import commit

from compress.pruning.batch_norm import statistics_of_batches
from core.errors import ToolError
from core.torch_model import TorchModel
from core.whole_output import whole_file

Row = dict[str, Any]
ASLEEP = 0.01  # all of a tensor's values are below this


def once(model: str, key: str, runs: Path, try_apart: Callable[[str], Row]) -> Row:
    """Try a model unless its note in a folder says that it was done under this key."""
    note = runs / f"{model.replace(':', '-')}.json"
    found: Row = json.loads(note.read_text()) if note.exists() else {}
    if found.get("key") == key:
        return found
    found = {"key": key, "commit": commit(), **try_apart(model)}
    print(f"{model}: {found['failed'] or 'ok'}, {found['seconds']:.0f} s", file=sys.stderr)
    runs.mkdir(parents=True, exist_ok=True)
    with whole_file(note) as part:
        part.write_text(json.dumps(found))
    return found


def tried_apart(script: str, nothing: Row, limit_seconds: int, limit_bytes: int = resource.RLIM_INFINITY) -> Row:
    """Run ``SCRIPT --only MODEL`` and return the row that it prints, or why there is none.

    Args:
        script: The script's path.
        nothing: The row of a model of which nothing is known.
        limit_seconds: After which it is given up.
        limit_bytes: Of memory that it may take.
    """

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    started = time.monotonic()
    command = [sys.executable, script, "--only", nothing["model"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, preexec_fn=limit_memory)
    except subprocess.TimeoutExpired:
        return {**nothing, "failed": f"not done after {limit_seconds} s", "seconds": limit_seconds}
    if done.returncode:
        failed = f"the process ended with {done.returncode}"
        return {**nothing, "failed": failed, "seconds": time.monotonic() - started}
    row: Row = json.loads(done.stdout)
    return row


def filled(row: Row, fill: Callable[[Row], None]) -> Row:
    """Let a function fill a row, and note how long it took and what went wrong."""
    started = time.monotonic()
    try:
        fill(row)
    except ToolError as error:
        row["failed"] = str(error)
    except Exception as error:  # a bug is one of the answers
        row["failed"] = f"{type(error).__name__}: {error}"
    return {**row, "seconds": time.monotonic() - started}


def as_if_trained(model: TorchModel) -> None:
    """Give random weights what training would, in place.

    What starts at nothing, or nearly, as last layers, scales of branches and gates do, gets random values: a mistake
    behind it could not be seen.
    """
    with torch.no_grad():
        for parameter in model.module.parameters():
            if float(parameter.abs().max()) < ASLEEP:
                parameter.normal_(0, 0.2 if parameter.ndim == 1 else 0.02)
    fit_batch_norm(model)


def fit_batch_norm(model: TorchModel) -> None:
    """Let batch norm know noise as a trained model's knows its data: else numbers grow without end."""
    with statistics_of_batches(model.module, momentum=None) as norms, torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
        model.module(torch.randn(8, *model.inputs[0].shape))
