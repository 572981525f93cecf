"""What a command cannot work with: one clear line says why, and nothing that stood there is lost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from core.checkpoint import save_checkpoint
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel

ROOT = Path(__file__).parent.parent
Onnxpress = Callable[..., Result]

BAD_INPUT = {
    "a missing file": (["inspect", "nothing.onnx"], "nothing.onnx does not exist"),
    "a misspelt file": (["inspect", "modle.onnx"], "Did you mean 'model.onnx'"),
    "a misspelt timm model": (["export", "timm:resnet81", "-o", "x.onnx"], "Did you mean 'resnet18"),
    "a misspelt torchvision model": (["export", "torchvision:resnet81", "-o", "x.onnx"], "Did you mean 'resnet18'"),
    "an unknown kind": (["inspect", "tim:resnet18"], "unknown kind 'tim'"),
    "a misspelt factory": (["inspect", "{tiny}:cnm"], "Did you mean 'cnn'"),
    "an argument the factory does not take": (["inspect", "{tiny}:cnn,widht=3"], "widht"),
    "a truncated onnx": (["inspect", "cut.onnx"], "damaged, cut short or not ONNX"),
    "an empty onnx": (["inspect", "empty.onnx"], "damaged, cut short or not ONNX"),
    "a truncated npz": (["finetune", "{tiny}:cnn", "--data", "cut.npz", "-o", "x"], "cannot read cut.npz"),
    "a truncated safetensors": (["inspect", "{tiny}:cnn,weights=cut.safetensors", "--input-shape", "1,8,8"], "damaged"),
    "a pickle as weights": (["inspect", "{tiny}:cnn,weights=w.pt"], "is not a .safetensors file"),
    "a bare array": (["bench", "model.onnx", "--data", "bare.npz"], "bare.npz holds one bare array"),
    "one training sample": (["finetune", "{tiny}:cnn", "--data", "one.npz", "-o", "x"], "at least two are needed"),
    "other classes than the data's": (
        ["finetune", "checkpoint", "--data", "two.npz", "-o", "x"],
        "cnn has 10 classes, two.npz has 2; the classes must be the same",
    ),
    "a report that cannot be written": (
        ["bench", "model.onnx", "--report", "checkpoint"],
        "cannot write checkpoint: Is a",
    ),
    "a report without a name": (["bench", "model.onnx", "--report", ""], "cannot be replaced; name a file"),
    "another order of classes": (["bench", "model.onnx", "--data", "order.npz"], "labels would be matched wrongly"),
    "rows for a model of images": (["finetune", "checkpoint", "--data", "rows.npz", "-o", "x"], "takes images"),
    "somebody's folder as output": (
        ["prune", "checkpoint", "--pruning-ratio", "0.5", "-o", "precious", "--force"],
        "precious holds something else than a checkpoint",
    ),
    "here as output": (
        ["prune", "checkpoint", "--pruning-ratio", "0.5", "-o", ".", "--force"],
        "holds something else than a checkpoint",
    ),
    "no output": (["export", "checkpoint", "-o", ""], "cannot be replaced; name a file or folder inside it"),
    "a folder as recipe": (["run", "checkpoint"], "checkpoint is a folder; name a recipe in it"),
    "a misspelt setting": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--set", "ema_decy=0.9"],
        "--set: unknown key 'ema_decy'. Did you mean 'ema_decay'",
    ),
    "a setting without a value": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--set", "ema_decay"],
        "--set ema_decay: write key=value",
    ),
    "a setting out of range": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--set", "zoom=2"],
        "zoom is 2.0; it must be in [0, 1)",
    ),
    "a setting of another type": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--set", "schedule=cosin"],
        "schedule: Input should be 'cosine'",
    ),
    "a module that is not there to freeze": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--set", 'freeze=["3.conv11"]'],
        "there is no module '3.conv11' to freeze. Did you mean '3.conv",
    ),
    "a hint's module that is not there": (
        ["distill", "{tiny}:cnn", "--teacher", "model.onnx", "--data", "digits", "-o", "x", "--hint", "at:3.conv=3"],
        "hints need the teacher's inner features",
    ),
    "a hint's path that is not there": (
        ["distill", "{tiny}:cnn", "--teacher", "{tiny}:cnn", "--data", "digits", "-o", "x", "--hint", "at:3.conv11=3"],
        "there is no module '3.conv11' to take a hint from in the student. Did you mean '3.conv",
    ),
    "a learning rate to find for lbfgs": (
        ["finetune", "{tiny}:cnn", "--data", "digits", "-o", "x", "--find-lr", "--optimizer", "lbfgs"],
        "lbfgs searches the length of its steps itself",
    ),
    "a teacher cache that is none": (
        [
            "distill",
            "{tiny}:cnn",
            "--teacher",
            "model.onnx",
            "--data",
            "digits",
            "-o",
            "x",
            "--teacher-cache",
            "precious",
        ],
        "precious is no teacher cache and not empty; name another folder",
    ),
    "no labels": (["finetune", "{tiny}:cnn", "--data", "unlabelled.npz", "-o", "x"], "has no labels to train on"),
    "missing data": (
        ["finetune", "{tiny}:cnn", "--data", "digit", "-o", "x"],
        "digit does not exist. Did you mean 'digits'",
    ),
    "an unknown data kind": (["finetune", "{tiny}:cnn", "--data", "tv:CIFAR10", "-o", "x"], "unknown kind 'tv'"),
    "labels out of range": (["finetune", "{tiny}:cnn", "--data", "labels.npz", "-o", "x"], "labels out of range"),
    "NaN in the data": (["finetune", "{tiny}:mlp", "--data", "nan.npz", "-o", "x"], "holds NaN or infinity"),
    "an empty class": (["finetune", "{tiny}:cnn", "--data", "gap.npz", "-o", "x"], "no training sample of class '1'"),
    "an onnx to train": (["finetune", "model.onnx", "--data", "digits", "-o", "x"], "cannot be trained or pruned"),
    "a torch model to quantize": (
        ["quantize", "{tiny}:cnn", "--data", "digits", "-o", "x.onnx"],
        "is not an .onnx file; export it first",
    ),
    "no model to quantize": (
        ["quantize", "labels.npz", "--data", "digits", "-o", "x.onnx"],
        "labels.npz is not a model this tool reads",
    ),
    "a quantized file to quantize": (
        ["quantize", "int8.onnx", "--data", "digits", "-o", "x.onnx"],
        "int8.onnx is int8 already; give the float32 file it was made from",
    ),
    "a file to quantize over itself": (
        ["quantize", "model.onnx", "--data", "digits", "-o", "model.onnx", "--force"],
        "model.onnx is a file of the model to read, which stays; choose another --output",
    ),
    "rows to quantize a model of images on": (
        ["quantize", "model.onnx", "--data", "rows.npz", "-o", "x.onnx"],
        "model.onnx takes images, rows.npz holds samples that are not images",
    ),
    "colour images to quantize a grey model on": (
        ["quantize", "model.onnx", "--data", "colour.npz", "-o", "x.onnx"],
        "channels",
    ),
    "a quantized file below a file": (
        ["quantize", "model.onnx", "--data", "digits", "-o", "model.onnx/x.onnx"],
        "cannot write",
    ),
    "a report that is none": (["bench", "model.onnx", "--compare", "bad.toml"], "is no report of `bench --json`"),
    "no input shape": (["export", "{tiny}:cnn", "-o", "x.onnx"], "give --data or --input-shape"),
    "a wrong input shape": (["export", "{tiny}:cnn", "--input-shape", "3,8,8", "-o", "x.onnx"], "in its module '0'"),
    "another teacher's classes": (
        ["distill", "checkpoint", "--teacher", "three", "--data", "digits", "-o", "x"],
        "has 3 classes, the student",
    ),
    "a missing module to ignore": (
        ["prune", "checkpoint", "--pruning-ratio", "0.5", "--ignore", "3.convx", "-o", "x"],
        "no module '3.convx' to ignore. Did you mean",
    ),
    "an untraceable model": (
        ["export", "{tiny}:untraceable", "--input-shape", "1,8,8", "-o", "x.onnx"],
        "in its module '1.1'",
    ),
    "raw images for a model of rows": (
        ["export", "{tiny}:mlp", "--input-shape", "5", "--input", "uint8", "-o", "x.onnx"],
        "that are not images, and uint8 input is for images",
    ),
    "more classes than there are": (
        ["export", "checkpoint", "--returns", "top-11", "-o", "x.onnx"],
        "has 10 classes and cannot return the top-11; ask for fewer",
    ),
    "weights that stand where the export's would": (
        ["export", "checkpoint", "-o", "other.onnx"],
        "other.onnx.data exists already; pass --force",
    ),
    "colour images for a grey model": (["bench", "model.onnx", "--data", "rgb.npz"], "channels"),
    "an output that exists": (["export", "checkpoint", "-o", "model.onnx"], "exists already; pass --force"),
    "an output below a file": (["export", "checkpoint", "-o", "model.onnx/x.onnx"], "cannot write"),
    "an unknown provider": (["bench", "model.onnx", "--provider", "CDUAExecutionProvider"], "Did you mean 'CUDAExec"),
    "a recipe that is not TOML": (["run", "bad.toml"], "is not valid TOML"),
    "a missing recipe": (["run", "digts"], "digts does not exist. Did you mean 'digits'"),
}


@pytest.fixture
def workbench(tmp_path: Path, exported: OnnxModel, quantized: OnnxModel, untrained: TorchModel) -> Path:
    """A folder with good and bad files, to which the commands above refer."""
    whole = exported.path.read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole)
    (tmp_path / "int8.onnx").write_bytes(quantized.path.read_bytes())
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "other.onnx.data").write_bytes(b"")
    (tmp_path / "bad.toml").write_text("data = ")
    save_checkpoint(untrained, tmp_path / "checkpoint")
    weights = (tmp_path / "checkpoint" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(weights[:-100])
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pt")
    images, targets = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "good.npz", x_train=images, y_train=targets)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:700])
    labels = [str(index) for index in range(5)]
    np.save(tmp_path / "bare.npy", images)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    np.savez(tmp_path / "one.npz", x_train=images[:1], y_train=targets[:1])
    np.savez(tmp_path / "two.npz", x_train=images, y_train=targets % 2)
    np.savez(tmp_path / "rows.npz", x_train=np.ones((40, 5), np.float32), y_train=targets)
    order = [str(index) for index in reversed(range(10))]
    np.savez(tmp_path / "order.npz", x_test=images, y_test=targets, labels=order)
    np.savez(tmp_path / "unlabelled.npz", x_train=images)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "photo.jpg").write_bytes(b"")
    three = load_torch_model(f"{Path(__file__).parent / 'tiny_models.py'}:cnn,num_classes=3", input_shape=(1, 8, 8))
    save_checkpoint(three, tmp_path / "three")
    np.savez(tmp_path / "labels.npz", x_train=images, y_train=targets, labels=labels)
    np.savez(tmp_path / "gap.npz", x_train=images, y_train=targets // 2 * 2)
    np.savez(tmp_path / "rgb.npz", x_test=np.zeros((40, 8, 8, 3), np.uint8), y_test=targets)
    np.savez(tmp_path / "colour.npz", x_train=np.zeros((40, 8, 8, 3), np.uint8), y_train=targets)
    np.savez(tmp_path / "nan.npz", x_train=np.full((40, 5), np.nan, np.float32), y_train=targets % 3)
    return tmp_path


@pytest.mark.parametrize("case", BAD_INPUT, ids=lambda case: case.replace(" ", "-"))
def test_bad_input_is_one_clear_line_and_loses_nothing(
    onnxpress: Onnxpress, workbench: Path, tiny: str, case: str
) -> None:
    arguments, message = BAD_INPUT[case]
    before = contents(workbench)
    line = one_error_line(onnxpress(*[argument.format(tiny=tiny) for argument in arguments]))
    assert message in line
    assert contents(workbench) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_error_line(result: Result) -> str:
    """The single ``Error:`` line of a failed command; anything more, a traceback above all, fails the test."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("Error: "), result.stderr
    assert "Traceback" not in result.output
    return lines[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the provider can be used")
def test_cuda_without_a_gpu_is_one_line_that_says_why(exported: OnnxModel) -> None:
    """In a process of its own: ONNX Runtime writes past Python."""
    command = [sys.executable, ROOT / "cli.py", "bench", exported.path, "--provider", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "[W:onnxruntime" not in line]  # at import, of the machine
    assert len(lines) == 1, done.stderr
    assert "no NVIDIA GPU" in done.stderr or "has no CUDAExecutionProvider" in done.stderr


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["export", "checkpoint", "-o", "out.onnx"], id="export", marks=pytest.mark.slow),
        pytest.param(
            ["quantize", "model.onnx", "--data", "digits", "-o", "out.onnx"],
            id="quantize",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["prune", "checkpoint", "--speedup", "1.2", "--allocation", "uniform", "-o", "out"],
            id="prune",
            marks=pytest.mark.slow,
        ),
        pytest.param(["finetune", "checkpoint", "--data", "digits", "--epochs", "1", "-o", "out"], id="finetune"),
    ],
)
def test_a_disk_that_fills_is_one_clear_line(
    tmp_path: Path, exported: OnnxModel, untrained: TorchModel, arguments: list[str]
) -> None:
    """The kernel's limit on a file's size stands for the full disk: the same write fails, with a like error."""
    (tmp_path / "model.onnx").write_bytes(exported.path.read_bytes())
    save_checkpoint(untrained, tmp_path / "checkpoint")
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: cannot write"), done.stderr
    assert "free on" in last or "in TMPDIR" in last
    assert not (tmp_path / arguments[-1]).exists()
    assert not list(tmp_path.rglob(".*.part*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_report_that_cannot_be_shown_is_one_line(exported: OnnxModel) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "cli", "inspect", str(exported.path)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Error: cannot write the report to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_test_of_learning_rates_is_not_tracked(onnxpress: Onnxpress) -> None:
    options = ["--find-lr", "--track", "tensorboard", "--data", "digits", "-o", "lr.html"]
    result = onnxpress("finetune", "model", *options)
    said = "--find-lr trains nothing whose metrics --track could send; drop one of them"
    assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--sensitivity takes --data and no target: it prunes nothing"),
        (["--data", "digits", "--speedup", "2"], "--sensitivity takes --data and no target: it prunes nothing"),
        (
            ["--data", "digits", "--precision", "int8", "--round-to", "1"],
            "--sensitivity prunes nothing and does not read --precision, --round-to; leave that away",
        ),
    ],
)
def test_what_a_look_at_sensitivity_does_not_read_is_refused(
    onnxpress: Onnxpress, options: list[str], said: str
) -> None:
    result = onnxpress("prune", "model", "--sensitivity", *options, "-o", "plot.html")
    assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True)
