"""Which allocation is most accurate at the same measured speed: ResNet-56 on CIFAR-10, pruned, then taught by itself.

Usage: python perf/pruning_allocations.py --data cifar10.npz --weights resnet56.safetensors [--teacher-file int8.onnx]
    [--runs runs/pruning-cifar10] [--speedups 2,3] [--epochs 10] [--seeds 0,1] [--only latency,global]
    [--prune-only | --train-only] [--json]

Every allocation is searched for the same speedup on ONNX Runtime (float32, batch 1, one thread), then fine-tuned with
knowledge distillation from the unpruned model for the same epochs; the epoch that validates best is read on the test
split, once. All but latency are torch-pruning's: magnitude, all layers ranked together, the same share of each, or like
layers together. Each of these is pruned to any width and to multiples of 8, as its documentation begins; what validates
better at once, batch norm re-estimated, is fine-tuned. Their widths may jump over the target: then latency is asked for
the speed of the fastest as well, and compared there. What the folder holds, or docs/results, of this model,
code, machine and these settings is not run again, one that was cut off goes on. The files of a target are timed once
more, those of one run interleaved with the unpruned model. --only makes some of torch-pruning's allocations; of the
others, what is published is listed, also by other code or of another machine, which is then said. After --prune-only,
which times and so needs a core for itself, seeds may be trained side by side, a process of --train-only each; a last
run, alone, times and publishes.

Exits 3 when the latency-aware allocation is not the most accurate, is more than 2 % slower than another, a speed is
below its target by more than 5 %, or an allocation is missing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bars import at_least, bar, bars_table
from results_file import commit, markdown_table, measured_here, mistakes_told, page, publish, published, trees
from seeded_runs import SEED_COLUMNS, over_seeds, seeded_parser, trained_once

from bench.latency import TimingConfig, measure, speedup
from bench.runnable import open_onnx_run
from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.pruning.prune import PruneConfig, prune
from compress.training.loop import TrainReport
from compress.training.state import partial_folder
from core.checkpoint import load_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError
from core.history import digest_of
from core.machine import package_versions, this_machine
from core.model_reference import load_model, load_torch_model
from core.references import existing_sha256
from core.result import Result
from core.torch_model import TorchModel, torch_digest
from export.to_onnx import ExportConfig, export
from stages import measuring, save_trained
from terminal import progress_shown, set_up_logging

RESULT = "pruning-cifar10"
FACTORY = "recipes/cifar_resnet.py"
ALLOCATIONS = ("latency", "global", "uniform", "isomorphic")
OURS = "latency"
THEIRS = tuple(name for name in ALLOCATIONS if name != OURS)  # torch-pruning's
ROUNDED_TO = (1, 8)  # widths of torch-pruning's allocations; ours finds those that are fast by itself
PRUNES = ("core", "compress/pruning", "compress/divergence.py", "export", "bench", "stages.py")  # the code that does
SLOWER = 0.02  # than theirs, within which ours counts as equally fast
SHORT = 0.05  # of a speed that was asked for, by which one may miss it
TIMING = TimingConfig(half_width=0.005, max_seconds=300)
TRAINING = {"lr": 0.05, "crop_padding": 4, "flip": True, "method": "kd", "kd_ratio": 0.9, "temperature": 4.0}


def main() -> None:
    """Do what is not done, write docs/results/pruning-cifar10.{json,md}, and exit with the verdict."""
    parser = seeded_parser(__doc__, runs=Path("runs/pruning-cifar10"), epochs=10)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--speedups", default="2,3")
    parser.add_argument("--prune-only", action="store_true", help="prune, and leave training to runs side by side")
    parser.add_argument(
        "--train-only", action="store_true", help="train what is pruned, and leave timing to a last run"
    )
    given = parser.parse_args()
    set_up_logging(verbose=False, quiet=False)
    targets = [float(target) for target in given.speedups.split(",")]
    with mistakes_told():
        data = load_data(given.data)
        model = load_torch_model(f"{FACTORY}:resnet56,weights={given.weights}", data)
        rows = [row for target in targets for row in _rows(model, data, target, given)]
    if not (given.prune_only or given.train_only):
        publish(result := _result(rows, targets, given), _markdown(result), as_json=given.json)


def _rows(model: TorchModel, data: Data, target: float, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a target, as published or, of the allocations that are wanted, made."""
    rows = [_pruned_row(model, data, target, name, given) for name in ALLOCATIONS]
    if (fastest := _their_fastest(rows)) > target * (1 + SLOWER):
        rows.append(_pruned_row(model, data, fastest, OURS, given))
    rows = [row for row in rows if row]
    made = [row for row in rows if "model" in row]
    if given.prune_only:
        return []
    for row in made:
        row |= _taught(row["model"], data, row["asked"], row["allocation"], given)
    if given.train_only:
        return []
    if made:
        for row, measured in zip(made, _speeds(model, [row.pop("model") for row in made]), strict=True):
            row["measured_speedup"] = measured
    return [{**row, "target": target} for row in rows]


def _their_fastest(rows: Sequence[dict[str, Any]]) -> float:
    """Return the speed of torch-pruning's fastest as its search timed it, to two decimals; 0 without one."""
    theirs = [row for row in rows if row.get("allocation") in THEIRS and "tried" in row]
    taken = [one for row in theirs for one in row["tried"] if one["round_to"] == row["round_to"]]
    return round(max((one["measured_speedup"] for one in taken), default=0.0), 2)


def _pruned_row(
    model: TorchModel, data: Data, asked: float, allocation: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Return the row that is published, or one begun with the pruned ``model``; empty if it is not wanted."""
    key, where = _row_key(model, data, asked, allocation, given), digest_of(_where())
    before: dict[str, Any] = {row["key"]: row for row in published(RESULT).get("rows", [])}.get(key, {})
    if before.get("where") == where or allocation not in _wanted(given):
        return before
    at_once = _at_once(model, data, asked, allocation, _folder(given, allocation, asked))
    measured_at = f"{commit()}, {this_machine().cpu}"
    return {"allocation": allocation, "asked": asked, "key": key, "where": where, "measured_at": measured_at, **at_once}


def _wanted(given: argparse.Namespace) -> set[str]:
    """Return what to make; with ours all, since it is asked for the speed of the fastest."""
    named = set(given.only or ALLOCATIONS)
    return set(ALLOCATIONS) if OURS in named else named


def _row_key(model: TorchModel, data: Data, asked: float, allocation: str, given: argparse.Namespace) -> str:
    """Return the digest of all that was asked for; what a row follows from besides is `_where`."""
    configs = [asdict(config) for config in _configs(asked, allocation)]
    settings = [configs, torch_digest(model), data.fingerprint]
    return digest_of([settings, TRAINING, given.epochs, given.seeds, _taught_by(given)])


def _configs(target: float, allocation: str) -> list[PruneConfig]:
    rounded_to = (1,) if allocation == OURS else ROUNDED_TO
    return [PruneConfig(speedup=target, allocation=allocation, round_to=one) for one in rounded_to]  # type: ignore[arg-type]


def _at_once(model: TorchModel, data: Data, target: float, allocation: str, folder: Path) -> dict[str, Any]:
    """Return the model pruned to any width or to multiples, whichever validates better, and what is said of both.

    Where neither reaches the target, only why: ``missed``.
    """
    found, missed = _prunes(model, data, target, allocation, folder)
    if not found:
        return {"missed": "; ".join(missed)}
    tried = [
        {
            "round_to": config.round_to,
            "measured_speedup": report["measured_speedup"],
            "accuracy_at_once": report["accuracy"][2],
        }
        for config, _, report in found
    ]
    config, pruned, report = max(found, key=lambda one: one[2]["accuracy"][2])
    return {
        "model": pruned,
        "round_to": config.round_to,
        "macs_ratio": report["macs_ratio"],
        "params": report["params"][1],
        "dropped_blocks": len(report["dropped_blocks"]),
        "accuracy_at_once": report["accuracy"][2],
        "tried": tried,
        "out_of_reach": missed,
    }


def _prunes(
    model: TorchModel, data: Data, target: float, allocation: str, folder: Path
) -> tuple[list[tuple[PruneConfig, TorchModel, dict[str, Any]]], list[str]]:
    """Return what was pruned, with its settings and report, and why the rest was not."""
    found: list[tuple[PruneConfig, TorchModel, dict[str, Any]]] = []
    missed: list[str] = []
    for config in _configs(target, allocation):
        try:
            found.append((config, *_pruned(model, data, config, folder / f"pruned-{config.round_to}")))
        except GateMissedError as error:
            missed.append(f"round_to {config.round_to}: {error}")
    return found, missed


def _taught(pruned: TorchModel, data: Data, asked: float, allocation: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracies after fine-tuning, over the seeds."""
    folder = _folder(given, allocation, asked)
    runs = [_recovered(pruned, data, seed, given, folder / f"recovered-{given.epochs}-{seed}") for seed in given.seeds]
    return {**over_seeds(runs), "commits": [run["commit"] for run in runs]}


def _folder(given: argparse.Namespace, allocation: str, asked: float) -> Path:
    runs: Path = given.runs
    return runs / f"{allocation}-{asked:g}x"


def _speeds(model: TorchModel, pruned: Sequence[TorchModel]) -> list[float]:
    """Return how many times as fast as the model each pruned one is, all timed in the same rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [
            export(one, Path(scratch) / f"{index}.onnx", ExportConfig()).model
            for index, one in enumerate((model, *pruned))
        ]
        whole, *others = measure([open_onnx_run(file, "cpu", 1, 1) for file in files], TIMING).rounds_ms
    return [speedup(whole, one).ratio for one in others]


def _pruned(model: TorchModel, data: Data, config: PruneConfig, output: Path) -> tuple[TorchModel, dict[str, Any]]:
    """Prune unless the folder holds that, by the key beside it; return the model and its report.

    Raises:
        GateMissedError: The target is out of reach, or was when that was tried before.
    """
    key = _prune_key(model, data, config)
    note, missed = (output.with_name(f"{output.name}.{kind}") for kind in ("key", "missed"))
    if missed.exists() and missed.read_text().startswith(key):
        raise GateMissedError(missed.read_text().removeprefix(key))
    if not (note.exists() and note.read_text() == key):
        print(f"{config.allocation}, {config.speedup:g}x, round_to {config.round_to}", file=sys.stderr)
        try:
            with measuring("cpu", 1, 1, "float32", data) as measured, progress_shown(quiet=False) as progress:
                result = prune(model, config, data=data, measuring=measured, progress=progress)
        except GateMissedError as error:
            output.parent.mkdir(parents=True, exist_ok=True)
            missed.write_text(key + str(error))
            raise
        note.unlink(missing_ok=True)
        save_trained(result.model, result.report, output)
        note.write_text(key)
    return load_checkpoint(output), json.loads((output / "report.json").read_text())


def _prune_key(model: TorchModel, data: Data, config: PruneConfig) -> str:
    """Return the digest of all that a pruned model follows from."""
    return digest_of([asdict(config), torch_digest(model), data.fingerprint, _where()])


def _where() -> list[Any]:
    """Return what speeds are those of: this machine, however many of its cores the process may use, and this code."""
    return [this_machine().model_dump(exclude={"system", "cores"}), package_versions(), trees(*PRUNES)]


def _recovered(pruned: TorchModel, data: Data, seed: int, given: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Fine-tune unless that is done, and return the accuracies."""
    settings = {**TRAINING, "epochs": given.epochs, "seed": seed}
    teacher = given.teacher_file or f"{FACTORY}:resnet56,weights={given.weights}"

    def train() -> Result[TorchModel, TrainReport]:
        with progress_shown(quiet=False) as progress:
            return distill(
                pruned,
                load_model(teacher, data),
                data,
                DistillConfig(**settings),
                workspace=partial_folder(output),
                teacher_cache=given.runs / f"teacher-cache-{seed}",
                progress=progress,
            )

    key = digest_of([settings, _taught_by(given), torch_digest(pruned), data.fingerprint])
    return trained_once(output, key, data, train)


def _taught_by(given: argparse.Namespace) -> str:
    return existing_sha256(Path(given.teacher_file or given.weights))


def _result(rows: list[dict[str, Any]], targets: Sequence[float], given: argparse.Namespace) -> dict[str, Any]:
    bars = [bar for target in targets for bar in _bars(target, [row for row in rows if row["target"] == target])]
    listed = {(row["target"], row["allocation"]) for row in rows}
    bars.append(at_least("allocations listed", len(listed), len(targets) * len(ALLOCATIONS)))
    return measured_here(
        RESULT,
        "python perf/pruning_allocations.py --data DATA --weights WEIGHTS"
        + (" --teacher-file FILE" if given.teacher_file else "")
        + f" --speedups {given.speedups} --epochs {given.epochs} --seeds {','.join(map(str, given.seeds))}",
        epochs=given.epochs,
        seeds=given.seeds,
        training=TRAINING,
        rows=rows,
        bars=bars,
    )


def _bars(target: float, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bar on accuracy, and those without which it says nothing: none short of the target, ours no slower.

    Ours is the fastest of its rows: what was asked for their speed where they jump over the target.
    """
    reached = [row for row in rows if "missed" not in row]
    if not (ours := [row for row in reached if row["allocation"] == OURS]):
        return [at_least(f"{OURS} reaches {target:g}x", 0, 1)]
    share = min(row["measured_speedup"] for row in reached) / target
    bars = [at_least(f"slowest over {target:g}x", share, 1 - SHORT)]
    if theirs := [row for row in reached if row["allocation"] in THEIRS]:
        compared = max(ours, key=lambda row: row["measured_speedup"])
        gain = compared["test_accuracy"] - max(one["test_accuracy"] for one in theirs)
        speed = compared["measured_speedup"] / max(one["measured_speedup"] for one in theirs)
        above, fast = f"points above torch-pruning's best at {target:g}x", f"speed over the fastest's at {target:g}x"
        bars += [
            bar(above, gain, 0.0, ok=gain > 0),
            at_least(fast, speed, 1 - SLOWER),
        ]
    return bars


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "target": lambda row: f"{row['target']:g}x",
        "allocation": lambda row: row["allocation"],
        "asked for": lambda row: f"{row['asked']:g}x",
        "widths": lambda row: "any" if row["round_to"] == 1 else f"multiples of {row['round_to']}",
        "measured": lambda row: f"{row['measured_speedup']:.2f}x",
        "MACs": lambda row: f"{row['macs_ratio']:.2f}x fewer",
        "parameters": lambda row: f"{row['params']}",
        "blocks left out": lambda row: f"{row['dropped_blocks']}",
        "validation % at once": lambda row: f"{row['accuracy_at_once']:.2f}",
        "round_to: at once": lambda row: ", ".join(
            f"{one['round_to']}: {one['accuracy_at_once']:.2f} % at {one['measured_speedup']:.2f}x"
            for one in row["tried"]
        ),
        **SEED_COLUMNS,
    }
    reached = [row for row in result["rows"] if "missed" not in row]
    missed = [
        f"* {row['allocation']}, {row['asked']:g}x: {said}\n"
        for row in result["rows"]
        for said in ([row["missed"]] if "missed" in row else row["out_of_reach"])
    ]
    return page(
        "ResNet-56 on CIFAR-10, pruned to the same measured speed",
        result,
        f"float32, batch 1, one thread; then {result['epochs']} epochs of knowledge distillation from the unpruned "
        f"model, seeds {result['seeds']}. At once: right after pruning, batch-norm statistics re-estimated. "
        "torch-pruning's allocations are pruned to any width and to multiples of 8, and the one that validates better "
        "at once is fine-tuned. Where one comes out more than 2 % faster than the target, latency is asked for "
        "that speed too, and compared there. Measured: the files of a target interleaved with the unpruned model. "
        "Settings: "
        f"`{result['training']}`.\n",
        *([markdown_table(reached, columns)] if reached else []),
        f"Pruned and timed at {'; '.join(sorted({row['measured_at'] for row in result['rows']}))}.\n",
        *(["Out of reach:\n", *missed] if missed else []),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
