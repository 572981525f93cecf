"""Speed and accuracy of `quantize`'s int8 file beside those of the peers, in one interleaved run; and a text model's.

Usage: python perf/quantize_peers.py --data cifar10.npz --weights resnet56.safetensors --peers FOLDER
    [--text-model CHECKPOINT --text-data sst2] [--models resnet56 ...] [--runs runs/quantize-peers] [--json]

Three models: ResNet-56 on CIFAR-10 with its trained weights, and timm's resnet18 and tf_efficientnet_lite0 at 224
pixels with random ones, of which only the speed means something. Every tool is given the same 512 training images, but
`olive quantize`, which reads none. The peers are installed, each into an environment of its own in FOLDER, on the first
run; what cannot be installed, or fails, is named with why. Speeds are at batch 1, one thread, on the CPU.

A model that was measured into the folder of --runs with the same packages and processor is not measured again. --models
measures some; of the others, what is there, or stands in docs/results, is listed.

A text model, fine-tuned before, is quantized in every way there is for it, and timed on texts of 32 tokens.

Which file is fast, and which is right, hangs on the processor's int8 instructions: what was measured on processors that
have others stays in the result, a section for each.

Exits 3 when a peer's file is faster than ours, which is when the interval of its speedup lies above ours, when
ResNet-56 loses more than 0.2 points on the test split, or when quantizing it takes more than two minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bars import at_least, at_most, bar, bars_table
from peer_quantizers import PEERS
from results_file import commit, markdown_table, measured_here, mistakes_told, page, publish, published

from bench.compare import BenchConfig, BenchRow, bench
from bench.runnable import open_onnx_run
from compress.quantization.config import QuantizeConfig
from compress.quantization.quantize import quantize
from core.batches import batches
from core.compatibility import preprocessing_of
from core.data import Data, spread
from core.data_reference import load_data
from core.errors import ToolError
from core.machine import package_versions, this_machine
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel, explain, open_onnx
from core.sequence_length import with_sequence_length
from core.whole_output import whole_file
from export.to_onnx import ExportConfig, export
from stages import quantize_measured

RESULT = "quantize"
INTRODUCTION = """# Quantized files beside the peers'

The same float32 file, quantized to int8 by each tool with the same 512 training images (`olive quantize` reads none),
then all timed in turns on ONNX Runtime: batch 1, one thread. Speedups are over float32.

Peers run with their defaults, but where the name says otherwise: *set by hand* is ONNX Runtime's quantizer told to
take uint8 by int8 and a scale per channel, as one who knows this processor would; *avx512_vnni* is a preset of
optimum-onnx for that quantizer; of onnx-neural-compressor the file that its defaults make does not load. ModelOpt
makes files for GPUs. resnet18 and tf_efficientnet_lite0 have random weights, so that their accuracy says nothing and
is left out. MiniLM, a text model, was quantized by onnxpress alone, in each way that it has.
"""
OURS, FLOAT = "onnxpress", "float32"
CALIBRATION_SAMPLES = 512
MOST_SECONDS, MOST_POINTS = 120.0, 0.2
PACKAGES = {
    "NNCF": ["nncf"],
    "optimum-onnx, avx512_vnni": ["optimum-onnx"],
    "onnx-neural-compressor, QDQ": ["onnx-neural-compressor", "prettytable"],  # which it does not ask for
    "ModelOpt": ["nvidia-modelopt[onnx]"],
    "Olive": ["olive-ai", "requests"],  # so does Olive
    "olive quantize": ["olive-ai", "requests"],
}
PEER_SECONDS = 1800
TIMING = BenchConfig(threads=1, iterations=200, rounds=20, max_rounds=40, max_seconds=600.0)


Measured = tuple[list[dict[str, Any]], list[dict[str, str]], list[dict[str, Any]]]
"""A model's rows, the peers that are left out with why, and its bars."""
Found = dict[str, Any]
"""The same by name: ``rows``, ``left_out`` and ``bars``, and the ``commit`` that they were measured at."""


def main() -> None:
    """Measure, write docs/results/quantize.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="of ResNet-56")
    parser.add_argument("--peers", required=True, type=Path, help="folder of the peers' environments")
    parser.add_argument("--text-model", help="checkpoint of a fine-tuned text model")
    parser.add_argument("--text-data", help="what it was fine-tuned on")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runs", type=Path, default=Path("runs/quantize-peers"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    with mistakes_told():
        data = load_data(given.data)
        found: dict[str, Found] = {}
        for name in MODELS:
            reference = MODELS[name].format(weights=given.weights)
            measure = partial(_measured, name, reference, data, given.peers) if name in given.models else None
            found |= _once(name, given.runs / name, measure)
        texts = partial(_text, given.text_model, load_data(given.text_data)) if given.text_model else None
        found |= _once(TEXT, given.runs / "text", texts)
    command = f"--data {Path(given.data).name} --weights {Path(given.weights).name} --peers PEERS"
    if TEXT in found:
        command += " --text-model CHECKPOINT --text-data sst2"
    measured = measured_here(
        RESULT,
        f"python perf/quantize_peers.py {command}",
        commits={name: one["commit"] for name, one in found.items()},
        rows=[row for one in found.values() for row in one["rows"]],
        left_out=[missing for one in found.values() for missing in one["left_out"]],
        bars=[
            *(bar for one in found.values() for bar in one["bars"]),
            at_least("models", len(found), len(MODELS) + 1),
        ],
    )
    others = [one for one in _sections() if _instructions(one["machine"]) != _instructions(measured["machine"])]
    processors = [measured, *others]
    publish(
        {"name": RESULT, "processors": processors, "bars": measured["bars"]},
        _markdown(processors),
        as_json=given.json,
    )


MODELS = {
    "resnet56": "recipes/cifar_resnet.py:resnet56,weights={weights}",
    "resnet18": "timm:resnet18,num_classes=10",
    "tf_efficientnet_lite0": "timm:tf_efficientnet_lite0,num_classes=10",
}


def _once(name: str, folder: Path, measure: Callable[[], Measured] | None) -> dict[str, Found]:
    """Return what a folder holds of a model, measured into it if need be; else what is published; else nothing."""
    machine = this_machine().model_dump()
    here = {"versions": package_versions(), "cpu": machine["cpu"], "int8": _instructions(machine)}
    note = folder / "measured.json"
    noted = json.loads(note.read_text()) if note.exists() else {}
    if noted.get("here") == here:
        return {name: noted["found"]}
    if measure is None:
        return _published(name, here)
    made_at = commit()
    rows, left_out, bars = measure()
    found = {"commit": made_at, "rows": rows, "left_out": left_out, "bars": bars}
    with whole_file(note) as part:
        part.write_text(json.dumps({"here": here, "found": found}))
    return {name: found}


def _published(name: str, here: dict[str, Any]) -> dict[str, Found]:
    """Return what docs/results holds of a model, measured on such a processor with the same packages."""
    for one in _sections():
        machine = one["machine"]
        where = {"versions": one["versions"], "cpu": machine["cpu"], "int8": _instructions(machine)}
        if where == here and name in one.get("commits", ()):
            of_model = {
                key: [row for row in one[key] if row.get("model") == name] for key in ("rows", "left_out", "bars")
            }
            return {name: {"commit": one["commits"][name], **of_model}}
    return {}


def _sections() -> list[dict[str, Any]]:
    return list(published(RESULT).get("processors", ()))


def _measured(name: str, reference: str, data: Data, peers: Path) -> Measured:
    """Return a model's rows, the peers that are left out, and its bars."""
    is_trained = name == "resnet56"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = export(load_torch_model(reference, data), folder / f"{FLOAT}.onnx", ExportConfig()).model
        config = QuantizeConfig(calibration_samples=CALIBRATION_SAMPLES, max_drop=MOST_POINTS if is_trained else 100.0)
        started = time.perf_counter()
        ours = quantize_measured(whole, data, folder / f"{OURS}.onnx", config, 1, lambda *_: None)
        seconds = time.perf_counter() - started
        files = {FLOAT: whole, OURS: ours.model}
        left_out = []
        np.save(folder / "inputs.npy", _calibration(whole, data))
        for peer in PEERS:
            _say(f"{name}: {peer}")
            made, reason = _quantized_by(peer, whole, folder, peers)
            files |= {peer: made} if made else {}
            left_out += [] if made else [{"model": name, "peer": peer, "why": reason}]
        _say(f"{name}: timing {len(files)} files")
        report = bench(list(files.values()), [TIMING], data if is_trained else None)
    rows = [_row(name, tool, row, is_trained) for tool, row in zip(files, report.rows, strict=True)]
    return rows, left_out, _bars(name, rows, seconds if is_trained else None)


TEXT_FORMS: dict[str, dict[str, Any]] = {
    "static int8": {"form": "qdq"},
    "dynamic int8": {"form": "dynamic"},
    "int4": {"precision": "int4"},
}
TEXT, TEXT_TOKENS = "MiniLM on SST-2", 32


def _text(checkpoint: str, data: Data) -> Measured:
    """Return the rows of a text model, float32, what is chosen and each form by itself, and what could not be made."""
    left_out = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = export(load_torch_model(checkpoint, data), folder / f"{FLOAT}.onnx", ExportConfig()).model
        files = {FLOAT: whole}
        for name, settings in {f"{OURS}, chosen": {}, **TEXT_FORMS}.items():
            _say(f"{TEXT}: {name}")
            output, samples = folder / f"{len(files)}.onnx", CALIBRATION_SAMPLES
            try:
                if settings:  # what is asked for is shown, whatever it loses
                    config = QuantizeConfig(calibration_samples=samples, **settings)
                    files[name] = quantize(whole, data, output, config).model
                else:
                    config = QuantizeConfig(calibration_samples=samples)
                    files[name] = quantize_measured(whole, data, output, config, 1, lambda *_: None).model
            except ToolError as error:
                left_out.append({"model": TEXT, "peer": name, "why": str(error)})
        shorter = [with_sequence_length(file, TEXT_TOKENS) for file in files.values()]
        report = bench(shorter, [TIMING], data)
    return [_row(TEXT, tool, row, True) for tool, row in zip(files, report.rows, strict=True)], left_out, []


def _calibration(model: OnnxModel, data: Data) -> np.ndarray:
    train = data.split("train")
    sample = train.take(spread(len(train), CALIBRATION_SAMPLES))
    return torch.cat([inputs for (inputs,), _ in batches(sample, preprocessing_of(model, data), 64)]).numpy()


def _quantized_by(peer: str, whole: OnnxModel, folder: Path, peers: Path) -> tuple[OnnxModel | None, str]:
    """Return the file a peer makes, told how its input is made, which some forget; or None and why there is none."""
    output = folder / f"{''.join(letter for letter in peer if letter.isalnum())}.onnx"
    try:
        python = _environment(peer, peers)
        command: list[str | Path] = [
            python,
            Path(__file__).parent / "peer_quantizers.py",
            peer,
            folder / f"{FLOAT}.onnx",
        ]
        done = subprocess.run(
            [*command, folder / "inputs.npy", output],
            capture_output=True,
            text=True,
            timeout=PEER_SECONDS,
            check=False,
            cwd=folder,  # where some leave their caches
        )
    except (subprocess.SubprocessError, OSError) as error:
        return None, " ".join(str(error).split())[:200]
    if done.returncode or not output.exists():
        lines = done.stderr.strip().splitlines() or ["it ended without a file"]
        return None, lines[-1][:200]
    try:
        proto = onnx.load(output)
        declared, reads = whole.declared, whole.preprocessing
        explain(proto, history=(), inputs=declared, preprocessing=reads, labels=whole.labels, returns=whole.returns)
        onnx.save(proto, output)
        made = open_onnx(output)
        open_onnx_run(made, "cpu", 1, 1)()  # what loads may still not run
    except ToolError as error:
        return None, str(error)[:200]
    else:
        return made, ""


def _environment(peer: str, peers: Path) -> Path:
    """Return the Python of a peer's environment, which sees what is installed here and adds what the peer asks for.

    Raises:
        subprocess.CalledProcessError: It cannot be installed.
    """
    if peer not in PACKAGES:
        return Path(sys.executable)
    home = peers.resolve() / PACKAGES[peer][0].partition("[")[0]
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        venv.create(home, with_pip=True, clear=True)
        below = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        (next((home / "lib").glob("python*")) / "site-packages" / "below.pth").write_text(f"{below}\n")
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[peer]], check=True, capture_output=True)
        (home / "installed").touch()
    return python


def _row(model: str, tool: str, row: BenchRow, is_trained: bool) -> dict[str, Any]:
    interval = row.speedup.interval if row.speedup else None
    return {
        "model": model,
        "tool": tool,
        "speedup": row.speedup.ratio if row.speedup else 1.0,
        "interval": interval,
        "p50_ms": row.latency.p50_ms,
        "size_bytes": row.size_bytes,
        "accuracy": row.quality.accuracy if is_trained and row.quality else None,
        "drop": row.change.drop if is_trained and row.change else None,
    }


def _bars(model: str, rows: list[dict[str, Any]], seconds: float | None) -> list[dict[str, Any]]:
    by_tool = {row["tool"]: row for row in rows}
    ours = by_tool[OURS]
    others = [row for row in rows if row["tool"] not in (OURS, FLOAT)]
    fastest = max(others, key=lambda row: row["speedup"], default=None)
    bars = []
    if fastest:
        no_slower = ours["speedup"] >= fastest["speedup"] or (
            fastest["interval"] and ours["interval"] and fastest["interval"][0] <= ours["interval"][1]
        )
        name = f"{model}: ours over the fastest peer ({fastest['tool']}); kept where their intervals meet"
        bars.append(bar(name, ours["speedup"] / fastest["speedup"], 1.0, ok=bool(no_slower)))
    if seconds is not None:
        for what, value, limit in (("points lost", ours["drop"], MOST_POINTS), ("seconds", seconds, MOST_SECONDS)):
            bars.append(at_most(f"{model}: {what}", value, limit))
    return [{"model": model, **one} for one in bars]


def _instructions(machine: dict[str, Any]) -> str:
    return ", ".join(machine["int8_instructions"]) or "no int8 instructions"


def _markdown(processors: Sequence[dict[str, Any]]) -> str:
    return "\n".join([INTRODUCTION, *map(_section, processors)])


def _section(result: dict[str, Any]) -> str:
    def interval(row: dict[str, Any]) -> str:
        return "{:.2f} to {:.2f}".format(*row["interval"]) if row["interval"] else ""

    table = markdown_table(
        result["rows"],
        {
            "model": lambda row: row["model"],
            "tool": lambda row: row["tool"],
            "speedup": lambda row: f"{row['speedup']:.2f}x",
            "99 % interval": interval,
            "p50 ms": lambda row: f"{row['p50_ms']:.3f}",
            "accuracy %": lambda row: "" if row["accuracy"] is None else f"{row['accuracy']:.2f}",
            "KiB": lambda row: f"{row['size_bytes'] / 1024:.0f}",
        },
    )
    missing = "".join(f"- {one['peer']} on {one['model']}: {one['why']}\n" for one in result["left_out"])
    left_out = f"Left out:\n\n{missing}" if missing else ""
    commits = [f"{name} {made_at}" for name, made_at in result.get("commits", {}).items()]
    measured_at = f"Measured at: {'; '.join(commits)}.\n" if commits else ""
    title = f"On a processor with {_instructions(result['machine'])}"
    return page(title, result, table, bars_table(result["bars"]), measured_at, left_out, level=2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
