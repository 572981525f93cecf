"""A recipe: TOML in, stages in order, each cached; the gate at the end. The only file that sees all folders."""

import dataclasses
import json
import logging
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SerializeAsAny, TypeAdapter, ValidationError

from bench.compare import BenchConfig, BenchReport, bench
from bench.latency import measure_speedup
from compress.distill import DistillConfig, distill
from compress.finetune import FinetuneConfig, finetune
from compress.prune import MeasureSpeedup, PruneConfig, prune
from compress.quantize import QuantizeConfig, quantize
from compress.training import TrainReport, finish, metrics_lines
from compress.training_state import partial_folder
from core.checkpoint import save_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError, ToolError, did_you_mean
from core.history import digest_of, step
from core.machine import package_versions
from core.model_reference import PREFIXES, load_model, load_onnx_model, load_torch_model
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.progress import Progress, no_progress
from core.references import file_sha256, missing_path, parse_reference
from core.result import Report
from core.torch_model import TorchModel, torch_digest
from core.whole_output import whole_file
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, VerifyReport, require_verified, verify

logger = logging.getLogger(__name__)
Model = TorchModel | OnnxModel

CONFIGS: dict[str, type] = {
    "finetune": FinetuneConfig,
    "distill": DistillConfig,
    "prune": PruneConfig,
    "export": ExportConfig,
    "quantize": QuantizeConfig,
    "verify": VerifyConfig,
    "bench": BenchConfig,
}
REFERENCES = {
    "finetune": ("model", "weights"),
    "distill": ("model", "teacher", "weights"),
    "verify": ("model", "reference"),
    "bench": ("models",),
}
SHARED = ("seed", "provider", "threads")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Limits on the last model of the bench stage, against its first.

    Attributes:
        min_speedup: Least speedup to the first model.
        max_latency_ms: Highest p50, in milliseconds.
        max_drop: Most points of accuracy below the first model.
        min_accuracy: Least accuracy, in percent.
        max_size_bytes: Largest file.
    """

    min_speedup: float | None = None
    max_latency_ms: float | None = None
    max_drop: float | None = None
    min_accuracy: float | None = None
    max_size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: What other stages and the output folder call it.
        kind: The verb.
        config: The stage's typed configuration.
        references: The models it reads, by role: ``model``, ``teacher``, ``reference``, ``models``, ``weights``.
    """

    name: str
    kind: str
    config: Any
    references: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; paths in it are already resolved."""

    name: str
    data: str
    stages: tuple[Stage, ...]
    gate: Gate


class Bar(BaseModel, frozen=True):
    """One figure against its limit."""

    name: str
    value: float
    limit: float
    ok: bool


class StageReport(BaseModel, frozen=True):
    """One stage of a run; `seconds` is how long it took when it ran."""

    name: str
    kind: str
    cached: bool
    seconds: float
    report: SerializeAsAny[Report] | dict[str, Any]


class WeightsReport(Report, frozen=True):
    """A model whose given weights were taken instead of training it."""

    weights_sha256: str
    validation_accuracy: float


class RunReport(Report, frozen=True):
    """A whole run; `artifact` is where the file was put, None when a limit was missed or no stage makes one."""

    recipe: str
    stages: tuple[StageReport, ...]
    bench: BenchReport | None
    bars: tuple[Bar, ...]
    artifact: str | None


class _Done(BaseModel, frozen=True):
    """What a finished stage leaves in ``done.json``."""

    key: str
    digest: str
    seconds: float


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` and ``stage.key=value`` overrides.

    Args:
        path: The TOML file, or the name of a ready one: ``digits``.
        overrides: As given to ``--set``.

    Raises:
        ToolError: The file is missing or not TOML, a key or value is unknown or out of range.
    """
    if not path.exists() and (RECIPES / f"{path}.toml").exists():
        path = RECIPES / f"{path}.toml"
    if not path.exists():
        raise missing_path(path)
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ToolError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    _known_keys(raw, {"name", "data", "stage", "gate", *SHARED}, str(path))
    if "data" not in raw or not raw.get("stage"):
        raise ToolError(f"{path}: a recipe needs data = \"...\" and at least one [[stage]]")
    shared = {key: raw[key] for key in SHARED if key in raw}
    stages: list[Stage] = []
    for table in raw["stage"]:
        stages.append(_stage(table, shared, stages, path))
    gate = _typed(Gate, raw.get("gate", {}), "[gate]")
    if gate != Gate() and not any(stage.kind == "bench" for stage in stages):
        raise ToolError(f"{path}: [gate] needs a bench stage, whose figures it limits")
    return Recipe(raw.get("name", path.stem), _resolved(raw["data"], path), tuple(stages), gate)


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
    bench_report = next((BenchReport.model_validate(_plain(stage.report)) for stage in reversed(reports)
                         if stage.kind == "bench"), None)
    bars = _bars(recipe.gate, bench_report) if bench_report else ()
    artifact = _artifact(current)
    if artifact and all(bar.ok for bar in bars):
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
        bars=bars,
        artifact=str(place) if place else None,
    )
    with whole_file(output / "report.json") as part:
        part.write_text(report.model_dump_json(indent=2) + "\n")
    return report


def require_gate(report: RunReport) -> None:
    """Raise `GateMissedError` when a bar was missed."""
    missed = [f"{bar.name} is {bar.limit:g}, measured {bar.value:.4g}" for bar in report.bars if not bar.ok]
    if missed:
        raise GateMissedError(f"the gate stays shut: {'; '.join(missed)}; the last good file is left as it was")


def plan(recipe: Recipe, output: Path) -> list[tuple[Stage, bool]]:
    """Return every stage and whether it is done already."""
    current = _Run(recipe, load_data(recipe.data), output, no_progress)
    return [(stage, current.is_done(stage)) for stage in recipe.stages]


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
    models: dict[str, Model] = field(default_factory=dict)

    def folder(self, stage: Stage) -> Path:
        return self.output / stage.name

    def path(self, stage: Stage) -> Path:
        """Where the stage's model is: a checkpoint folder or an .onnx file."""
        is_onnx = stage.kind in ("export", "quantize")
        return self.folder(stage) / ("model.onnx" if is_onnx else "checkpoint")

    def model(self, reference: str) -> Model:
        """The model that a stage's name or a reference stands for."""
        if reference not in self.models:
            stage = next((stage for stage in self.recipe.stages if stage.name == reference), None)
            seed = int(getattr(stage.config, "seed", 0)) if stage else 0
            self.models[reference] = (
                load_model(str(self.path(stage))) if stage else load_model(reference, self.data, seed=seed)
            )
        return self.models[reference]

    def torch(self, reference: str) -> TorchModel:
        model = self.model(reference)
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
        return stage.kind in ("verify", "bench") or self.path(stage).exists()

    def key(self, stage: Stage) -> str:
        return digest_of([
            stage.kind,
            dataclasses.asdict(stage.config),
            {role: self.digest(role, named) for role, named in stage.references.items()},
            self.data.fingerprint,
            package_versions(),
        ])

    def digest(self, role: str, named: str | list[str]) -> Any:
        """What a reference stands for, so that the key changes when it does."""
        if isinstance(named, list):
            return [self.digest(role, one) for one in named]
        stage = next((stage for stage in self.recipe.stages if stage.name == named), None)
        if stage:
            done = self.done(stage)
            return done.digest if done else None
        if role == "weights":
            return _file_digest(Path(named))
        return _reference_digest(named)


def _run_stage(current: _Run, stage: Stage) -> StageReport:
    folder = current.folder(stage)
    done = current.done(stage)
    if done and current.is_done(stage):
        logger.info("%s: done already", stage.name)
        stored = json.loads((folder / "report.json").read_text())
        return StageReport(name=stage.name, kind=stage.kind, cached=True, seconds=done.seconds, report=stored)
    logger.info("%s: %s", stage.name, stage.kind)
    (folder / "done.json").unlink(missing_ok=True)
    current.models.pop(stage.name, None)
    started = time.perf_counter()
    model, report = _STAGES[stage.kind](current, stage)
    seconds = time.perf_counter() - started
    digest = ""
    if isinstance(model, TorchModel):
        digest = torch_digest(model)
    elif isinstance(model, OnnxModel):
        digest = model.sha256
    if model is not None:
        current.models[stage.name] = model
    for name, text in (("report.json", report.model_dump_json(indent=2)),
                       ("done.json", _Done(key=current.key(stage), digest=digest, seconds=seconds).model_dump_json())):
        with whole_file(folder / name) as part:
            part.write_text(text + "\n")
    return StageReport(name=stage.name, kind=stage.kind, cached=False, seconds=seconds, report=report)


def _run_training(current: _Run, stage: Stage) -> tuple[Model, Report]:
    output = current.path(stage)
    workspace = partial_folder(output)
    if "weights" in stage.references:
        model, taken = _take_weights(current, stage)
        save_trained(model, taken, output)
        return model, taken
    start = current.torch(stage.references["model"])
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
    report = WeightsReport(stage="weights", weights_sha256=sha256,
                           validation_accuracy=accuracy(*predict(model, current.data, "validation")))
    return dataclasses.replace(model, history=(done,)), report


def _run_prune(current: _Run, stage: Stage) -> tuple[Model, Report]:
    config: PruneConfig = stage.config
    result = prune(current.torch(stage.references["model"]), config, data=current.data,
                   measure_speedup=torch_speedup("cpu", 1), progress=current.progress)
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
        verify=verify_on(current.data, VerifyConfig(provider=config.provider)),
        measure_speedup=onnx_speedup(config.provider, 1),
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
    rows = tuple(row.model_copy(update={"name": name})
                 for row, name in zip(report.rows, stage.references["models"], strict=True))
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


def _stage(table: Mapping[str, Any], shared: dict[str, Any], earlier: list[Stage], path: Path) -> Stage:
    kind = table.get("kind")
    if kind not in CONFIGS:
        raise ToolError(f"{path}: a stage's kind is {kind!r}; it is one of {', '.join(CONFIGS)}."
                        + did_you_mean(str(kind), CONFIGS))
    name = str(table.get("name", kind))
    if name in [stage.name for stage in earlier]:
        raise ToolError(f"{path}: two stages are called {name!r}; give one another name")
    fields = {field.name for field in dataclasses.fields(CONFIGS[kind])}
    roles = REFERENCES.get(kind, ("model",))
    _known_keys(table, {"kind", "name", *roles, *fields}, f"{path}: stage {name!r}")
    config = _typed(
        CONFIGS[kind],
        {key: value for key, value in shared.items() if key in fields} | {k: v for k, v in table.items() if k in fields},
        f"{path}: stage {name!r}",
    )
    references = {role: table[role] for role in roles if role in table}
    models = [stage.name for stage in earlier if stage.kind not in ("verify", "bench")]
    if "model" in roles and "model" not in references and models:
        references["model"] = models[-1]
    for role in roles:
        if role != "weights" and role not in references:
            raise ToolError(f"{path}: stage {name!r} needs {role} = \"...\"")
    known = [stage.name for stage in earlier]
    return Stage(name, kind, config, {role: _reference(named, known, path) for role, named in references.items()})


def _reference(named: Any, known: list[str], path: Path) -> Any:
    """Resolve a stage's name, a file beside the recipe, or a reference."""
    if isinstance(named, list):
        return [_reference(one, known, path) for one in named]
    if named in known:
        return named
    looks_like_stage = not any(mark in named for mark in ":./\\")
    if looks_like_stage and not Path(named).exists():
        raise ToolError(f"{path}: no earlier stage is called {named!r}.{did_you_mean(named, known)}")
    return _resolved(named, path)


def _resolved(named: str, recipe: Path) -> str:
    """Take a path relative to the recipe's own folder where that exists, else as it is written."""
    head, separator, tail = named.partition(":")
    if head.endswith(".py") and (recipe.parent / head).exists():
        return f"{recipe.parent / head}{separator}{tail}"
    beside = recipe.parent / named.partition(",")[0]
    return str(recipe.parent / named) if beside.exists() and not separator else named


def _typed(config: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a config from TOML values, checking their types."""
    _known_keys(values, {field.name for field in dataclasses.fields(config)}, where)
    try:
        return TypeAdapter(config).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ToolError(f"{where}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from error


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ToolError(f"{where}: unknown key {key!r}.{did_you_mean(key, known)}")


def _override(raw: dict[str, Any], override: str) -> None:
    target, equals, text = override.partition("=")
    if not equals:
        raise ToolError(f"--set {override}: write key=value or stage.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table_name, dot, key = target.rpartition(".")
    if not dot:
        raw[key] = value
    elif table_name == "gate":
        raw.setdefault("gate", {})[key] = value
    else:
        names = {str(table.get("name", table.get("kind"))): table for table in raw.get("stage", [])}
        if table_name not in names:
            raise ToolError(f"--set {override}: no stage is called {table_name!r}.{did_you_mean(table_name, names)}")
        names[table_name][key] = value


def _bars(gate: Gate, report: BenchReport) -> tuple[Bar, ...]:
    first, last = report.rows[0], report.rows[-1]
    if (gate.max_drop is not None or gate.min_accuracy is not None) and (first.accuracy is None or last.accuracy is None):
        raise ToolError("the gate limits accuracy, which the bench stage did not measure")
    drop = (first.accuracy or 0.0) - (last.accuracy or 0.0)
    measured = {
        "min_speedup": last.speedup,
        "max_latency_ms": last.latency.p50_ms,
        "max_drop": drop,
        "min_accuracy": last.accuracy or 0.0,
        "max_size_bytes": float(last.size_bytes),
    }
    limits = {name: limit for name, limit in dataclasses.asdict(gate).items() if limit is not None}
    return tuple(
        Bar(name=name, value=measured[name], limit=limit,
            ok=measured[name] >= limit if name.startswith("min_") else measured[name] <= limit)
        for name, limit in limits.items()
    )


def _artifact(current: _Run) -> OnnxModel | None:
    """The file the recipe is for: the last one benched, else the last one made."""
    benches = [stage for stage in current.recipe.stages if stage.kind == "bench"]
    made = [stage.name for stage in current.recipe.stages if stage.kind in ("export", "quantize")]
    if benches:
        return current.onnx(benches[-1].references["models"][-1])
    return current.onnx(made[-1]) if made else None


def _reference_digest(text: str) -> Any:
    reference = parse_reference(text, PREFIXES)
    path = Path(reference.name)
    if reference.file is not None:
        return [reference.name, reference.arguments, _file_digest(reference.file)]
    if reference.kind == "path" and path.is_dir():
        return [_file_digest(path / name) for name in ("model.safetensors", "model.json")]
    return _file_digest(path) if reference.kind == "path" else text


def _file_digest(path: Path) -> str:
    if not path.exists():
        raise missing_path(path)
    return file_sha256(path)


def _plain(report: Report | dict[str, Any]) -> dict[str, Any]:
    return report if isinstance(report, dict) else report.model_dump()
