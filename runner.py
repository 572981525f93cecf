"""Running a recipe: its stages in order, each cached; the artifact in place only when the gate lets it.

This and `recipe` are the only files that see all folders, so what one stage measures for another is joined here.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.compare import BenchReport, bench
from bench.gate import Bar, bars
from bench.latency import measure_speedup
from compress.distill import distill
from compress.finetune import finetune
from compress.init_from import init_from
from compress.prune import MeasureSpeedup, PruneConfig, prune
from compress.quantize import QuantizeConfig, quantize
from compress.training import TrainReport, finish, metrics_lines
from compress.training_state import partial_folder
from core.checkpoint import save_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.history import digest_of, step
from core.machine import package_versions, this_machine
from core.model_reference import load_model, load_onnx_model, load_torch_model, reference_digest
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.progress import Progress, no_progress
from core.references import existing_sha256, file_sha256
from core.result import Report
from core.torch_model import TorchModel, torch_digest
from core.whole_output import whole_file
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, VerifyReport, require_verified, verify
from recipe import Recipe, Stage

logger = logging.getLogger(__name__)
Model = TorchModel | OnnxModel


class StageReport(BaseModel, frozen=True):
    """One stage of a run; `seconds` is how long it took when it ran, `report` its report as JSON holds it."""

    name: str
    kind: str
    cached: bool
    seconds: float
    report: dict[str, Any]


class WeightsReport(Report, frozen=True):
    """A model whose given weights were taken instead of training it."""

    weights_sha256: str
    validation_accuracy: float


class PlannedStage(BaseModel, frozen=True):
    """One stage of a plan."""

    name: str
    kind: str
    references: dict[str, Any]
    done: bool


class PlanReport(Report, frozen=True):
    """What a run would do."""

    stages: tuple[PlannedStage, ...]


class RunReport(Report, frozen=True):
    """A whole run; `artifact` is where the file was put, None when a limit was missed or no stage makes one."""

    recipe: str
    stages: tuple[StageReport, ...]
    bench: BenchReport | None
    bars: tuple[Bar, ...]
    artifact: str | None


class _Done(BaseModel, frozen=True):
    """What a finished stage leaves in ``done.json``.

    Attributes:
        key: Digest of everything that determines the stage.
        digest: Digest of the model it made, empty when it made none; part of the key of what stands on it.
        files_digest: Of the files that hold the model and its report, so that damaged ones are made again.
        seconds: How long it took.
    """

    key: str
    digest: str
    files_digest: str
    seconds: float


def run(recipe: Recipe, output: Path, *, progress: Progress = no_progress) -> RunReport:
    """Run what is not done yet and put the artifact in place if the gate lets it.

    Args:
        recipe: What to do.
        output: Folder of the run: one folder a stage, ``report.json``, and ``NAME.onnx``.
        progress: Told of every step within a stage.

    Raises:
        ToolError: A stage fails; stages that are done stay done.
        GateMissedError: A verification misses a limit. The recipe's own gate does not raise: see `bars`.
    """
    current = _Run(recipe, load_data(recipe.data), output, progress)
    reports = [_run_stage(current, stage) for stage in recipe.stages]
    bench_report = next(
        (BenchReport.model_validate(stage.report) for stage in reversed(reports) if stage.kind == "bench"), None
    )
    checked = bars(recipe.gate, bench_report) if bench_report else ()
    artifact = _artifact(current)
    if artifact and all(bar.ok for bar in checked):
        place = output / f"{recipe.name}.onnx"
        with whole_file(place) as part:
            shutil.copyfile(artifact.path, part)
    else:
        place = None
    report = RunReport(
        stage="run",
        recipe=recipe.name,
        stages=tuple(reports),
        bench=bench_report,
        bars=checked,
        artifact=str(place) if place else None,
    )
    with whole_file(output / "report.json") as part:
        part.write_text(report.model_dump_json(indent=2) + "\n")
    return report


def plan(recipe: Recipe, output: Path) -> PlanReport:
    """Tell of every stage whether a run would do it; what stands on a stage that is to do is to do."""
    current = _Run(recipe, load_data(recipe.data), output, no_progress)
    planned: list[PlannedStage] = []
    for stage in recipe.stages:
        to_do = {one.name for one in planned if not one.done}
        reads = [one for named in stage.references.values() for one in ([named] if isinstance(named, str) else named)]
        done = to_do.isdisjoint(reads) and current.is_done(stage)
        planned.append(PlannedStage(name=stage.name, kind=stage.kind, references=stage.references, done=done))
    return PlanReport(stage="plan", stages=tuple(planned))


def torch_speedup(provider: str, threads: int) -> MeasureSpeedup:
    """Return the function that exports two torch models and measures the second's speedup on ONNX Runtime."""

    def measure(original: TorchModel, changed: TorchModel) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            first, second = (
                export(model, Path(scratch) / f"{index}.onnx", ExportConfig()).model
                for index, model in enumerate((original, changed))
            )
            return measure_speedup(first, second, provider=provider, threads=threads, batch_size=1)

    return measure


def onnx_speedup(provider: str, threads: int) -> Callable[[OnnxModel, OnnxModel], float]:
    """Return the function that measures the second file's speedup over the first on ONNX Runtime, batch 1."""
    return partial(measure_speedup, provider=provider, threads=threads, batch_size=1)


def verify_on(data: Data | None, config: VerifyConfig) -> Callable[[OnnxModel, OnnxModel], VerifyReport]:
    """Return the function that compares a file with its reference and raises when it is too far off."""
    return lambda reference, candidate: require_verified(verify(reference, candidate, config, data))


def start_model(reference: str, donor: str | None, data: Data, seed: int) -> TorchModel:
    """Load the model that training starts from, with the donor's tensors where one is named."""
    model = load_torch_model(reference, data, seed=seed)
    return init_from(model, load_torch_model(donor, data)) if donor else model


def save_trained(model: TorchModel, report: Report, output: Path) -> None:
    """Write a checkpoint with its report, and with its metrics where it was trained; drop the resumable state."""
    extra = {"report.json": report.model_dump_json(indent=2) + "\n"}
    if isinstance(report, TrainReport):
        extra["metrics.jsonl"] = metrics_lines(report.metrics)
    save_checkpoint(model, output, extra_files=extra)
    finish(partial_folder(output))


@dataclass(slots=True)
class _Run:
    """A recipe being run: where its outputs are and which models are in memory."""

    recipe: Recipe
    data: Data
    output: Path
    progress: Progress
    models: dict[tuple[str, int], Model] = field(default_factory=dict)

    def folder(self, stage: Stage) -> Path:
        return self.output / stage.name

    def path(self, stage: Stage) -> Path:
        """Where the stage's model is: a checkpoint folder or an .onnx file."""
        is_onnx = stage.kind in ("export", "quantize")
        return self.folder(stage) / ("model.onnx" if is_onnx else "checkpoint")

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.recipe.stages if stage.name == name), None)

    def model(self, reference: str, seed: int = 0) -> Model:
        """The model that a stage's name or a reference stands for; `seed` is for fresh weights."""
        stage = self.stage(reference)
        key = (reference, 0 if stage else seed)
        if key not in self.models:
            made = load_model(str(self.path(stage))) if stage else load_model(reference, self.data, seed=seed)
            self.models[key] = made
        return self.models[key]

    def torch(self, reference: str, seed: int = 0) -> TorchModel:
        model = self.model(reference, seed)
        return model if isinstance(model, TorchModel) else load_torch_model(str(model.path))

    def onnx(self, reference: str) -> OnnxModel:
        model = self.model(reference)
        return model if isinstance(model, OnnxModel) else load_onnx_model(reference)

    def done(self, stage: Stage) -> _Done | None:
        path = self.folder(stage) / "done.json"
        try:
            return _Done.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def is_done(self, stage: Stage) -> bool:
        done = self.done(stage)
        if done is None or done.key != self.key(stage):
            return False
        return done.files_digest == self.files_digest(stage)

    def files_digest(self, stage: Stage) -> str:
        """Digest of the files that the stage left."""
        path = self.path(stage)
        model = [path / "model.safetensors", path / "model.json"] if path.is_dir() else [path]
        files = [*model, self.folder(stage) / "report.json"]
        return digest_of([file_sha256(file) if file.is_file() else None for file in files])

    def key(self, stage: Stage) -> str:
        return digest_of(
            [
                stage.kind,
                dataclasses.asdict(stage.config),
                {role: self.digest(role, named) for role, named in stage.references.items()},
                self.data.fingerprint,
                package_versions(),
                self.measured_where(stage),
            ]
        )

    def measured_where(self, stage: Stage) -> Any:
        """What a measurement depends on beside its stage's config: nothing for stages that measure none."""
        if stage.kind not in ("prune", "quantize", "bench"):
            return None
        return [this_machine().model_dump(), self.recipe.provider, self.recipe.threads]

    def digest(self, role: str, named: str | list[str]) -> Any:
        """What a reference stands for, so that the key changes when it does."""
        if isinstance(named, list):
            return [self.digest(role, one) for one in named]
        if stage := self.stage(named):
            done = self.done(stage)
            return done.digest if done else None
        if role == "weights":
            return existing_sha256(Path(named))
        return reference_digest(named)


def _run_stage(current: _Run, stage: Stage) -> StageReport:
    folder = current.folder(stage)
    done = current.done(stage)
    if done and current.is_done(stage):
        logger.info("%s: done already", stage.name)
        stored = json.loads((folder / "report.json").read_text())
        return StageReport(name=stage.name, kind=stage.kind, cached=True, seconds=done.seconds, report=stored)
    logger.info("%s: %s", stage.name, stage.kind)
    (folder / "done.json").unlink(missing_ok=True)
    current.models.pop((stage.name, 0), None)
    key = current.key(stage)  # before the work: a file edited meanwhile is not what the work was done on
    started = time.perf_counter()
    model, report = _STAGES[stage.kind](current, stage)
    seconds = time.perf_counter() - started
    digest = ""
    if isinstance(model, TorchModel):
        digest = torch_digest(model)
    elif isinstance(model, OnnxModel):
        digest = model.sha256
    if model is not None:
        current.models[stage.name, 0] = model
    with whole_file(folder / "report.json") as part:
        part.write_text(report.model_dump_json(indent=2) + "\n")
    finished = _Done(key=key, digest=digest, files_digest=current.files_digest(stage), seconds=seconds)
    with whole_file(folder / "done.json") as part:
        part.write_text(finished.model_dump_json() + "\n")
    return StageReport(
        name=stage.name, kind=stage.kind, cached=False, seconds=seconds, report=json.loads(report.model_dump_json())
    )


def _run_training(current: _Run, stage: Stage) -> tuple[Model, Report]:
    output = current.path(stage)
    workspace = partial_folder(output)
    if "weights" in stage.references:
        model, taken = _take_weights(current, stage)
        save_trained(model, taken, output)
        return model, taken
    start = current.torch(stage.references["model"], stage.config.seed)
    if "init_from" in stage.references:
        start = init_from(start, current.torch(stage.references["init_from"]))
    if stage.kind == "finetune":
        result = finetune(start, current.data, stage.config, workspace=workspace, progress=current.progress)
    else:
        teacher = current.model(stage.references["teacher"])
        result = distill(start, teacher, current.data, stage.config, workspace=workspace, progress=current.progress)
    save_trained(result.model, result.report, output)
    return result.model, result.report


def _take_weights(current: _Run, stage: Stage) -> tuple[TorchModel, WeightsReport]:
    """Load the given weights instead of training."""
    weights = Path(stage.references["weights"])
    model = load_torch_model(f"{stage.references['model']},weights={weights}", current.data)
    sha256 = file_sha256(weights)
    done = step("weights", {"file": weights.name, "sha256": sha256}, parent="")
    report = WeightsReport(
        stage="weights",
        weights_sha256=sha256,
        validation_accuracy=accuracy(*predict(model, current.data, "validation")),
    )
    return dataclasses.replace(model, history=(done,)), report


def _run_prune(current: _Run, stage: Stage) -> tuple[Model, Report]:
    config: PruneConfig = stage.config
    result = prune(
        current.torch(stage.references["model"]),
        config,
        data=current.data,
        measure_speedup=torch_speedup(current.recipe.provider, current.recipe.threads),
        progress=current.progress,
    )
    save_trained(result.model, result.report, current.path(stage))
    return result.model, result.report


def _run_export(current: _Run, stage: Stage) -> tuple[Model, Report]:
    result = export(current.torch(stage.references["model"]), current.path(stage), stage.config, force=True)
    return result.model, result.report


def _run_quantize(current: _Run, stage: Stage) -> tuple[Model, Report]:
    config: QuantizeConfig = stage.config
    result = quantize(
        current.onnx(stage.references["model"]),
        current.data,
        current.path(stage),
        config,
        verify=verify_on(current.data, VerifyConfig(provider=config.provider, threads=current.recipe.threads)),
        measure_speedup=onnx_speedup(config.provider, current.recipe.threads),
        progress=current.progress,
        force=True,
    )
    return result.model, result.report


def _run_verify(current: _Run, stage: Stage) -> tuple[None, Report]:
    reference, candidate = (current.model(stage.references[role]) for role in ("reference", "model"))
    return None, require_verified(verify(reference, candidate, stage.config, current.data))


def _run_bench(current: _Run, stage: Stage) -> tuple[None, Report]:
    models = [current.onnx(name) for name in stage.references["models"]]
    report = bench(models, stage.config, current.data, current.progress)
    rows = tuple(
        row.model_copy(update={"name": name}) for row, name in zip(report.rows, stage.references["models"], strict=True)
    )
    return None, report.model_copy(update={"rows": rows})


_STAGES: dict[str, Callable[[_Run, Stage], tuple[Model | None, Report]]] = {
    "finetune": _run_training,
    "distill": _run_training,
    "prune": _run_prune,
    "export": _run_export,
    "quantize": _run_quantize,
    "verify": _run_verify,
    "bench": _run_bench,
}


def _artifact(current: _Run) -> OnnxModel | None:
    """The file the recipe is for: the last one benched, else the last one made."""
    benches = [stage for stage in current.recipe.stages if stage.kind == "bench"]
    made = [stage.name for stage in current.recipe.stages if stage.kind in ("export", "quantize")]
    if benches:
        return current.onnx(benches[-1].references["models"][-1])
    return current.onnx(made[-1]) if made else None
