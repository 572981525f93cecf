"""Running a recipe: its stages in order, each cached; the artifact in place only when the gate lets it."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.compare import BenchReport
from bench.gate import Bar, bars
from core.data_reference import load_data
from core.external_data import copy_onnx, whole_onnx
from core.folder_lock import locked
from core.model import model_digest
from core.onnx_model import OnnxModel
from core.progress import Progress, no_progress
from core.result import Report
from core.whole_output import whole_file
from recipe import Recipe, Stage
from run_folder import Done, RunFolder
from stages import RUN_STAGE, drop_state

logger = logging.getLogger(__name__)


class StageReport(BaseModel, frozen=True):
    """One stage of a run; `seconds` is how long it took when it ran, `report` its report as JSON holds it."""

    name: str
    kind: str
    cached: bool
    seconds: float
    report: dict[str, Any]


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
    """A whole run; `artifact` is where the file was put, None when a limit was missed or no .onnx file was judged."""

    recipe: str
    stages: tuple[StageReport, ...]
    bench: BenchReport | None
    bars: tuple[Bar, ...]
    artifact: str | None


def run(recipe: Recipe, output: Path, *, progress: Progress = no_progress) -> RunReport:
    """Run what is not done yet and put the artifact in place if the gate lets it.

    Args:
        recipe: What to do.
        output: Folder of the run: one folder a stage, ``report.json``, and ``NAME.onnx``.
        progress: Told of every step within a stage.

    Raises:
        ToolError: A stage fails; stages that are done stay done. Or another process runs a recipe into that folder.
        GateMissedError: A verification misses a limit. The recipe's own gate does not raise: see `bars`.
    """
    with locked(output):
        return _run(RunFolder(recipe, load_data(recipe.data, recipe.skip_bad), output, progress))


def _run(current: RunFolder) -> RunReport:
    recipe, output = current.recipe, current.output
    reports = [_run_stage(current, stage) for stage in recipe.stages]
    bench_report = next(
        (BenchReport.model_validate(stage.report) for stage in reversed(reports) if stage.kind == "bench"), None
    )
    checked = bars(recipe.gate, bench_report) if bench_report else ()
    artifact = _artifact(current)
    if artifact and all(bar.ok for bar in checked):
        place = output / f"{recipe.name}.onnx"
        with whole_onnx(place) as part:
            copy_onnx(artifact.path, artifact.data_files, part)
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
        part.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def plan(recipe: Recipe, output: Path) -> PlanReport:
    """Tell of every stage whether a run would do it; what stands on a stage that is to do is to do."""
    current = RunFolder(recipe, load_data(recipe.data, recipe.skip_bad), output, no_progress)
    planned: list[PlannedStage] = []
    for stage in recipe.stages:
        to_do = {one.name for one in planned if not one.done}
        reads = [one for named in stage.references.values() for one in ([named] if isinstance(named, str) else named)]
        done = to_do.isdisjoint(reads) and current.is_done(stage)
        planned.append(PlannedStage(name=stage.name, kind=stage.kind, references=stage.references, done=done))
    return PlanReport(stage="plan", stages=tuple(planned))


def _run_stage(current: RunFolder, stage: Stage) -> StageReport:
    folder = current.folder(stage)
    done = current.done(stage)
    if done and current.is_done(stage):
        logger.info("%s: done already", stage.name)
        stored = json.loads((folder / "report.json").read_bytes())
        return StageReport(name=stage.name, kind=stage.kind, cached=True, seconds=done.seconds, report=stored)
    logger.info("%s: %s", stage.name, stage.kind)
    (folder / "done.json").unlink(missing_ok=True)
    current.models.pop((stage.name, 0), None)
    key = current.key(stage)  # before the work: a file edited meanwhile is not what the work was done on
    started = time.perf_counter()
    model, report = RUN_STAGE[stage.kind](current, stage)
    seconds = time.perf_counter() - started
    digest = model_digest(model) if model is not None else ""
    if model is not None:
        current.models[stage.name, 0] = model
    with whole_file(folder / "report.json") as part:
        part.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    finished = Done(key=key, digest=digest, files_digest=current.files_digest(stage), seconds=seconds)
    with whole_file(folder / "done.json") as part:
        part.write_text(finished.model_dump_json() + "\n", encoding="utf-8")
    drop_state(current.path(stage))
    return StageReport(
        name=stage.name, kind=stage.kind, cached=False, seconds=seconds, report=json.loads(report.model_dump_json())
    )


def _artifact(current: RunFolder) -> OnnxModel | None:
    """The file the recipe is for: the last one benched, else the last one made."""
    benches = [stage for stage in current.recipe.stages if stage.kind == "bench"]
    made = [stage.name for stage in current.recipe.stages if stage.does.makes == "onnx"]
    if benches:
        judged = current.model(benches[-1].references["models"][-1])
        if isinstance(judged, OnnxModel):
            return judged
        logger.warning("%s, benched last, is a torch module: there is no .onnx file to put in place", judged.name)
        return None
    return current.onnx(made[-1]) if made else None
