"""How fast a test split is scored against a bare session at the same batch: data loading must not be the bottleneck.

Usage: python perf/scoring_rate.py MODEL.onnx --data cifar10.npz [--batch-size 256] [--json]

The bare session runs over inputs that are ready in memory. Both take turns.
Exits 3 when scoring is below 90 % of its rate.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
from bars import at_least, bars_table
from results_file import markdown_table, measured_here, mistakes_told, page, publish

from core.batches import batches
from core.compatibility import preprocessing_of
from core.data import Data
from core.data_reference import load_data
from core.model_reference import load_onnx_model
from core.onnx_model import OnnxModel
from core.predict import predict
from core.sessions import open_session, run_session

LEAST_RATIO = 0.9
TURNS = 7


def main() -> None:
    """Measure, write docs/results/scoring-rate.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    with mistakes_told():
        data = load_data(given.data)
        rows = [_row(load_onnx_model(model), data, given.batch_size) for model in given.models]
    result = measured_here(
        "scoring-rate",
        f"python perf/scoring_rate.py MODEL.onnx... --data DATA --batch-size {given.batch_size}",
        rows=rows,
        bars=[
            at_least(f"scoring rate against the bare session's, {row['operators']}", row["ratio"], LEAST_RATIO)
            for row in rows
        ],
    )
    publish(result, _markdown(result), as_json=given.json)


def _row(model: OnnxModel, data: Data, batch_size: int) -> dict[str, Any]:
    ready = [inputs.numpy() for (inputs,), _ in batches(data.split("test"), preprocessing_of(model, data), batch_size)]
    count = len(data.split("test"))
    scored, bare = [], []
    for _ in range(TURNS):
        started = time.perf_counter()
        predict(model, data, "test", batch_size=batch_size)
        scored.append(count / (time.perf_counter() - started))
        bare.append(count / _bare_seconds(model, ready))
    return {
        "model": model.path.name,
        "operators": model.precision,
        "samples": count,
        "batch_size": batch_size,
        "scored_per_second": statistics.median(scored),
        "bare_per_second": statistics.median(bare),
        "ratio": statistics.median(one / other for one, other in zip(scored, bare, strict=True)),
    }


def _bare_seconds(model: OnnxModel, ready: list[np.ndarray]) -> float:
    started = time.perf_counter()
    session = open_session(model.path)
    for inputs in ready:
        run_session(session, inputs)
    return time.perf_counter() - started


def _markdown(result: dict[str, Any]) -> str:
    columns = {
        "model": lambda row: row["model"],
        "operators": lambda row: row["operators"],
        "samples": lambda row: str(row["samples"]),
        "batch": lambda row: str(row["batch_size"]),
        "scored/s": lambda row: f"{row['scored_per_second']:.0f}",
        "bare session/s": lambda row: f"{row['bare_per_second']:.0f}",
        "ratio": lambda row: f"{row['ratio']:.3f}",
    }
    return page(
        "Scoring a test split",
        result,
        f"The median of {TURNS} turns each.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
