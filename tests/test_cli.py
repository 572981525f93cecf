"""The command line: exit codes, help, JSON, and errors a person can act on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import click
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

from cli import main
from core.onnx_model import OnnxModel
from stage_kinds import STAGE_KINDS

ROOT = Path(__file__).parent.parent
Onnxpress = Callable[..., Result]


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--nonsense"], ["bench", "--help"], ["distil"]])
def test_help_and_usage_errors_import_neither_torch_nor_onnxruntime(arguments: list[str]) -> None:
    script = (
        "import sys, cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'pydantic', 'rich', 'transformers'} & set(sys.modules)\n"
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


@pytest.mark.parametrize("name", STAGE_KINDS)
def test_options_agree_with_the_config(name: str) -> None:
    """Choices are the Literal's, defaults the field's: the command line repeats them to stay light."""
    hints = get_type_hints(STAGE_KINDS[name].config)
    defaults = {field.name: field.default for field in fields(STAGE_KINDS[name].config)}
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
    assert "'3,x,8' is neither C,H,W, like 3,224,224, nor int64:SIZES" in result.stderr


def test_no_arguments_show_the_commands(onnxpress: Onnxpress) -> None:
    assert "distill" in onnxpress().output


def test_from_a_factory_to_a_verified_int8_file(onnxpress: Onnxpress, tiny: str) -> None:
    """The README's first real use, command by command."""
    quick = ["--epochs", 3, "--batch-size", 64, "--lr", 0.1, "-q"]
    int8 = ["--threads", 1, "--form", "qdq", "--max-drop", 10]
    for arguments in (
        ["finetune", f"{tiny}:cnn,width=32", "--data", "digits", "-o", "teacher", *quick],
        ["distill", f"{tiny}:cnn", "--teacher", "teacher", "--data", "digits", "-o", "student", *quick],
        ["prune", "student", "--pruning-ratio", 0.25, "--threads", 1, "--data", "digits", "-o", "pruned", "-q"],
        ["distill", "pruned", "--teacher", "teacher", "--data", "digits", "-o", "recovered", *quick],
        ["export", "recovered", "-o", "float32.onnx", "-q"],
        ["verify", "float32.onnx", "--reference", "recovered", "-q"],
        ["quantize", "float32.onnx", *int8, "--data", "digits", "-o", "int8.onnx", "-q"],
        ["inspect", "int8.onnx"],
    ):
        result = onnxpress(*arguments)
        assert result.exit_code == 0, result.output
    assert "finetune" not in result.stdout.split("history")[1]
    assert "distill, prune, distill, export, quantize" in result.stdout
    quick = ["--iterations", 20, "--max-seconds", 0.3, "--threads", 1]
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


def test_where_no_plot_can_be_written_nothing_is_measured(
    onnxpress: Onnxpress, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setattr("stages.lr_range_test", lambda *_, **__: pytest.fail("measured"))
    result = onnxpress("finetune", f"{tiny}:cnn", "--data", "digits", "--find-lr", "-o", "file/lr.html")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: cannot write file/lr.html")


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
    arguments = ["bench", exported.path, "--batch-size", "1,4", "--threads", "1", "--iterations", "20"]
    first = onnxpress(*arguments, "--json")
    rows = json.loads(first.stdout)["rows"]
    assert [(row["batch_size"], row["threads"]) for row in rows] == [(1, 1), (4, 1)]
    for row in rows:  # as if it had been forty times as fast
        row["latency"] |= {"p50_ms": row["latency"]["p50_ms"] / 40, "p50_interval_ms": [0.001, 0.001]}
    Path("old.json").write_text(json.dumps(json.loads(first.stdout) | {"rows": rows}))
    second = onnxpress(*arguments, "--compare", "old.json")
    assert second.exit_code == 3
    assert "Error: regressed against the old report:" in second.stderr
    assert "against the old report" in second.stdout
    Path("today.json").write_text(first.stdout)
    assert "regression" in json.loads(onnxpress(*arguments, "--compare", "today.json", "--json").stdout)


def test_a_report_replaces_no_file_but_a_page(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    shutil.copyfile(exported.path, "model.onnx")
    Path("report.html").write_text("an older page")
    arguments = ["bench", "model.onnx", "--threads", "1", "--max-seconds", "0.2"]
    refused = onnxpress(*arguments, "--report", "model.onnx")
    assert (refused.exit_code, "is no .html file, which a report may replace" in refused.stderr) == (1, True)
    assert Path("model.onnx").read_bytes() == exported.path.read_bytes()
    assert onnxpress(*arguments, "--report", "report.html").exit_code == 0
    assert "an older page" not in Path("report.html").read_text()


def test_bench_gates_on_placement_and_takes_torch_modules(onnxpress: Onnxpress, tiny: str, exported: OnnxModel) -> None:
    arguments = ["bench", f"{tiny}:cnn", exported.path, "--data", "digits", "--threads", "1", "--max-seconds", "0.3"]
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


def test_a_bug_keeps_its_traceback(onnxpress: Onnxpress, monkeypatch: pytest.MonkeyPatch, exported: OnnxModel) -> None:
    import core.describe

    def broken(model: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(core.describe, "describe", broken)
    assert isinstance(onnxpress("inspect", exported.path).exception, ZeroDivisionError)
