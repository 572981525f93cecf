"""Ctrl-C, as a terminal sends it, in every stage: no traceback, nothing half-written, nothing finished lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import save_checkpoint
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from interruption import AGAIN_S, TIDYING_S, interruptions

FOREVER = ["--epochs", "10000", "--batch-size", "256"]
STAGES = {
    "finetune": ["finetune", "checkpoint", "--data", "digits", "-o", "out", *FOREVER],
    "distill": ["distill", "checkpoint", "--teacher", "model.onnx", "--data", "digits", "-o", "out", *FOREVER],
    "prune": ["prune", "checkpoint", "--speedup", "2", "--data", "digits", "-o", "out"],
    "export": ["export", "checkpoint", "-o", "out"],
    "quantize": ["quantize", "model.onnx", "--data", "digits", "-o", "out", "--calibration-samples", "1000000"],
    "bench": ["bench", "model.onnx", "--iterations", "10000000"],
}
TELLS_WHEN_IT_MEASURES = """
import pathlib, bench.compare
from cli import main

measure = bench.compare.measure

def told(*given, **named):
    pathlib.Path("measuring").touch()
    return measure(*given, **named)

bench.compare.measure = told
main()
"""


def started(arguments: list[str], folder: Path, code: str = "from cli import main; main()") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert condition() or process.poll() is not None, "it did not come so far in a minute"


def interrupt(process: "subprocess.Popen[str]") -> str:
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return stderr


QUICK = ("bench", "finetune")


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage in QUICK else pytest.mark.slow) for stage in STAGES]
)
def test_ctrl_c_is_clean_in_every_stage(stage: str, tmp_path: Path, exported: OnnxModel, untrained: TorchModel) -> None:
    (tmp_path / "model.onnx").write_bytes(exported.path.read_bytes())
    save_checkpoint(untrained, tmp_path / "checkpoint")
    process = started(STAGES[stage], tmp_path, *([TELLS_WHEN_IT_MEASURES] if stage == "bench" else []))
    if stage == "bench":
        wait_for((tmp_path / "measuring").exists, process)
    elif stage in ("finetune", "distill"):
        wait_for(lambda: (tmp_path / "out.partial" / "metrics.jsonl").exists(), process)
    else:
        time.sleep(4)
    if process.poll() is not None:
        assert process.returncode == 0, process.stderr.read()
        pytest.skip(f"{stage} was done before it could be interrupted")
    stderr = interrupt(process)
    assert process.returncode == 1, stderr
    assert "Interrupted; nothing half-written is left" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob(".*.part*"))


def test_a_swallowed_interrupt_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[tuple[int, float]] = []
    monkeypatch.setattr(signal, "setitimer", lambda *timer: armed.append(timer))
    with interruptions() as came:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert armed == [(signal.ITIMER_REAL, AGAIN_S)]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGALRM)  # as the timer does
    assert len(came) == 2
    assert [seconds for _, seconds in armed] == [AGAIN_S, AGAIN_S, 0]  # and no more once the block has ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_tidies_up_is_not_interrupted_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the interruption became another error on the way."""
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    now = time.monotonic()

    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("the compiler was stopped") from error

    def tidied() -> list[str]:
        done = []
        try:
            interrupted()
        except RuntimeError:
            signal.raise_signal(signal.SIGALRM)  # as the timer does
            done.append("folder")
            monkeypatch.setattr(time, "monotonic", lambda: now + 2 * TIDYING_S)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGALRM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return done

    with interruptions() as came:
        assert tidied() == ["folder"]
    assert came == [signal.SIGINT, signal.SIGALRM, signal.SIGINT]


@pytest.mark.slow
def test_an_interrupted_recipe_goes_on_where_it_stopped(tmp_path: Path, tiny: str) -> None:
    recipe = (
        'data = "digits"\n'
        f'[[stage]]\nkind = "finetune"\nname = "first"\nmodel = "{tiny}:cnn"\nepochs = 1\nbatch_size = 64\n'
        '[[stage]]\nkind = "finetune"\nname = "second"\nepochs = 15\nbatch_size = 64\n'
        '[[stage]]\nkind = "export"\n'
    )
    (tmp_path / "job.toml").write_text(recipe)
    process = started(["run", "job.toml"], tmp_path)
    metrics = tmp_path / "runs/job/second/checkpoint.partial/metrics.jsonl"
    wait_for(metrics.exists, process)
    assert "The same command goes on where it stopped" in interrupt(process)
    finished = len(metrics.read_text().splitlines())
    again = started(["run", "job.toml"], tmp_path)
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert "first: done already" in stderr
    assert "going on after epoch" in stderr
    assert finished >= 1
    assert (tmp_path / "runs/job/job.onnx").exists()
    assert not metrics.parent.exists()


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(tmp_path: Path, tiny: str) -> None:
    """SIGKILL lets nothing be tidied up: also the moment in which a state is written must do no harm."""
    random = np.random.default_rng()
    arguments = ["finetune", f"{tiny}:cnn", "--data", "digits", "--epochs", "20", "--batch-size", "64", "--flip"]
    metrics = tmp_path / "killed.partial" / "metrics.jsonl"

    def epochs_done() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    for _ in range(3):
        before, process = epochs_done(), started([*arguments, "-o", "killed"], tmp_path)
        wait_for(lambda before=before: epochs_done() > before, process)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "done before it was killed"
    for output in ("killed", "whole"):
        process = started([*arguments, "-o", output], tmp_path)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    killed, whole = ((tmp_path / output / "model.safetensors").read_bytes() for output in ("killed", "whole"))
    assert killed == whole
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left of the states"
