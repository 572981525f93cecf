"""Several processes on one machine, as torchrun starts them: the same training, one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import load_checkpoint
from core.data import Data

CLI = str(Path(sys.executable).with_name("onnxpress"))
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", CLI]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
LAUNCH += ["--no_python", CLI]
ONE = [CLI]


def launched(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def images(tmp_path: Path, digits: Data) -> Path:
    """Training samples of which two batches of 32 are taken, ten times over."""
    array = digits.train.samples.array[:80, 0].numpy()
    targets = digits.train.targets[:80].numpy()
    np.savez(tmp_path / "few.npz", x_train=array[:64], y_train=targets[:64], x_val=array[64:], y_val=targets[64:])
    return tmp_path / "few.npz"


def test_two_processes_train_as_one_does(tiny: str, images: Path, tmp_path: Path) -> None:
    arguments = ["distill", f"{tiny}:cnn", "--teacher", f"{tiny}:cnn,width=24", "--data", images, "--epochs", 10]
    arguments += ["--batch-size", 32, "--lr", 0.05, "--crop-padding", 1, "--hint", "fitnet:3=3,weight=1", "--json"]
    curves = {}
    for name, command in {"one": ONE, "two": TWO}.items():
        done = launched([*command, *map(str, arguments), "-o", name], tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)  # printed once
        assert report["num_processes"] == (2 if name == "two" else 1)
        curves[name] = [entry["train_loss"] for entry in report["metrics"]]
        load_checkpoint(tmp_path / name)
    assert len(curves["one"]) == 10
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-4)


@pytest.mark.slow
def test_accelerate_launch_trains_as_torchrun_does(tiny: str, images: Path, tmp_path: Path) -> None:
    arguments = ["finetune", f"{tiny}:cnn", "--data", str(images), "--epochs", "5", "--batch-size", "32", "--json"]
    reports = []
    for name, command in {"torchrun": TWO, "accelerate": LAUNCH}.items():
        done = launched([*command, *arguments, "-o", name], tmp_path)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
        assert reports[-1]["num_processes"] == 2
    first, second = ([entry["train_loss"] for entry in report["metrics"]] for report in reports)
    assert len(first) == 5
    assert first == second


def test_a_command_that_does_not_share_its_work_says_so(monkeypatch: pytest.MonkeyPatch, onnxpress) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    failed = onnxpress("inspect", "model.onnx")
    assert failed.exit_code == 1
    assert "inspect works in one process, and 2 were started; only finetune and distill share" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (33, "batch_size is 33; it must be a multiple of the 2 processes that share each batch"),
        (128, "64 samples do not fill a batch of 128, which several processes would fill up with samples taken twice"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    tiny: str, images: Path, tmp_path: Path, batch_size: int, message: str
) -> None:
    arguments = ["finetune", f"{tiny}:cnn", "--data", str(images), "--batch-size", str(batch_size), "-o", "out"]
    done = launched([*TWO, *arguments], tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
