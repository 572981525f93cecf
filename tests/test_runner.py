"""Running recipes: every stage once, the gate, and the last good file."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import runner
from compress.training import loop
from core.errors import ToolError
from core.measuring import Measuring, Timed
from core.onnx_model import open_onnx
from core.torch_model import TorchModel, num_params

RECIPE = """
data = "digits"
threads = 1
[[stage]]
kind = "finetune"
name = "teacher"
model = "{tiny}:cnn,width=32"
epochs = 3
batch_size = 64
lr = 0.1
[[stage]]
kind = "distill"
name = "student"
model = "{tiny}:cnn,width=8"
teacher = "teacher"
epochs = 2
batch_size = 64
lr = 0.1
[[stage]]
kind = "prune"
pruning_ratio = 0.2
[[stage]]
kind = "export"
name = "baseline"
model = "teacher"
[[stage]]
kind = "export"
name = "float32"
model = "prune"
[[stage]]
kind = "verify"
model = "float32"
reference = "prune"
[[stage]]
kind = "quantize"
name = "int8"
model = "float32"
calibration_samples = 64
form = "qdq"
max_drop = 50  # the epochs are few, and so are the samples
[[stage]]
kind = "bench"
models = ["baseline", "float32", "int8"]
iterations = 20
rounds = 2
max_rounds = 2
[gate]
max_drop = 90
"""
STAGES = ["teacher", "student", "prune", "baseline", "float32", "verify", "int8", "bench"]

IN_STEPS = """
data = "digits"
threads = 1
[[stage]]
kind = "finetune"
name = "teacher"
model = "{tiny}:cnn"
epochs = 1
batch_size = 64
[[stage]]
kind = "prune"
name = "half"
model = "teacher"
macs_ratio = 2.0
[[stage]]
kind = "distill"
name = "half-taught"
teacher = "teacher"
epochs = 1
batch_size = 64
[[stage]]
kind = "prune"
name = "third"
baseline = "teacher"
macs_ratio = 3.0
"""


@pytest.fixture
def run(onnxpress: Callable[..., Result], tiny: str, tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "job.toml").write_text(RECIPE.format(tiny=tiny))
    return lambda *overrides: onnxpress("run", "job.toml", *(part for one in overrides for part in ("--set", one)))


@pytest.fixture
def run_some(run: Callable[..., Result], tiny: str, tmp_path: Path) -> Callable[..., Callable[..., Result]]:
    """``run_some("teacher", "baseline")`` returns what runs these stages of the recipe, without its gate."""

    def chosen(*names: str) -> Callable[..., Result]:
        head, *stages = RECIPE.format(tiny=tiny).partition("[gate]")[0].split("[[stage]]\n")
        kept = [stage for name, stage in zip(STAGES, stages, strict=True) if name in names]
        (tmp_path / "job.toml").write_text("[[stage]]\n".join([head, *kept]))
        return run

    return chosen


@pytest.mark.slow
def test_a_recipe_may_have_two_teachers_and_a_cache(run: Callable[..., Result], tiny: str, tmp_path: Path) -> None:
    recipe = RECIPE.format(tiny=tiny).partition('[[stage]]\nkind = "prune"')[0]
    recipe = recipe.replace(
        'teacher = "teacher"', f'teacher = ["teacher", "{tiny}:cnn,width=12"]\nteacher_cache = "kept"'
    )
    (tmp_path / "job.toml").write_text(recipe)
    first = run()
    assert first.exit_code == 0, first.stderr
    assert [path.name for path in Path("runs/job/kept").glob("*/*.logits")] == ["variant-00000.logits"]
    assert ran(run()) == []
    for number, override in enumerate(("seed=1", "student.crop_padding=1"), start=2):
        again = run(override)
        assert again.exit_code == 0, again.stderr
        assert len(list(Path("runs/job/kept").iterdir())) == number


def ran(result: Result) -> list[str]:
    """The stages that a run did not find done."""
    return [
        line.split(":")[0]
        for line in result.stderr.splitlines()
        if ": " in line and "done already" not in line and line.split(":")[0] in STAGES
    ]


def test_a_run_its_cache_and_its_gate(run: Callable[..., Result], onnxpress: Callable[..., Result]) -> None:
    """One long story, because each part stands on the run before it."""
    first = run()
    assert first.exit_code == 0, first.output
    assert ran(first) == STAGES
    artifact = Path("runs/job/job.onnx")
    model = open_onnx(artifact)
    assert [step.stage for step in model.history] == ["distill", "prune", "export", "quantize"]
    assert model.sha256 == open_onnx(Path("runs/job/int8/model.onnx")).sha256
    report = json.loads(Path("runs/job/report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert report["bars"][0]["ok"]
    pruned = json.loads(Path("runs/job/prune/report.json").read_text())
    assert pruned["macs_ratio"] > 1
    assert pruned["measured_speedup"] > 0

    # again: nothing is left to do, and the table is the one that was measured
    second = run()
    assert second.exit_code == 0
    assert ran(second) == []
    assert second.stdout.split("samples/s")[1] == first.stdout.split("samples/s")[1]

    # a changed setting reruns its stage and what stands on it, nothing else
    assert ran(run("prune.pruning_ratio=0.4")) == ["prune", "float32", "verify", "int8", "bench"]

    # a missed limit exits 3, says which, and leaves the last good file
    good = artifact.read_bytes()
    missed = run("prune.pruning_ratio=0.3", "gate.max_drop=-90")
    assert missed.exit_code == 3
    assert "Error: the gate stays shut: max_drop is -90, measured" in missed.stderr
    assert "MISSED max_drop" in missed.stdout
    assert artifact.read_bytes() == good

    # an output that is gone or damaged is made again; it comes out the same, so what stands on it stays done
    made = Path("runs/job/int8/model.onnx")
    made.unlink()
    assert ran(run("prune.pruning_ratio=0.3")) == ["int8"]
    made.write_bytes(made.read_bytes()[:-10])
    assert ran(run("prune.pruning_ratio=0.3")) == ["int8"]

    plan = onnxpress("run", "job.toml", "--dry-run", "--set", "prune.pruning_ratio=0.5")
    states = {line.split()[0]: line.split()[-1] for line in plan.stdout.splitlines() if line.strip()}
    assert states["teacher"] == states["student"] == states["baseline"] == "done"
    assert states["prune"] == states["int8"] == states["bench"] == "do"


def test_pruning_in_steps_counts_from_the_baseline(
    onnxpress: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that goes by parameters."""

    def models(first: TorchModel, second: TorchModel) -> Timed:
        before, after = (float(num_params(model.module)) for model in (first, second))
        return Timed(before, after, before / after)

    monkeypatch.setattr("stages.measuring", lambda *_: nullcontext(Measuring(models, lambda shapes: [])))
    Path("job.toml").write_text(IN_STEPS.format(tiny=tiny))
    result = onnxpress("run", "job.toml")
    assert result.exit_code == 0, result.stderr
    half, third = (json.loads(Path(f"runs/job/{name}/report.json").read_text()) for name in ("half", "third"))
    assert third["macs"][0] == half["macs"][1]
    assert half["macs"][0] / third["macs"][1] >= 3 > 2 > third["macs_ratio"]
    assert half["baseline_speedup"] is None
    assert third["baseline_speedup"] == half["params"][0] / third["params"][1] > third["measured_speedup"]

    # another baseline reruns its stage alone
    again = onnxpress("run", "job.toml", "--set", 'third.baseline="half-taught"')
    assert again.exit_code == 0, again.stderr
    assert json.loads(Path("runs/job/third/report.json").read_text())["macs_ratio"] >= 3
    assert again.stderr.count("done already") == 3

    reached = onnxpress("run", "job.toml", "--set", "third.macs_ratio=1.5")
    assert reached.exit_code == 1
    assert re.search(
        r"Error: the model is at 2\.\d+x its baseline as it is; macs_ratio 1\.5 asks for nothing to go$",
        reached.stderr.strip(),
    )


def test_given_weights_are_taken_instead_of_training(
    run_some: Callable[..., Callable[..., Result]], onnxpress: Callable[..., Result], tiny: str
) -> None:
    made = onnxpress("finetune", f"{tiny}:cnn,width=32", "--data", "digits", "--epochs", 2, "-o", "given")
    assert made.exit_code == 0, made.output
    run = run_some("teacher", "baseline")
    result = run("teacher.weights=given/model.safetensors")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("runs/job/teacher/report.json").read_text())
    assert report["stage"] == "weights"
    assert report["validation_accuracy"] > 30
    steps = open_onnx(Path("runs/job/baseline/model.onnx")).history
    assert [step.stage for step in steps] == ["weights", "export"]
    assert ran(run("teacher.weights=given/model.safetensors")) == []


def test_a_run_folder_may_have_any_name(
    run_some: Callable[..., Callable[..., Result]], onnxpress: Callable[..., Result]
) -> None:
    """A colon and a comma mean something in what users name models by, and nothing in a stage's own path."""
    run_some("teacher", "baseline")
    arguments = ["run", "job.toml", "-o", "runs/12:30,again", "--set", "teacher.epochs=1"]
    assert onnxpress(*arguments).exit_code == 0
    Path("runs/12:30,again/baseline/done.json").unlink()
    resumed = onnxpress(*arguments)  # which reads the teacher from its folder
    assert resumed.exit_code == 0, resumed.stderr
    assert ran(resumed) == ["baseline"]


def test_two_runs_into_one_folder_do_not_meet(
    run_some: Callable[..., Callable[..., Result]], working_in: Callable[[str], AbstractContextManager[None]]
) -> None:
    """The first is killed, after which nothing is in the way."""
    run = run_some("teacher")
    with working_in("runs/job"):
        refused = run("teacher.epochs=1")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "another process works in runs/job; wait until it is done" in refused.stderr
    assert run("teacher.epochs=1").exit_code == 0


def test_a_stage_that_fails_loses_nothing_that_is_done(run_some: Callable[..., Callable[..., Result]]) -> None:
    run = run_some("teacher", "student", "prune")
    failed = run('prune.ignore=["nowhere"]')
    assert failed.exit_code == 1
    assert "no module 'nowhere' to ignore" in failed.stderr
    assert not Path("runs/job/job.onnx").exists()
    assert ran(run()) == ["prune"]


@pytest.mark.slow
def test_a_verification_that_fails_in_a_run_exits_3(run_some: Callable[..., Callable[..., Result]]) -> None:
    run = run_some("teacher", "student", "prune", "float32", "verify", "int8")
    result = run("verify.atol=1e-12")
    assert result.exit_code == 3
    assert "does not match" in result.stderr
    assert not Path("runs/job/job.onnx").exists()
    assert ran(run()) == ["verify", "int8"]


def test_changed_data_reruns_everything(run_some: Callable[..., Callable[..., Result]], digits) -> None:
    run = run_some("teacher", "student", "baseline")
    images = digits.train.samples.array.squeeze(1).numpy()
    targets = digits.train.targets.numpy()
    for blank in (0, 5):
        images = images.copy()
        images[:blank] = 0
        np.savez("some.npz", x_train=images, y_train=targets, x_test=images[:50], y_test=targets[:50])
        assert ran(run("data=some.npz", "teacher.epochs=1", "student.epochs=1")) == ["teacher", "student", "baseline"]


def test_what_was_trained_before_its_note_was_written_is_not_trained_again(
    run_some: Callable[..., Callable[..., Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> str:
        raise ToolError("killed")

    run = run_some("teacher")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "model_digest", interrupted)
        assert "killed" in run().stderr
    folder = tmp_path / "runs" / "job" / "teacher"
    assert (folder / "checkpoint.partial").exists()
    assert not (folder / "done.json").exists()

    def again(*_: object) -> None:
        raise ToolError("it trains again")

    monkeypatch.setattr(loop, "train_step", again)
    assert run().exit_code == 0
    assert (folder / "done.json").exists()
    assert not (folder / "checkpoint.partial").exists()


def test_a_torch_module_may_be_benched_last_and_is_no_artifact(onnxpress: Callable[..., Result], tiny: str) -> None:
    model = f'"{tiny}:cnn"'
    stages = f'[[stage]]\nkind = "export"\nmodel = {model}\n[[stage]]\nkind = "bench"\nmodels = ["export", {model}]\n'
    Path("job.toml").write_text(f'data = "digits"\nthreads = 1\n{stages}iterations = 10\nrounds = 1\nmax_rounds = 1\n')
    done = onnxpress("run", "job.toml")
    assert done.exit_code == 0, done.output
    assert "benched last, is a torch module" in done.stderr
    assert Path("runs/job/report.json").exists()
    assert not Path("runs/job/job.onnx").exists()


@pytest.mark.slow
def test_a_bench_stage_may_run_torch_both_ways(onnxpress: Callable[..., Result], tiny: str) -> None:
    stage = f'[[stage]]\nkind = "bench"\nmodels = ["{tiny}:cnn"]\ntorch_modes = ["eager", "compiled"]\n'
    Path("job.toml").write_text(f'data = "digits"\nthreads = 1\n{stage}iterations = 10\nrounds = 1\nmax_rounds = 1\n')
    done = onnxpress("run", "job.toml", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["bench"]["rows"]
    assert [(row["name"], row["runtime"]) for row in rows] == [
        (f"{tiny}:cnn", way) for way in ("torch eager", "torch compiled")
    ]
