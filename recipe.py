"""A recipe: TOML in, a typed list of stages and a gate out."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare import BenchConfig
from bench.gate import Gate
from compress.distill import DistillConfig
from compress.finetune import FinetuneConfig
from compress.prune import PruneConfig
from compress.quantize_config import QuantizeConfig
from core.errors import ToolError, did_you_mean, require
from core.references import missing_path
from core.typed_config import check_keys, field_names, toml_value, typed_config
from export.to_onnx import ExportConfig
from export.verify import VerifyConfig

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
    "finetune": ("model", "init_from", "weights"),
    "distill": ("model", "teacher", "init_from", "weights", "teacher_cache"),
    "prune": ("model", "baseline"),
    "verify": ("model", "reference"),
    "bench": ("models",),
}
ROLES = {
    "model": "The model it works on; left out, that of the nearest earlier stage that makes one.",
    "teacher": "Whose answers teach: one, or a list.",
    "init_from": "Start from this model's tensors of the same name and shape.",
    "weights": "A .safetensors file that is taken in place of training.",
    "teacher_cache": "Folder, in the run's own unless it is absolute, that keeps what the teacher says.",
    "baseline": "What factors are counted from; left out, the model itself.",
    "reference": "What is right.",
    "models": "What is measured, a list; the first is the baseline.",
}
"""What each of `REFERENCES` is for."""
OPTIONAL = ("init_from", "weights", "teacher_cache", "baseline")
LISTED = ("models",)
LISTED_OR_ONE = ("teacher",)
FOLDERS = ("teacher_cache",)  # no model is read from there, and no result depends on them
MAKES_NOTHING = ("verify", "bench")
MAKES_ONNX = ("export", "quantize")
TAKES_TORCH = ("finetune", "distill", "prune", "export")
OF_TORCH = ("model", "init_from", "baseline")  # of those, the roles that are torch models
SHARED = ("seed", "provider", "threads", "skip_bad")
OWN = {"distill": ("threads",)}  # a teacher in training takes all cores, whatever the file will be deployed on
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: What other stages and the output folder call it.
        kind: The verb.
        config: The stage's typed configuration.
        references: What it reads, by role, one of `ROLES`: stages' names, files, model references.
    """

    name: str
    kind: str
    config: Any
    references: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A parsed recipe; paths in it are already resolved.

    Attributes:
        name: The artifact's name.
        data: The data that every stage reads.
        skip_bad: As in `Shared`.
        provider: As in `Shared`.
        threads: As in `Shared`.
        stages: What to do, in order.
        gate: What must hold at the end.
    """

    name: str
    data: str
    skip_bad: int
    provider: str
    threads: int
    stages: tuple[Stage, ...]
    gate: Gate


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` and ``stage.key=value`` overrides.

    Args:
        path: The TOML file, or the name of a ready one: ``digits``.
        overrides: As given to ``--set``.

    Raises:
        ToolError: The file is missing or not TOML, a key or value is unknown or out of range.
    """
    path = find_recipe(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ToolError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    check_keys(raw, {"name", "data", "stage", "gate", *SHARED}, str(path))
    if not isinstance(raw.get("data"), str) or not _is_tables(raw.get("stage")):
        raise ToolError(f'{path}: a recipe needs data = "..." and at least one [[stage]]')
    if not isinstance(raw.get("gate", {}), dict):
        raise ToolError(f"{path}: gate is a table of limits: [gate]")
    shared = {key: raw[key] for key in SHARED if key in raw}
    settings = typed_config(Shared, shared, str(path))
    stages: list[Stage] = []
    for table in raw["stage"]:
        stages.append(_stage(table, shared, stages, path))
    gate = typed_config(Gate, raw.get("gate", {}), "[gate]")
    if gate != Gate() and not any(stage.kind == "bench" for stage in stages):
        raise ToolError(f"{path}: [gate] needs a bench stage, whose figures it limits")
    return Recipe(
        name=str(raw.get("name", path.stem)),
        data=_resolved(raw["data"], path),
        skip_bad=settings.skip_bad,
        provider=settings.provider,
        threads=settings.threads,
        stages=tuple(stages),
        gate=gate,
    )


def find_recipe(path: Path) -> Path:
    """Return the recipe file that a path or the name of a ready recipe stands for.

    Raises:
        ToolError: There is none.
    """
    ready = RECIPES / f"{path}.toml"
    if path.is_file():
        return path
    if ready.is_file():
        return ready
    if path.is_dir():
        raise ToolError(f"{path} is a folder; name a recipe in it")
    raise missing_path(path, sorted(one.stem for one in RECIPES.glob("*.toml")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What stands above the stages and holds for all of them, but for a stage that sets its own.

    Attributes:
        seed: Seeds everything random.
        provider: Where measured and verified files run: ``cpu``, ``cuda``, or ONNX Runtime's own name.
        threads: Of an ONNX Runtime session that is measured or verified, as it will be deployed; 0 takes the cores this
            process may use. A teacher in training uses all those whatever is set here; its own stage may set others.
        skip_bad: How many samples of the data may be unreadable and left out.
    """

    seed: int = 0
    provider: str = "cpu"
    threads: int = 0
    skip_bad: int = 0

    def __post_init__(self) -> None:
        require(self.skip_bad >= 0, f"skip_bad is {self.skip_bad}; it must not be negative")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _stage(table: Mapping[str, Any], shared: dict[str, Any], earlier: list[Stage], path: Path) -> Stage:
    kind = table.get("kind")
    if kind not in CONFIGS:
        raise ToolError(
            f"{path}: a stage's kind is {kind!r}; it is one of {', '.join(CONFIGS)}." + did_you_mean(str(kind), CONFIGS)
        )
    name = str(table.get("name", kind))
    if name in [stage.name for stage in earlier]:
        raise ToolError(f"{path}: two stages are called {name!r}; give one another name")
    fields = field_names(CONFIGS[kind])
    roles = REFERENCES.get(kind, ("model",))
    check_keys(table, {"kind", "name", *roles, *fields}, f"{path}: stage {name!r}")
    config: Any = typed_config(
        CONFIGS[kind],
        {key: value for key, value in shared.items() if key in fields and key not in OWN.get(kind, ())}
        | {k: v for k, v in table.items() if k in fields},
        f"{path}: stage {name!r}",
    )
    references = {role: table[role] for role in roles if role in table}
    models = [stage.name for stage in earlier if stage.kind not in MAKES_NOTHING]
    if "model" in roles and "model" not in references and models:
        references["model"] = models[-1]
    for role in roles:
        if role not in OPTIONAL and role not in references:
            raise ToolError(f'{path}: stage {name!r} needs {role} = "..."')
    for role, named in references.items():
        takes_list, takes_one = role in (*LISTED, *LISTED_OR_ONE), role not in LISTED
        is_list = isinstance(named, list)
        listed = named if is_list and named else [named]
        if not (takes_list if is_list else takes_one) or not all(isinstance(one, str) for one in listed):
            wanted = "a name" if not takes_list else "a name or a list of names" if takes_one else "a list of names"
            raise ToolError(f"{path}: stage {name!r}: {role} is {named!r}; it is {wanted}")
    known = [stage.name for stage in earlier]
    found = {role: named if role in FOLDERS else _reference(named, known, path) for role, named in references.items()}
    stage = Stage(name, kind, config, found)
    _check_carriers(stage, earlier, f"{path}: stage {name!r}")
    return stage


def _check_carriers(stage: Stage, earlier: list[Stage], where: str) -> None:
    """Raise `ToolError` where a stage can never read what an earlier one makes, rather than after hours of training."""
    makers = {one.name: one for one in earlier}
    if "weights" in stage.references and stage.references["model"] in makers:
        raise ToolError(
            f"{where}: weights are for a fresh architecture, and model is another stage's; drop one of them"
        )
    for role, named in stage.references.items():
        for one in [named] if isinstance(named, str) else named:
            if role not in FOLDERS:
                _check_carrier(stage.kind, role, one, makers.get(one), where)


def _check_carrier(kind: str, role: str, named: str, maker: Stage | None, where: str) -> None:
    if maker and maker.kind in MAKES_NOTHING:
        raise ToolError(f"{where}: {role} is {named!r}, a {maker.kind} stage, which makes no model")
    if maker and role == "weights":
        raise ToolError(f"{where}: weights is a stage, {named!r}; it is a .safetensors file")
    is_onnx = maker.kind in MAKES_ONNX if maker else named.endswith(".onnx") and not named.startswith("hf:")
    if kind == "quantize" and not is_onnx:
        raise ToolError(f"{where} quantizes an .onnx file, which {named!r} is not; put an export stage before it")
    if kind in TAKES_TORCH and role in OF_TORCH and is_onnx:
        raise ToolError(f"{where}: {role} is {named!r}, an .onnx file; it takes a torch model")


def _reference(named: Any, known: list[str], path: Path) -> Any:
    """Resolve a stage's name, a file beside the recipe, or a reference."""
    if isinstance(named, list):
        return [_reference(one, known, path) for one in named]
    if named in known:
        return named
    looks_like_stage = not any(mark in named for mark in ":./\\")
    if looks_like_stage and not (Path(named).exists() or (path.parent / named).exists()):
        raise ToolError(f"{path}: no earlier stage is called {named!r}.{did_you_mean(named, known)}")
    return _resolved(named, path)


def _resolved(named: str, recipe: Path) -> str:
    """Take a path relative to the recipe's own folder where that exists, else as it is written."""
    head, separator, tail = named.partition(":")
    if head.endswith(".py") and (recipe.parent / head).exists():
        return f"{recipe.parent / head}{separator}{tail}"
    beside = recipe.parent / named.partition(",")[0]
    return str(recipe.parent / named) if beside.exists() and not separator else named


def _override(raw: dict[str, Any], override: str) -> None:
    target, equals, text = override.partition("=")
    if not equals:
        raise ToolError(f"--set {override}: write key=value or stage.key=value")
    value = toml_value(text)
    table_name, dot, key = target.rpartition(".")
    if not dot:
        raw[key] = value
    elif table_name == "gate":
        raw["gate"] = {**raw.get("gate", {}), key: value}
    else:
        tables = raw["stage"] if _is_tables(raw.get("stage")) else []
        names = {str(table.get("name", table.get("kind"))): table for table in tables}
        if table_name not in names:
            raise ToolError(f"--set {override}: no stage is called {table_name!r}.{did_you_mean(table_name, names)}")
        names[table_name][key] = value
