"""Does `prune --speedup 2` give a model that is twice as fast? ResNet-56 on CIFAR-10, as a separate `bench` sees it.

Usage: python perf/prune_to_speed.py --data cifar10.npz --weights resnet56.safetensors [--speedup 2] [--json]

For float32 and for int8: the command line's `prune`, with no layer's time known beforehand; then `export`, and for int8
`quantize`, of the pruned and the unpruned model; then `bench` of the two files. Each is a process of its own, one
thread, batch 1. Exits 3 when a speedup is more than 5 % off, or a `prune` takes more than three minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bars import at_most, bars_table
from results_file import ROOT, markdown_table, measured_here, page, publish

RESULT = "prune-to-speed"
MOST_OFF, MOST_SECONDS = 0.05, 180.0
PRECISIONS = ("float32", "int8")
INT8_FORM = ("--form", "qdq", "--max-drop", "100")  # nothing is trained here that accuracy could be asked of


def main() -> None:
    """Prune and bench, write docs/results/prune-to-speed.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    model = f"recipes/cifar_resnet.py:resnet56,weights={given.weights.resolve()}"
    with tempfile.TemporaryDirectory() as scratch:
        rows = [_row(model, given.data.resolve(), given.speedup, one, Path(scratch)) for one in PRECISIONS]
    bars: list[dict[str, Any]] = []
    for row in rows:
        off = abs(row["speedup"] / given.speedup - 1)
        for what, value, limit in (("off the target", off, MOST_OFF), ("seconds", row["seconds"], MOST_SECONDS)):
            bars.append(at_most(f"{row['precision']}: {what}", value, limit))
    result = measured_here(
        RESULT,
        f"python perf/prune_to_speed.py --data DATA --weights WEIGHTS --speedup {given.speedup:g}",
        rows=rows,
        bars=bars,
    )
    publish(result, _markdown(result, given.speedup), as_json=given.json)


def _row(model: str, data: Path, speedup: float, precision: str, scratch: Path) -> dict[str, Any]:
    """Prune for a precision; return what the search said, what a separate process measures, and how long it took."""
    folder = scratch / precision
    folder.mkdir()
    where = ["--threads", "1", "--data", str(data)]
    started = time.perf_counter()
    pruned = _onnxpress(
        folder, "prune", model, "--speedup", str(speedup), "--precision", precision, *where, "-o", str(folder / "cut")
    )
    seconds = time.perf_counter() - started
    files = []
    for name, one in (("whole", model), ("pruned", str(folder / "cut"))):
        file = str(folder / f"{name}.onnx")
        _onnxpress(folder, "export", one, "--data", str(data), "-o", file)
        if precision == "int8":
            _onnxpress(folder, "quantize", file, *INT8_FORM, *where, "-o", (file := str(folder / f"{name}.int8.onnx")))
        files.append(file)
    benched = _onnxpress(folder, "bench", *files, "--threads", "1")["rows"][1]
    return {
        "precision": precision,
        "speedup": benched["speedup"]["ratio"],
        "interval": benched["speedup"]["interval"],
        "in_the_search": pruned["measured_speedup"],
        "macs_ratio": pruned["macs_ratio"],
        "attempts": len(pruned["search"]),
        "blocks": len(pruned["dropped_blocks"]),
        "accuracy": pruned["accuracy"][2],
        "seconds": seconds,
    }


def _onnxpress(cache: Path, *arguments: str) -> dict[str, Any]:
    """Run a command in a process of its own, with a cache of layers' times of its own, and return its report."""
    done = subprocess.run(
        [sys.executable, "cli.py", *arguments, "--json", "--quiet"],
        cwd=ROOT,
        env=os.environ | {"ONNXPRESS_CACHE": str(cache / "times")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _markdown(result: dict[str, Any], speedup: float) -> str:
    table = markdown_table(
        result["rows"],
        {
            "precision": lambda row: row["precision"],
            "speedup, as bench says": lambda row: f"{row['speedup']:.2f}x",
            "99 % interval": lambda row: "{:.2f} to {:.2f}".format(*row["interval"]) if row["interval"] else "",
            "as the search said": lambda row: f"{row['in_the_search']:.2f}x",
            "MACs": lambda row: f"{row['macs_ratio']:.2f}x fewer",
            "blocks left out": lambda row: str(row["blocks"]),
            "attempts": lambda row: str(row["attempts"]),
            "accuracy %, untrained": lambda row: f"{row['accuracy']:.2f}",
            "seconds": lambda row: f"{row['seconds']:.0f}",
        },
    )
    return page(
        f"ResNet-56 pruned to {speedup:g}x",
        result,
        f"Batch 1, one thread. int8: `quantize {' '.join(INT8_FORM)}`, the form that the search times.\n",
        table,
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
