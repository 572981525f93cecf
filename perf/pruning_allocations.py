"""Which allocation is most accurate at the same measured speed: ResNet-56 on CIFAR-10, pruned, then taught by itself.

Usage: python perf/pruning_allocations.py --data cifar10.npz --weights resnet56.safetensors [--teacher-file int8.onnx]
    [--runs runs/pruning-cifar10] [--speedups 2,3] [--epochs 10] [--seeds 0,1] [--only latency,global] [--json]

Every allocation is searched for the same speedup on ONNX Runtime (float32, batch 1, one thread), then fine-tuned with
knowledge distillation from the unpruned model for the same epochs; the epoch that validates best is read on the test
split, once. Global and uniform are torch-pruning's recipe: magnitude, all layers ranked together, or the same share of
each. A run that the folder holds of this model and these settings is not run again, one that was cut off goes on. The
files of a target are timed once more, all of them interleaved with the unpruned model. Exits 3 when the latency-aware
allocation is not the most accurate, or is more than 2 % slower than a recipe that it is compared with.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from results_file import bars_table, markdown_table, measured_here, page, publish
from seeded_runs import SEED_COLUMNS, over_seeds, seeded_parser, trained_once

from bench.latency import TimingConfig, measure, speedup
from bench.runnable import open_onnx_run
from compress.distill import distill
from compress.distill_config import DistillConfig
from compress.prune import PruneConfig, prune
from compress.training import TrainReport
from compress.training_state import partial_folder
from core.checkpoint import load_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.history import digest_of, step
from core.model_reference import load_model, load_torch_model
from core.references import existing_sha256
from core.result import Result
from core.torch_model import TorchModel, torch_digest
from export.to_onnx import ExportConfig, export
from stages import measuring, save_trained
from terminal import progress_shown, set_up_logging

FACTORY = "recipes/cifar_resnet.py"
ALLOCATIONS = ("latency", "global", "uniform", "isomorphic")
OURS, RECIPES = "latency", ("global", "uniform")
SLOWER = 0.02  # than the recipes, within which ours counts as equally fast
TIMING = TimingConfig(half_width=0.005, max_seconds=300)
TRAINING = {"lr": 0.05, "crop_padding": 4, "flip": True, "method": "kd", "kd_ratio": 0.9, "temperature": 4.0}


def main() -> None:
    """Do what is not done, write docs/results/pruning-cifar10.{json,md}, and exit with the verdict."""
    parser = seeded_parser(__doc__, runs=Path("runs/pruning-cifar10"), epochs=10)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--speedups", default="2,3")
    given = parser.parse_args()
    set_up_logging(verbose=False, quiet=False)
    try:
        data = load_data(given.data)
        model = load_torch_model(f"{FACTORY}:resnet56,weights={given.weights}", data)
        rows = [row for target in given.speedups.split(",") for row in _rows(model, data, float(target), given)]
    except ToolError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    publish(result := _result(rows, given), _markdown(result), as_json=given.json)


def _rows(
    model: TorchModel,
    data: Data,
    target: float,
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    folders = {allocation: given.runs / f"{allocation}-{target:g}x" for allocation in given.only or ALLOCATIONS}
    cuts = {name: _pruned(model, data, target, name, folder / "pruned") for name, folder in folders.items()}
    speeds = _speeds(model, [pruned for pruned, _ in cuts.values()])
    rows = []
    for (name, (pruned, report)), measured in zip(cuts.items(), speeds, strict=True):
        folder = folders[name]
        runs = [
            _recovered(pruned, data, seed, given, folder / f"recovered-{given.epochs}-{seed}") for seed in given.seeds
        ]
        rows.append(
            {
                "target": target,
                "allocation": name,
                "measured_speedup": measured,
                "macs_ratio": report["macs_ratio"],
                "params": report["params"][1],
                "dropped_blocks": len(report["dropped_blocks"]),
                "accuracy_at_once": report["accuracy"][2],
                **over_seeds(runs),
                "commits": [run["commit"] for run in runs],
            }
        )
    return rows


def _speeds(model: TorchModel, pruned: Sequence[TorchModel]) -> list[float]:
    """Return how many times as fast as the model each pruned one is, all timed in the same rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [
            export(one, Path(scratch) / f"{index}.onnx", ExportConfig()).model
            for index, one in enumerate((model, *pruned))
        ]
        whole, *others = measure([open_onnx_run(file, "cpu", 1, 1) for file in files], TIMING).rounds_ms
    return [speedup(whole, one).ratio for one in others]


def _pruned(
    model: TorchModel, data: Data, target: float, allocation: str, output: Path
) -> tuple[TorchModel, dict[str, Any]]:
    """Prune unless the folder holds that, by the history of the checkpoint in it."""
    config = PruneConfig(speedup=target, allocation=allocation)  # type: ignore[arg-type]
    made = step("prune", asdict(config), parent=torch_digest(model), data=data.fingerprint)
    if (output / "report.json").exists():
        found = load_checkpoint(output)
        if found.history[-1].model_copy(update={"versions": made.versions}) == made:
            return found, json.loads((output / "report.json").read_text())
    print(f"{allocation}, {target:g}x", file=sys.stderr)
    with measuring("cpu", 1, 1, "float32", data) as measured, progress_shown(quiet=False) as progress:
        result = prune(model, config, data=data, measuring=measured, progress=progress)
    save_trained(result.model, result.report, output)
    return load_checkpoint(output), json.loads((output / "report.json").read_text())


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

    taught_by = existing_sha256(Path(given.teacher_file or given.weights))
    key = digest_of([settings, taught_by, torch_digest(pruned), data.fingerprint])
    return trained_once(output, key, data, train)


def _result(rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    bars = []
    for target in dict.fromkeys(row["target"] for row in rows):
        at = {row["allocation"]: row for row in rows if row["target"] == target}
        if OURS in at and all(name in at for name in RECIPES):
            bars += _bars(target, at[OURS], [at[name] for name in RECIPES])
    return measured_here(
        "pruning-cifar10",
        "python perf/pruning_allocations.py --data DATA --weights WEIGHTS"
        + (" --teacher-file FILE" if given.teacher_file else "")
        + f" --speedups {given.speedups} --epochs {given.epochs} --seeds {','.join(map(str, given.seeds))}",
        epochs=given.epochs,
        seeds=given.seeds,
        training=TRAINING,
        rows=rows,
        bars=bars,
    )


def _bars(target: float, ours: dict[str, Any], recipes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bar on accuracy, and the one without which it would say nothing: that ours is no slower."""
    gain = ours["test_accuracy"] - max(one["test_accuracy"] for one in recipes)
    speed = ours["measured_speedup"] / max(one["measured_speedup"] for one in recipes)
    return [
        {
            "name": f"points above torch-pruning's recipe at {target:g}x",
            "value": gain,
            "limit": 0.0,
            "ok": gain > 0,
        },
        {
            "name": f"measured speed over the fastest recipe's at {target:g}x",
            "value": speed,
            "limit": 1 - SLOWER,
            "ok": speed >= 1 - SLOWER,
        },
    ]


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "target": lambda row: f"{row['target']:g}x",
        "allocation": lambda row: row["allocation"],
        "measured": lambda row: f"{row['measured_speedup']:.2f}x",
        "MACs": lambda row: f"{row['macs_ratio']:.2f}x fewer",
        "parameters": lambda row: f"{row['params']}",
        "blocks left out": lambda row: f"{row['dropped_blocks']}",
        "validation % at once": lambda row: f"{row['accuracy_at_once']:.2f}",
        **SEED_COLUMNS,
    }
    return page(
        "ResNet-56 on CIFAR-10, pruned to the same measured speed",
        result,
        f"float32, batch 1, one thread; then {result['epochs']} epochs of knowledge distillation from the unpruned "
        f"model, seeds {result['seeds']}. At once: right after pruning, batch-norm statistics re-estimated. Measured: "
        "all files of a target interleaved with the unpruned model. Settings: "
        f"`{result['training']}`.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
