"""The command line: exit codes, help, JSON, and errors a person can act on."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import click
import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

import stages
from cli import main
from compress.distillation.config import QAT_DEFAULTS
from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.data import Data
from core.errors import GateMissedError
from core.external_data import data_file
from core.layer_shape import LayerShape
from core.measuring import Measuring, Timed
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel, num_params
from stage_kinds import STAGE_KINDS
from stages import quantize_measured

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


def test_a_cut_stays_though_it_cannot_be_timed(onnxpress: Onnxpress, tiny: str, tmp_path: Path) -> None:
    result = onnxpress(
        "prune", f"{tiny}:untraceable", "--macs-ratio", "1.5", "--data", "digits", "-o", str(tmp_path / "cut"), "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["measured_speedup"] is None
    assert "how fast the pruned model is cannot be measured: torch.export cannot trace" in result.stderr
    assert "def forward" not in result.stderr
    assert load_checkpoint(tmp_path / "cut").plan


@pytest.mark.parametrize("options", [[], ["--pruning-ratio", "0.5", "--speedup", "2"]], ids=["none", "both"])
def test_prune_wants_one_target(onnxpress: Onnxpress, options: list[str]) -> None:
    result = onnxpress("prune", "timm:resnet18", "-o", "out", *options)
    assert result.exit_code == 2
    assert "give one of --speedup, --latency-ms, --macs-ratio, --params-ratio and --pruning-ratio" in result.stderr


def test_what_training_for_int8_takes_unless_told_is_said(onnxpress: Onnxpress) -> None:
    said = onnxpress("quantize", "--help").output
    assert f"Of --qat; {QAT_DEFAULTS['epochs']} unless given." in said
    assert f"{QAT_DEFAULTS['lr']} unless given." in " ".join(said.split())


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


def test_a_target_out_of_reach_exits_3_with_what_was_tried(onnxpress: Onnxpress, tiny: str) -> None:
    result = onnxpress("prune", f"{tiny}:cnn", "--macs-ratio", "1000", "--input-shape", "1,8,8", "-o", "out")
    assert result.exit_code == 3
    lines = result.stderr.strip().splitlines()
    start = next(index for index, line in enumerate(lines) if "1000x fewer MACs is out of reach" in line)
    assert lines[start + 2].split() == ["pruning", "ratio", "reached", "params"]
    assert len(lines) > start + 6
    assert not Path("out").exists()


def test_a_speed_out_of_reach_exits_3_with_the_closest_and_what_was_tried(
    onnxpress: Onnxpress, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes by parameters."""

    def models(first: TorchModel, second: TorchModel) -> Timed:
        before, after = (num_params(model.module) / 1000 for model in (first, second))
        return Timed(before, after, before / after)

    def layers(shapes: Sequence[LayerShape]) -> list[float]:
        return [math.prod((shape.in_channels, shape.out_channels, *shape.kernel)) / 1000 for shape in shapes]

    monkeypatch.setattr(stages, "measuring", lambda *_: nullcontext(Measuring(models, layers)))
    result = onnxpress("prune", f"{tiny}:cnn", "--speedup", "1000", "--data", "digits", "-o", "out", "--quiet")
    assert (result.exit_code, result.stdout) == (3, "")
    error, _, header, _, *rows = result.stderr.strip().splitlines()
    said = re.fullmatch(
        r"Error: 1000x the speed is out of reach: ([\d.]+)x is the closest, with (\d+) parameters, \d+ blocks left "
        r"out and \d+ groups narrowed; raise max_pruning_ratio 0\.9, ignore fewer modules, or distil a smaller student",
        error,
    )
    assert said, error
    columns = re.split(r" {2,}", header.strip())
    assert columns == ["predicted speedup", "measured speedup", "latency ms", "params", "damage"]
    tried = [dict(zip(columns, map(float, row.split()), strict=True)) for row in rows]
    closest = max(tried, key=lambda one: one["measured speedup"])
    assert (f"{closest['measured speedup']:.2f}", f"{closest['params']:.0f}") == said.groups()
    assert len(tried) > 1
    assert not Path("out").exists()


def test_what_pruning_costs_is_plotted(onnxpress: Onnxpress, trained: TorchModel) -> None:
    save_checkpoint(trained, Path("trained"))
    result = onnxpress("prune", "trained", "--sensitivity", "--data", "digits", "-o", "plot.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert "3.conv1" in result.stdout
    assert "3.conv1" in Path("plot.html").read_text()


def test_pruning_in_steps_counts_from_the_baseline(onnxpress: Onnxpress, trained: TorchModel) -> None:
    save_checkpoint(trained, Path("trained"))
    first = prune(trained, PruneConfig(macs_ratio=1.3))
    save_checkpoint(first.model, Path("first"))
    np.savez("unlabelled.npz", x_train=np.zeros((64, 8, 8), np.uint8))
    arguments = ["--macs-ratio", 2, "--baseline", "trained", "--data", "unlabelled.npz", "--threads", 1, "--json"]
    result = onnxpress("prune", "first", *arguments, "-o", "second")
    assert result.exit_code == 0, result.stderr
    second = json.loads(result.stdout)
    assert first.report.macs[0] / second["macs"][1] >= 2 > second["macs_ratio"]
    assert second["accuracy"] is None  # it has no labels


def test_what_each_layer_loses_in_int8_is_plotted(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    arguments = ["quantize", exported.path, "--sensitivity", "--calibration-samples", 64, "--data", "digits"]
    result = onnxpress(*arguments, "-o", "int8.html", "--json")
    assert result.exit_code == 0
    layers = json.loads(result.stdout)["layers"]
    assert {"node", "operator", "weights", "activations"} == set(layers[0])
    assert layers[0]["node"] in Path("int8.html").read_text()
    original = Path("original.onnx")
    shutil.copyfile(exported.path, original)
    result = onnxpress("quantize", original, *arguments[2:], "-o", original, "--force")
    assert (result.exit_code, "is the file to look at, which stays" in result.stderr) == (1, True)
    assert original.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize("options", [[], ["--sensitivity"]])
def test_quantizing_never_deletes_the_weights_it_reads(
    onnxpress: Onnxpress, exported: OnnxModel, options: list[str]
) -> None:
    """They lie where the output, or the output's weights, would: as other tools name them."""
    output = Path("weights.bin" if options else "other.onnx")
    weights = output if options else data_file(output)
    onnx.save(onnx.load(exported.path), "whole.onnx", save_as_external_data=True, location=str(weights))
    before = weights.read_bytes()
    arguments = ["quantize", "whole.onnx", "--data", "digits", *options, "-o", output, "--force"]
    result = onnxpress(*arguments)
    assert (result.exit_code, "which stays; choose another --output" in result.stderr) == (1, True)
    assert weights.read_bytes() == before


def test_quantization_aware_training_takes_a_torch_model(
    onnxpress: Onnxpress, trained: TorchModel, exported: OnnxModel
) -> None:
    save_checkpoint(trained, Path("trained"))
    training = ["--qat", "--epochs", 1, "--form", "qdq", "--max-drop", 5, "--threads", 1, "--data", "digits", "--json"]
    result = onnxpress("quantize", "trained", *training, "-o", "int8.onnx")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["trained_epochs"] == 0
    refused = onnxpress("quantize", exported.path, *training, "-o", "other.onnx")
    assert "is an ONNX file, whose weights cannot be trained" in refused.stderr
    both = onnxpress("quantize", "trained", "--qat", "--sensitivity", "--data", "digits", "-o", "plot.html")
    assert (both.exit_code, "--sensitivity quantizes nothing" in both.stderr) == (2, True)
    other = onnxpress("quantize", "trained", "--qat", "--precision", "float16", "--data", "digits", "-o", "x.onnx")
    assert (other.exit_code, "--qat trains a model to bear int8, not float16" in other.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", 3, "--seed", 1], "--epochs, --seed: of --qat, which trains; add that, or drop it"),
        (["--sensitivity", "--precision", "int4"], "--sensitivity looks at int8, not int4; drop one of them"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    onnxpress: Onnxpress, exported: OnnxModel, options: list[object], said: str
) -> None:
    result = onnxpress("quantize", exported.path, *options, "--data", "digits", "-o", "int8.onnx")
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_portable_file_has_weights_of_seven_bits(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    asked = ["--portable", "--form", "qdq", "--max-drop", 5, "--threads", 1, "--data", "digits", "--json"]
    result = onnxpress("quantize", exported.path, *asked, "-o", "int8.onnx")
    report = json.loads(result.stdout)
    assert report["layout"]["reduce_range"]
    assert report["drop_without_vnni"] == report["drop"]
    weights = [numpy_helper.to_array(one) for one in onnx.load("int8.onnx").graph.initializer]
    assert max(np.abs(one.astype(int)).max() for one in weights if one.dtype == np.int8 and one.ndim > 1) == 64


def test_quantization_aware_training_needs_no_labels(
    onnxpress: Onnxpress, trained: TorchModel, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def at_first_too_bad(*given: Any, **settings: Any) -> Any:
        attempts.append("one")
        if len(attempts) == 1:
            raise GateMissedError("it loses too much")
        return quantize_measured(*given, **settings)

    monkeypatch.setattr(stages, "quantize_measured", at_first_too_bad)
    save_checkpoint(trained, Path("trained"))
    np.savez("unlabelled.npz", x_train=digits.train.samples.array[:, 0].numpy())
    arguments = ["--form", "qdq", "--max-drop", 20, "--epochs", 2, "--lr", 0.002, "--data", "unlabelled.npz", "--json"]
    result = onnxpress("quantize", "trained", "--qat", *arguments, "-o", "x.onnx")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["trained_epochs"] == 2
