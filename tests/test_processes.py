"""Several processes on one machine, as torchrun starts them: the same training, one writer."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from compress.training.finetune import FinetuneConfig, finetune
from compress.training.state import partial_folder
from core.checkpoint import load_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.model_reference import load_torch_model

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
    """Sixty-four training samples: one batch, or two of 32."""
    array = digits.train.samples.array[:80, 0].numpy()
    targets = digits.train.targets[:80].numpy()
    np.savez(tmp_path / "few.npz", x_train=array[:64], y_train=targets[:64], x_val=array[64:], y_val=targets[64:])
    return tmp_path / "few.npz"


EACH_STEP = ["--epochs", 20, "--batch-size", 64]  # an epoch is one step, so that its loss is that step's
FROZEN_NORMS = ["--set", 'freeze=["1", "3.bn1", "3.bn2"]']  # whose statistics would be those of a part
SETTINGS = {
    "hint": [*EACH_STEP, "--hint", "fitnet:3=3,weight=1"],
    "parts": [
        *EACH_STEP,
        "--set",
        "accumulation_steps=2",
        "--set",
        "clip_grad_norm=0.5",
        "--set",
        "ema_decay=0.9",
        *FROZEN_NORMS,
    ],
    "cache": ["--epochs", 10, "--batch-size", 32, "--teacher-cache", "kept", "--set", "augmentations=3"],
}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS["hint"],
        pytest.param(SETTINGS["parts"], marks=pytest.mark.slow),
        pytest.param(SETTINGS["cache"], marks=pytest.mark.slow),
    ],
    ids=SETTINGS,
)
def test_two_processes_train_as_one_does(tiny: str, images: Path, tmp_path: Path, settings: list[object]) -> None:
    arguments = ["distill", f"{tiny}:cnn", "--teacher", f"{tiny}:cnn,width=24", "--data", images, *settings]
    arguments += ["--lr", 0.05, "--crop-padding", 1, "--json"]
    curves = {}
    for name, command in {"one": ONE, "two": TWO}.items():
        done = launched([*command, *map(str, arguments), "-o", name], tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)  # printed once
        assert report["num_processes"] == (2 if name == "two" else 1)
        curves[name] = [entry["train_loss"] for entry in report["metrics"]]
        load_checkpoint(tmp_path / name)
    assert len(curves["one"]) == settings[1]
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


@pytest.mark.slow
def test_processes_that_are_done_leave_one_another(tiny: str, images: Path, tmp_path: Path) -> None:
    """Or threads of the exchange end some of them by SIGABRT, now and then."""
    script = tmp_path / "left.py"
    script.write_text(
        "import sys\nfrom torch import distributed\nfrom cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\nassert not distributed.is_initialized()\n"
    )
    arguments = ["finetune", f"{tiny}:cnn", "--data", str(images), "--epochs", "1", "--batch-size", "32", "-o", "out"]
    done = launched([*TWO[: TWO.index("--no-python")], str(script), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_several_processes_go_on_as_one_that_was_never_stopped(tiny: str, images: Path, tmp_path: Path) -> None:
    arguments = ["finetune", f"{tiny}:cnn", "--data", str(images), "--epochs", "40", "--batch-size", "32", "--json"]
    whole = launched([*TWO, *arguments, "-o", "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = subprocess.Popen(
        [*TWO, *arguments, "-o", "cut"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut.partial").glob("state-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in (*psutil.Process(started.pid).children(recursive=True), started):
        process.kill()
    started.wait()
    again = launched([*TWO, *arguments, "-o", "cut"], tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = ([entry["train_loss"] for entry in json.loads(done.stdout)["metrics"]] for done in (whole, again))
    assert first == second


@pytest.mark.slow
def test_processes_that_find_different_states_do_not_wait_for_one_another(
    tiny: str, images: Path, tmp_path: Path
) -> None:
    data = load_data(str(images))
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            load_torch_model(f"{tiny}:cnn", data),
            data,
            FinetuneConfig(epochs=40, batch_size=32),
            workspace=partial_folder(tmp_path / "0" / "out"),
            on_epoch=stop,
        )
    arguments = f"finetune {tiny}:cnn --data {images} --epochs 40 --batch-size 32 -o out"
    done = launched([*TWO[:-1], "bash", "-c", f"cd $RANK && exec {CLI} {arguments}"], tmp_path)
    assert done.returncode == 1
    assert "some processes find the state of an unfinished run in out.partial and others do not" in done.stderr


UNUSED = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.used = nn.Linear(64, num_classes)
        self.idle = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.used(x.flatten(1))


def net(num_classes=10, in_chans=1):
    return Net(num_classes)
"""


@pytest.mark.slow
def test_a_parameter_without_a_gradient_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(UNUSED)
    arguments = ["finetune", "nets.py:net", "--data", str(images), "--epochs", "2", "--batch-size", "32", "-o", "out"]
    done = launched([*TWO, *arguments], tmp_path)
    assert done.returncode == 1
    assert "the loss does not depend on idle.weight and 1 more; freeze the module" in done.stderr


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
