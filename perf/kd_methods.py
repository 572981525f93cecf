"""What each distillation method brings: ResNet-56 teaches ResNet-20 from scratch on CIFAR-10, against no teacher.

Usage: python perf/kd_methods.py --data cifar10.npz --teacher-weights resnet56.safetensors [--teacher-file int8.onnx]
    [--runs runs/kd-cifar10] [--epochs 15] [--seeds 0,1] [--only kd,dist] [--json]

Every method has the same epochs, batches, augmentation and learning rate; the epoch that validates best is read on the
test split, once. A run that is done in the folder, or stands in docs/results, is not run again, one that was cut off
goes on. Logits are taken from a cache that all methods of a seed share. --teacher-file gives logits in place of the
torch teacher, which hints need. --only trains some of the methods; of the others, what is done is listed, also by
another file of the teacher. Runs of several seeds may be made side by side, each by a process of its own. Exits 3 when
no method beats no teacher by 0.5 points, or a method is not measured.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bars import at_least, bars_table
from results_file import markdown_table, measured_here, mistakes_told, page, publish, published
from seeded_runs import SEED_COLUMNS, noted_runs, over_seeds, seeded_parser, trained_once

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.loop import TrainReport
from compress.training.state import partial_folder
from core.data import Data
from core.data_reference import load_data
from core.history import digest_of
from core.model_reference import load_model, load_torch_model
from core.references import existing_sha256
from core.result import Result
from core.torch_model import TorchModel
from terminal import progress_shown, set_up_logging

RESULT = "kd-cifar10"
LEAST_GAIN = 0.5
FACTORY = "recipes/cifar_resnet.py"
SHARED = {"lr": 0.1, "crop_padding": 4, "flip": True}
NO_TEACHER = "none"
# Ratios and temperatures are near what the methods' authors train with, as far as a share can be: theirs are factors,
# whose sum scales the learning rate too. DKD's beta is its authors' for this pair.
METHODS: dict[str, dict[str, Any]] = {
    NO_TEACHER: {},
    "kd": {"method": "kd", "kd_ratio": 0.9},
    "ls": {"method": "ls", "kd_ratio": 0.9, "temperature": 2.0},
    "dkd": {"method": "dkd", "kd_ratio": 0.5, "dkd_beta": 2.0},
    "dist": {"method": "dist", "kd_ratio": 0.5},
    "kd + fitnet": {"method": "kd", "kd_ratio": 0.9, "hints": ("fitnet:layer3=layer3,weight=1",)},
    "kd + at": {"method": "kd", "kd_ratio": 0.9, "hints": ("at:layer2=layer2", "at:layer3=layer3")},
    "kd + rkd": {"method": "kd", "kd_ratio": 0.9, "hints": ("rkd:layer3=layer3",)},
}


def main() -> None:
    """Train what is not done, write docs/results/kd-cifar10.{json,md}, and exit with the verdict."""
    parser = seeded_parser(__doc__, runs=Path("runs/kd-cifar10"), epochs=15)
    parser.add_argument("--teacher-weights", required=True)
    given = parser.parse_args()
    set_up_logging(verbose=False, quiet=False)
    wanted = given.only or list(METHODS)
    with mistakes_told():
        data = load_data(given.data)
        before = [run for runs in published(RESULT).get("runs", {}).values() for run in runs]
        found = {
            name: [run for seed in given.seeds if (run := _run(name, seed, data, given, before, train=name in wanted))]
            for name in METHODS
        }
    publish(
        result := _result({name: runs for name, runs in found.items() if runs}, given),
        _markdown(result),
        as_json=given.json,
    )


def _run(
    name: str, seed: int, data: Data, given: argparse.Namespace, before: Sequence[dict[str, Any]], *, train: bool
) -> dict[str, Any] | None:
    """Return the accuracies of one student, trained if need be and wanted, and the digest of who taught it."""
    output = given.runs / f"{name.replace(' ', '')}-{given.epochs}-{seed}"
    settings = {**SHARED, **METHODS[name], "epochs": given.epochs, "seed": seed}
    takes_file = given.teacher_file and "hints" not in settings
    teacher_file = None if name == NO_TEACHER else given.teacher_file if takes_file else given.teacher_weights
    taught_by = teacher_file and existing_sha256(Path(teacher_file))

    def key(taught_by: str | None) -> str:
        return digest_of([settings, [taught_by] if taught_by else [], data.fingerprint])

    def train_student() -> Result[TorchModel, TrainReport]:
        print(f"{name}, seed {seed}", file=sys.stderr)
        student = load_torch_model(f"{FACTORY}:resnet20", data, seed=seed)
        workspace = partial_folder(output)
        with progress_shown(quiet=False) as progress:
            if name == NO_TEACHER:
                return finetune(student, data, FinetuneConfig(**settings), workspace=workspace, progress=progress)
            teacher = f"{FACTORY}:resnet56,weights={given.teacher_weights}"
            return distill(
                student,
                load_model(given.teacher_file if takes_file else teacher, data),
                data,
                DistillConfig(**settings),
                workspace=workspace,
                teacher_cache=None if "hints" in settings else given.runs / f"teacher-cache-{seed}",
                progress=progress,
            )

    noted = [{"taught_by": taught_by, **run} for run in noted_runs(output)]
    same = [run for run in (*noted, *before) if run["key"] == key(run["taught_by"])]
    of_this_teacher = [run for run in same if run["taught_by"] == taught_by]
    if train and not of_this_teacher:
        return {"taught_by": taught_by, **trained_once(output, key(taught_by), data, train_student)}
    return next(iter(of_this_teacher or same), None)


def _result(found: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> dict[str, Any]:
    rows = [{"method": name, **over_seeds(runs)} for name, runs in found.items()]
    alone = next((row["test_accuracy"] for row in rows if row["method"] == NO_TEACHER), None)
    for row in rows:
        row["gain"] = row["test_accuracy"] - alone if alone is not None else None
    gains = [row["gain"] for row in rows if row["method"] != NO_TEACHER and row["gain"] is not None]
    best = max(gains, default=0.0)
    num_done = sum(len(runs) == len(given.seeds) for runs in found.values())
    bars = [
        at_least("gain of the best method", best, LEAST_GAIN),
        at_least("methods measured", num_done, len(METHODS)),
    ]
    return measured_here(
        RESULT,
        "python perf/kd_methods.py --data DATA --teacher-weights WEIGHTS"
        + (" --teacher-file FILE" if given.teacher_file else "")
        + f" --epochs {given.epochs} --seeds {','.join(map(str, given.seeds))}",
        epochs=given.epochs,
        seeds=given.seeds,
        settings={name: {**SHARED, **METHODS[name]} for name in found},
        runs=found,
        rows=rows,
        bars=bars,
    )


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda row: row["method"],
        **SEED_COLUMNS,
        "against none": lambda row: _figure(row["gain"], "+.2f"),
    }
    alone = [row for row in result["rows"] if row["method"] == NO_TEACHER]
    highest = max((one for row in alone for one in row["accuracies"]), default=0.0)
    useless = [row["method"] for row in result["rows"] if row not in alone and min(row["accuracies"]) <= highest]
    verdict = f"Not better than no teacher with every seed: {', '.join(useless) or 'none'}.\n"
    trained = sorted({f"commit {run['commit']} ({run['cpu']})" for runs in result["runs"].values() for run in runs})
    teachers = "\n".join(f"- {', '.join(names)}: the file of SHA-256 `{sha}`" for sha, names in _taught(result["runs"]))
    missing = [name for name in METHODS if name not in result["settings"]]
    settings = "\n".join(f"- {name}: `{values}`" for name, values in result["settings"].items())
    return page(
        "Distilling ResNet-20 from ResNet-56 on CIFAR-10",
        result,
        f"From scratch, {result['epochs']} epochs, seeds {result['seeds']}; mean over the seeds.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
        verdict,
        f"Not measured yet: {', '.join(missing)}.\n" if missing else "",
        f"Trained at {', '.join(trained)}.\n",
        f"Taught by:\n\n{teachers}\n",
        f"Settings; the rest is what `distill` does by default:\n\n{settings}\n",
    )


def _taught(found: dict[str, list[dict[str, Any]]]) -> list[tuple[str, list[str]]]:
    """Return the digest of each teacher, and which methods it taught."""
    files = dict.fromkeys(run["taught_by"] for runs in found.values() for run in runs if run["taught_by"])
    return [
        (sha, [name for name, runs in found.items() if any(run["taught_by"] == sha for run in runs)]) for sha in files
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
