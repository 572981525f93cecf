"""How often bench is wrong: a model against itself must show no difference, one slowed by 3 % must be found slower.

Usage: python perf/bench_honesty.py MODEL.onnx [--threads 1] [--runs runs/bench-honesty] [--json]

The slowed model is the same graph with nodes added that change nothing it computes, as many as take 3 % of its time
just before the comparison. One that is in the folder is not made again, so that a run that was cut off goes on.
Also compares the p50 with that of a bare loop of `session.run`, and with ONNX Runtime's own onnxruntime_perf_test where
that is on the PATH; and the p50 on all cores alone with that beside three other live sessions. Exits 3 when a bar is
missed.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bars import at_least, at_most, bars_table
from onnx import TensorProto, helper
from results_file import commit, markdown_table, measured_here, mistakes_told, page, publish

from bench.compare import BenchConfig
from bench.latency import TimingConfig, latency, measure, speedup
from bench.runnable import open_onnx_run
from core.errors import ToolError
from core.history import digest_of
from core.model_reference import load_onnx_model
from core.onnx_model import OnnxModel, open_onnx
from core.sessions import made_up_inputs, open_session
from core.whole_output import whole_file

SELF_RUNS, MOST_FALSE = 40, 2
SLOWED_RUNS, LEAST_FOUND = 20, 18
SLOWDOWN = 0.03
SINE_ELEMENTS, CALIBRATION_SINES = 256, 300
LOOP_RUNS, TOLERANCE = 100, 0.02
BESIDE_RUNS, BESIDE_TOLERANCE = 40, 0.05
SHORT = TimingConfig(iterations=35, rounds=1, max_rounds=1)  # so that what it is held against meets the same machine
PERF_TEST = "onnxruntime_perf_test"


def main() -> None:
    """Measure, write docs/results/bench-honesty.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-honesty"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    with mistakes_told():
        model = load_onnx_model(given.model)
        with tempfile.TemporaryDirectory() as scratch:
            result = _result(model, Path(scratch), given.threads, given.runs)
    publish(result, _markdown(result), as_json=given.json)


def _result(model: OnnxModel, scratch: Path, threads: int, runs: Path) -> dict[str, Any]:
    config = BenchConfig(threads=threads)
    key = digest_of([model.sha256, asdict(config)])

    def slowed() -> tuple[OnnxModel, OnnxModel]:
        count = _sines_that_take(SLOWDOWN, model, scratch, threads)
        return _with_sines(model, 0, scratch), _with_sines(model, count, scratch)

    against_slowed = _comparisons(runs / "slowed.jsonl", key, slowed, config, SLOWED_RUNS)
    against_itself = _comparisons(runs / "itself.jsonl", key, lambda: (model, model), config, SELF_RUNS)
    loops = [_ratio_to(_loop_p50_ms, model, threads) for _ in range(LOOP_RUNS)]
    has_perf_test = shutil.which(PERF_TEST) is not None
    perf_tests = [_ratio_to(_perf_test_p50_ms, model, threads) for _ in range(LOOP_RUNS)] if has_perf_test else []
    beside = [_beside_ratio(model) for _ in range(BESIDE_RUNS)]
    false = sum(run["verdict"] != "no difference shown" for run in against_itself)
    found = sum(run["verdict"] == "slower" for run in against_slowed)
    disturbed = abs(statistics.median(beside) - 1)
    return measured_here(
        "bench-honesty",
        f"python perf/bench_honesty.py {model.path.name} --threads {threads}",
        commits=sorted({run["commit"] for run in (*against_itself, *against_slowed)}),
        rows=[
            {"comparison": "a model against itself", **_summary(against_itself), "runs": against_itself},
            {"comparison": "a model against itself slowed by 3 %", **_summary(against_slowed), "runs": against_slowed},
        ],
        loop_ratios=loops,
        perf_test_ratios=perf_tests,
        beside_ratios=beside,
        bars=[
            at_most("false verdicts of 40", false, MOST_FALSE),
            at_least("slowdowns of 3 % found of 20", found, LEAST_FOUND),
            *(
                at_most(f"p50 against {name}'s, off by", abs(statistics.median(ratios) - 1), TOLERANCE)
                for name, ratios in (("a bare loop", loops), (PERF_TEST, perf_tests))
                if ratios
            ),
            at_most("p50 on all cores beside three live sessions against alone, off by", disturbed, BESIDE_TOLERANCE),
        ],
    )


def _compared(baseline: OnnxModel, candidate: OnnxModel, config: BenchConfig, seed: int) -> dict[str, Any]:
    """Compare two models as `bench` does."""
    opens = [
        open_onnx_run(model, config.provider, config.threads, config.batch_size) for model in (baseline, candidate)
    ]
    started = time.monotonic()
    timed = measure(opens, TimingConfig(seed=seed))
    found = speedup(*timed.rounds_ms)
    seconds = time.monotonic() - started
    print(
        f"{candidate.path.name}: {found.ratio:.4f}x {found.interval} {found.verdict}, {seconds:.1f} s", file=sys.stderr
    )
    return {**found.model_dump(), "rounds": len(timed.rounds_ms[0]), "seconds": seconds}


def _comparisons(
    file: Path, key: str, pair: Callable[[], tuple[OnnxModel, OnnxModel]], config: BenchConfig, wanted: int
) -> list[dict[str, Any]]:
    """Compare two models so many times; what the file holds of this model and these settings counts."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = [one for one in map(json.loads, lines) if one["key"] == key]
    while len(found) < wanted:
        found.append({"key": key, "commit": commit(), **_compared(*pair(), config, len(found))})
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            part.write_text("".join(json.dumps(one) + "\n" for one in found))
    return found[:wanted]


def _sines_that_take(share: float, model: OnnxModel, scratch: Path, threads: int) -> int:
    """Return how many sines take this share of a model's time.

    One's cost is taken from a file with many of them, where it stands out from what a file's time varies by.
    """
    files = [_with_sines(model, number, scratch) for number in (0, CALIBRATION_SINES)]
    opens = [open_onnx_run(one, "cpu", threads, 1) for one in files]
    timed = measure(opens, TimingConfig(rounds=10, max_rounds=10))
    cost = (1 / speedup(*timed.rounds_ms).ratio - 1) / CALIBRATION_SINES
    count = max(1, round(share / cost))
    print(f"a sine takes {100 * cost:.4f} % of the time: {count} of them", file=sys.stderr)
    return count


def _with_sines(model: OnnxModel, count: int, scratch: Path) -> OnnxModel:
    """Add one output: the sine of the sine of ... of some of the input, or that itself where the count is 0."""
    proto = onnx.load(model.path)
    bounds = {"slow_start": [0], "slow_end": [SINE_ELEMENTS], "slow_axis": [1]}
    for name, value in bounds.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    proto.graph.node.append(helper.make_node("Flatten", [model.inputs[0].name], ["slow_flat"], name="slow_flatten"))
    proto.graph.node.append(helper.make_node("Slice", ["slow_flat", *bounds], ["slow_0"], name="slow_slice"))
    for index in range(count):
        proto.graph.node.append(
            helper.make_node("Sin", [f"slow_{index}"], [f"slow_{index + 1}"], name=f"slow_sine_{index}")
        )
    proto.graph.output.append(helper.make_tensor_value_info(f"slow_{count}", TensorProto.FLOAT, [None, None]))
    path = scratch / f"slowed-{count}.onnx"
    onnx.save(proto, path)
    return open_onnx(path)


def _ratio_to(p50_ms: Callable[[OnnxModel, int], float], model: OnnxModel, threads: int) -> float:
    """Return bench's p50 over another measure of it, taken before bench's and after it."""
    before = p50_ms(model, threads)
    timed = measure([open_onnx_run(model, "cpu", threads, 1)], SHORT)
    ours = latency(timed.rounds_ms[0], 0).p50_ms
    after = p50_ms(model, threads)
    print(f"bench {ours:.4f} ms, before it {before:.4f} and after it {after:.4f} ms", file=sys.stderr)
    return 2 * ours / (before + after)


def _beside_ratio(model: OnnxModel) -> float:
    """Return the p50 on all cores with three more sessions alive over that alone."""
    opened = open_onnx_run(model, "cpu", 0, 1)
    alone, beside = (latency(measure([opened] * count, SHORT).rounds_ms[0], 0).p50_ms for count in (1, 4))
    print(f"alone {alone:.4f} ms, beside three {beside:.4f} ms", file=sys.stderr)
    return beside / alone


def _loop_p50_ms(model: OnnxModel, threads: int) -> float:
    session = open_session(model.path, "cpu", threads)
    feed = {session.get_inputs()[0].name: made_up_inputs(model, 1)[0]}
    times = []
    for _ in range(100):
        started = time.perf_counter()
        session.run(None, feed)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[10:])


def _perf_test_p50_ms(model: OnnxModel, threads: int) -> float:
    """Run ONNX Runtime's own tool, on inputs it makes up at batch 1, and return its p50 in milliseconds."""
    command = [PERF_TEST, "-e", "cpu", "-m", "times", "-r", "1000", "-x", str(threads), "-y", "1", "-s", "-I"]
    said = subprocess.run([*command, model.path], check=True, capture_output=True, text=True).stdout
    found = re.search(r"P50 Latency: ([\d.e+-]+) s", said)
    if found is None:
        raise ToolError(f"{PERF_TEST} printed no P50 latency")
    return 1000 * float(found[1])


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    verdicts = [run["verdict"] for run in runs]
    return {
        "faster": verdicts.count("faster"),
        "slower": verdicts.count("slower"),
        "no difference shown": verdicts.count("no difference shown"),
        "median_ratio": statistics.median(run["ratio"] for run in runs),
        "median_rounds": statistics.median(run["rounds"] for run in runs),
        "median_seconds": statistics.median(run["seconds"] for run in runs),
    }


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "comparison": lambda row: row["comparison"],
        "faster": lambda row: str(row["faster"]),
        "slower": lambda row: str(row["slower"]),
        "no difference shown": lambda row: str(row["no difference shown"]),
        "median ratio": lambda row: f"{row['median_ratio']:.4f}",
        "median rounds": lambda row: f"{row['median_rounds']:g}",
        "median seconds": lambda row: f"{row['median_seconds']:.1f}",
    }
    return page(
        "How often bench is wrong",
        result,
        f"The comparisons were made at {', '.join(result['commits'])}.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
