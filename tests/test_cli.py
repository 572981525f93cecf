"""The command line: exit codes, help, JSON, and errors a person can act on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import click
import numpy as np
import pytest
import torch
from click.testing import Result

from cli import main
from core.checkpoint import save_checkpoint
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from recipe import CONFIGS

ROOT = Path(__file__).parent.parent
Onnxpress = Callable[..., Result]


def one_error_line(result: Result) -> str:
    """The single ``Error:`` line of a failed command; anything more, a traceback above all, fails the test."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("Error: "), result.stderr
    assert "Traceback" not in result.output
    return lines[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--nonsense"], ["bench", "--help"], ["distil"]])
def test_help_and_usage_errors_import_neither_torch_nor_onnxruntime(arguments: list[str]) -> None:
    script = (
        "import sys, cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", main.commands.values(), ids=list(main.commands))
def test_every_command_and_option_has_help(command: click.Command) -> None:
    assert command.help
    assert "onnxpress" in command.help, "an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name} {parameter.opts}"


@pytest.mark.parametrize("name", CONFIGS)
def test_options_agree_with_the_config(name: str) -> None:
    """Choices are the Literal's, defaults the field's: the command line repeats them to stay light."""
    hints = get_type_hints(CONFIGS[name])
    defaults = {field.name: field.default for field in fields(CONFIGS[name])}
    for option in main.commands[name].params:
        if not isinstance(option, click.Option) or option.name not in defaults:
            continue
        if isinstance(option.type, click.Choice):
            assert set(option.type.choices) == literals(hints[option.name]), option.name
        default = option.default if isinstance(option.default, (bool, int, float, str)) else None
        field = defaults[option.name]
        as_list = ",".join(field) if isinstance(field, tuple) else str(field)  # where the option takes several
        assert default in (field, field or None, as_list), option.name


def literals(hint: Any) -> set[str]:
    if getattr(hint, "__origin__", None) is Literal:
        return set(get_args(hint))
    return set().union(*(literals(one) for one in get_args(hint)))


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["distil"], "distill"),
        (["bench", "--thread", "1"], "--threads"),
        (["prune", "x", "-o", "y", "--importance", "taylr", "--pruning-ratio", ".5"], "taylor"),
    ],
)
def test_a_typo_exits_2_with_a_suggestion(onnxpress: Onnxpress, arguments: list[str], suggestion: str) -> None:
    result = onnxpress(*arguments)
    assert result.exit_code == 2
    assert suggestion in result.stderr


def test_a_shape_that_is_none_exits_2(onnxpress: Onnxpress) -> None:
    result = onnxpress("export", "timm:resnet18", "--input-shape", "3,x,8", "-o", "x.onnx")
    assert result.exit_code == 2
    assert "'3,x,8' is not C,H,W, like 3,224,224" in result.stderr


@pytest.mark.parametrize("options", [[], ["--pruning-ratio", "0.5", "--speedup", "2"]], ids=["none", "both"])
def test_prune_wants_one_target(onnxpress: Onnxpress, options: list[str]) -> None:
    result = onnxpress("prune", "timm:resnet18", "-o", "out", *options)
    assert result.exit_code == 2
    assert "give one of --speedup, --latency-ms, --macs-ratio, --params-ratio and --pruning-ratio" in result.stderr


def test_no_arguments_show_the_commands(onnxpress: Onnxpress) -> None:
    assert "distill" in onnxpress().output


def test_from_a_factory_to_a_verified_int8_file(onnxpress: Onnxpress, tiny: str) -> None:
    """The README's first real use, command by command."""
    quick = ["--epochs", 3, "--batch-size", 64, "--lr", 0.1, "-q"]
    for arguments in (
        ["finetune", f"{tiny}:cnn,width=32", "--data", "digits", "-o", "teacher", *quick],
        ["distill", f"{tiny}:cnn", "--teacher", "teacher", "--data", "digits", "-o", "student", *quick],
        ["prune", "student", "--pruning-ratio", 0.25, "--data", "digits", "-o", "pruned", "-q"],
        ["distill", "pruned", "--teacher", "teacher", "--data", "digits", "-o", "recovered", *quick],
        ["export", "recovered", "-o", "float32.onnx", "-q"],
        ["verify", "float32.onnx", "--reference", "recovered", "-q"],
        ["quantize", "float32.onnx", "--data", "digits", "-o", "int8.onnx", "-q"],
        ["inspect", "int8.onnx"],
    ):
        result = onnxpress(*arguments)
        assert result.exit_code == 0, result.output
    assert "finetune" not in result.stdout.split("history")[1]
    assert "distill, prune, distill, export, quantize" in result.stdout
    quick = ["--iterations", 20, "--max-seconds", 0.3]
    result = onnxpress("bench", "float32.onnx", "int8.onnx", "--data", "digits", *quick, "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows] == ["float32.onnx", "int8.onnx"]
    assert rows[1]["quality"]["accuracy"] > 60
    assert not [path for path in Path().iterdir() if "part" in path.name]
    lines = Path("student/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_finding_a_learning_rate_writes_its_plot(onnxpress: Onnxpress, tiny: str) -> None:
    result = onnxpress("finetune", f"{tiny}:cnn", "--data", "digits", "--find-lr", "-o", "lr.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert 1e-5 < json.loads(result.stdout)["suggested_lr"] < 1
    assert "suggested" in Path("lr.html").read_text()


def test_distilling_takes_two_teachers_a_hint_a_cache_and_settings(
    onnxpress: Onnxpress, tiny: str, exported: OnnxModel
) -> None:
    arguments = ["distill", f"{tiny}:cnn", "--teacher", f"{tiny}:cnn,width=24", "--teacher", exported.path]
    arguments += ["--data", "digits", "--epochs", "1", "--set", "teacher_weights=[1, 2]", "--set", "ema_decay=0.9"]
    hinted = onnxpress(*arguments, "--hint", "fitnet:3=3", "--activation", "hardswish", "-o", "hinted", "--json")
    assert hinted.exit_code == 0, hinted.stderr
    assert len(json.loads(hinted.stdout)["teacher_accuracies"]) == 2
    assert json.loads(Path("hinted/model.json").read_text())["source"]["activation"] == "hardswish"
    cached = onnxpress(*arguments, "--teacher-cache", "cache", "-o", "cached")
    assert cached.exit_code == 0, cached.stderr
    assert Path("cache/variant-00000.logits").exists()


def test_json_puts_only_the_report_on_stdout(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    result = onnxpress("inspect", exported.path, "--json")
    assert json.loads(result.stdout)["kind"] == "onnx"
    assert json.loads(result.stdout)["format_version"] == "1.0"


def test_verify_exits_3_on_a_corrupted_initializer(onnxpress: Onnxpress, exported: OnnxModel, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(exported.path)
    weight = next(one for one in proto.graph.initializer if len(one.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(proto, tmp_path / "corrupted.onnx")
    assert onnxpress("verify", exported.path, "--reference", exported.path).exit_code == 0
    result = onnxpress("verify", "corrupted.onnx", "--reference", exported.path)
    assert result.exit_code == 3
    assert "Error: corrupted.onnx does not match" in result.stderr
    assert "max_abs_err" in result.stdout


def test_bench_sweeps_and_compares_with_an_older_report(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    arguments = ["bench", exported.path, "--batch-size", "1,4", "--threads", "1", "--max-seconds", "0.2"]
    first = onnxpress(*arguments, "--json")
    rows = json.loads(first.stdout)["rows"]
    assert [(row["batch_size"], row["threads"]) for row in rows] == [(1, 1), (4, 1)]
    for row in rows:  # as if it had been four times as fast
        row["latency"] |= {"p50_ms": row["latency"]["p50_ms"] / 4, "p50_interval_ms": [0.001, 0.001]}
    Path("old.json").write_text(json.dumps(json.loads(first.stdout) | {"rows": rows}))
    second = onnxpress(*arguments, "--compare", "old.json")
    assert second.exit_code == 3
    assert "Error: regressed against the old report:" in second.stderr
    assert "against the old report" in second.stdout
    Path("today.json").write_text(first.stdout)
    assert "regression" in json.loads(onnxpress(*arguments, "--compare", "today.json", "--json").stdout)


def test_bench_gates_on_placement_and_takes_torch_modules(onnxpress: Onnxpress, tiny: str, exported: OnnxModel) -> None:
    arguments = ["bench", f"{tiny}:cnn", exported.path, "--data", "digits", "--max-seconds", "0.3"]
    result = onnxpress(*arguments, "--require-placement", "1")
    assert result.exit_code == 0, result.output
    assert "torch eager" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1,x"], "'x' is not a valid integer"),
        (["--batch-size", "0"], "0 is not in the range"),
        (["--torch", "eager,fast"], "'fast' is not one of"),
        (["--require-placement", "2"], "2.0 is not in the range"),
        (["--scenario", "server"], "--scenario server and --slo-ms go together"),
        (["--slo-ms", "5"], "--scenario server and --slo-ms go together"),
    ],
)
def test_mistaken_lists_are_usage_errors(onnxpress: Onnxpress, arguments: list[str], message: str) -> None:
    result = onnxpress("bench", "model.onnx", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the provider can be used")
def test_cuda_without_a_gpu_is_one_line_that_says_why(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    line = one_error_line(onnxpress("bench", exported.path, "--provider", "cuda"))
    assert "no NVIDIA GPU" in line or "has no CUDAExecutionProvider" in line


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
    "missing data": (["finetune", "{tiny}:cnn", "--data", "digit", "-o", "x"], "digit does not exist"),
    "an unknown data kind": (["finetune", "{tiny}:cnn", "--data", "tv:CIFAR10", "-o", "x"], "unknown kind 'tv'"),
    "labels out of range": (["finetune", "{tiny}:cnn", "--data", "labels.npz", "-o", "x"], "labels out of range"),
    "NaN in the data": (["finetune", "{tiny}:mlp", "--data", "nan.npz", "-o", "x"], "holds NaN or infinity"),
    "an empty class": (["finetune", "{tiny}:cnn", "--data", "gap.npz", "-o", "x"], "no training sample of class '1'"),
    "an onnx to train": (["finetune", "model.onnx", "--data", "digits", "-o", "x"], "cannot be trained or pruned"),
    "a torch model to quantize": (
        ["quantize", "{tiny}:cnn", "--data", "digits", "-o", "x.onnx"],
        "is not an .onnx file; export it first",
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
    "colour images for a grey model": (["bench", "model.onnx", "--data", "rgb.npz"], "channels"),
    "an output that exists": (["export", "checkpoint", "-o", "model.onnx"], "exists already; pass --force"),
    "an output below a file": (["export", "checkpoint", "-o", "model.onnx/x.onnx"], "cannot write"),
    "an unknown provider": (["bench", "model.onnx", "--provider", "CDUAExecutionProvider"], "Did you mean 'CUDAExec"),
    "a recipe that is not TOML": (["run", "bad.toml"], "is not valid TOML"),
    "a missing recipe": (["run", "digts"], "digts does not exist"),
}


@pytest.fixture
def workbench(tmp_path: Path, exported: OnnxModel, untrained: TorchModel) -> Path:
    """A folder with good and bad files, to which the commands above refer."""
    whole = exported.path.read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole)
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
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


def test_a_bug_keeps_its_traceback(onnxpress: Onnxpress, monkeypatch: pytest.MonkeyPatch, exported: OnnxModel) -> None:
    import core.describe

    def broken(model: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(core.describe, "describe", broken)
    assert isinstance(onnxpress("inspect", exported.path).exception, ZeroDivisionError)


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
        pytest.param(["export", "checkpoint", "-o", "out.onnx"], id="export"),
        pytest.param(
            ["quantize", "model.onnx", "--data", "digits", "-o", "out.onnx"], id="quantize", marks=pytest.mark.slow
        ),
        pytest.param(
            ["prune", "checkpoint", "--pruning-ratio", "0.1", "-o", "out"], id="prune", marks=pytest.mark.slow
        ),
        pytest.param(
            ["finetune", "checkpoint", "--data", "digits", "--epochs", "1", "-o", "out"],
            id="finetune",
            marks=pytest.mark.slow,
        ),
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
    assert "free on" in last
    assert not (tmp_path / arguments[-1]).exists()
    assert not list(tmp_path.rglob(".*.part*"))
