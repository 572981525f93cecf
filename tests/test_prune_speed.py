"""The way to a speedup on ONNX Runtime: what prune says it reached, a bench in a process of its own finds too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.training.finetune import FinetuneConfig, finetune
from core.checkpoint import save_checkpoint
from core.data import Data
from core.model_reference import load_torch_model

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.15  # of a machine that others use too


def run(folder: Path, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ONNXPRESS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_bench_of_its_own_finds_the_speedup_that_was_asked_for(digits: Data, tmp_path: Path) -> None:
    start = load_torch_model(f"{ROOT / 'recipes' / 'digits_cnn.py'}:student", digits, seed=0)
    trained = finetune(start, digits, FinetuneConfig(epochs=3, batch_size=64, lr=0.1)).model
    save_checkpoint(trained, tmp_path / "whole")
    pruning = ["prune", "whole", "--speedup", 1.5, "--threads", 1, "--data", "digits", "-o", "pruned", "--json"]
    report = json.loads(run(tmp_path, *pruning))
    for name in ("whole", "pruned"):
        run(tmp_path, "export", name, "-o", f"{name}.onnx")
    rows = json.loads(run(tmp_path, "bench", "whole.onnx", "pruned.onnx", "--threads", 1, "--json"))["rows"]
    assert report["measured_speedup"] >= 1.485
    assert rows[1]["speedup"]["ratio"] == pytest.approx(1.5, rel=TOLERANCE)
    assert report["accuracy"][2] > 80
