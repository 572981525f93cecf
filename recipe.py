"""A recipe: TOML in, a typed list of stages and a gate out."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gate import Gate
from core.errors import ToolError, did_you_mean, require
from core.references import missing_path
from core.typed_config import check_keys, field_names, toml_value, typed_config
from stage_kinds import STAGE_KINDS, Role, StageKind

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: What other stages and the output folder call it.
        kind: The verb.
        config: The stage's typed configuration.
        references: What it reads, by role, as in `stage_kinds`: stages' names, files, model references.
    """

    name: str
    kind: str
    config: Any
    references: dict[str, Any]

    @property
    def does(self) -> StageKind:
        """What its kind is told, reads and makes."""
        return STAGE_KINDS[self.kind]

    @property
    def read(self) -> dict[str, Any]:
        """What it reads that its result follows from, by role: all but folders."""
        folders = [role.name for role in self.does.roles if role.holds == "folder"]
        return {role: named for role, named in self.references.items() if role not in folders}


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
    check_keys(raw, {"name", "data", "stage", "gate", *field_names(Shared)}, str(path))
    if not isinstance(raw.get("data"), str) or not _is_tables(raw.get("stage")):
        raise ToolError(f'{path}: a recipe needs data = "..." and at least one [[stage]]')
    if not isinstance(raw.get("gate", {}), dict):
        raise ToolError(f"{path}: gate is a table of limits: [gate]")
    shared = {key: raw[key] for key in field_names(Shared) if key in raw}
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
    if kind not in STAGE_KINDS:
        raise ToolError(
            f"{path}: a stage's kind is {kind!r}; it is one of {', '.join(STAGE_KINDS)}."
            + did_you_mean(str(kind), STAGE_KINDS)
        )
    name = str(table.get("name", kind))
    if name in [stage.name for stage in earlier]:
        raise ToolError(f"{path}: two stages are called {name!r}; give one another name")
    where, does = f"{path}: stage {name!r}", STAGE_KINDS[kind]
    check_keys(table, {"kind", "name", *(role.name for role in does.roles), *field_names(does.config)}, where)
    named = _named(table, does, earlier, where)
    known = [stage.name for stage in earlier]
    folders = [role.name for role in does.roles if role.holds == "folder"]
    stage = Stage(
        name,
        kind,
        _config(table, shared, does, where),
        {role: one if role in folders else _reference(one, known, path) for role, one in named.items()},
    )
    _check_carriers(stage, earlier, where)
    return stage


def _config(table: Mapping[str, Any], shared: dict[str, Any], does: StageKind, where: str) -> Any:
    """Make a stage's settings of its own, and of those above the stages that it takes."""
    fields = field_names(does.config)
    inherited = {key: value for key, value in shared.items() if key in fields and key not in does.own}
    return typed_config(does.config, inherited | {key: value for key, value in table.items() if key in fields}, where)


def _named(table: Mapping[str, Any], does: StageKind, earlier: list[Stage], where: str) -> dict[str, Any]:
    """Return what a stage names for each role, as it is written; the model may be left out after one that makes it."""
    named = {role.name: table[role.name] for role in does.roles if role.name in table}
    makers = [stage.name for stage in earlier if stage.does.makes]
    for role in does.roles:
        if role.name == "model" and makers:
            named.setdefault("model", makers[-1])
        if role.is_needed and role.name not in named:
            raise ToolError(f'{where} needs {role.name} = "..."')
        if role.name in named:
            _check_number(role, named[role.name], where)
    return named


def _check_number(role: Role, named: Any, where: str) -> None:
    listed = named if isinstance(named, list) and named else [named]
    is_allowed = role.number == "either" or (role.number == "list") == isinstance(named, list)
    if not is_allowed or not all(isinstance(one, str) for one in listed):
        wanted = {"one": "a name", "list": "a list of names", "either": "a name or a list of names"}[role.number]
        raise ToolError(f"{where}: {role.name} is {named!r}; it is {wanted}")


def _check_carriers(stage: Stage, earlier: list[Stage], where: str) -> None:
    """Raise `ToolError` where a stage can never read what an earlier one makes, rather than after hours of training."""
    makers = {one.name: one for one in earlier}
    if "weights" in stage.references and stage.references["model"] in makers:
        raise ToolError(
            f"{where}: weights are for a fresh architecture, and model is another stage's; drop one of them"
        )
    for role in stage.does.roles:
        named = stage.references.get(role.name, [])
        for one in [named] if isinstance(named, str) else named:
            if role.holds != "folder":
                _check_carrier(role, one, makers.get(one), where)


def _check_carrier(role: Role, named: str, maker: Stage | None, where: str) -> None:
    if maker and not maker.does.makes:
        raise ToolError(f"{where}: {role.name} is {named!r}, a {maker.kind} stage, which makes no model")
    if maker and role.holds == "weights":
        raise ToolError(f"{where}: weights is a stage, {named!r}; it is a .safetensors file")
    is_file = named.partition(",")[0].endswith(".onnx") and not named.startswith("hf:")
    is_onnx = maker.does.makes == "onnx" if maker else is_file
    if role.carrier == "onnx" and not is_onnx:
        raise ToolError(f"{where} quantizes an .onnx file, which {named!r} is not; put an export stage before it")
    if role.carrier == "torch" and is_onnx:
        raise ToolError(f"{where}: {role.name} is {named!r}, an .onnx file; it takes a torch model")


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
    name, comma, arguments = named.partition(",")
    file, colon, factory = name.partition(":")
    beside = recipe.parent / file
    if (colon and not file.endswith(".py")) or not beside.exists():
        return named
    return f"{beside}{colon}{factory}{comma}{arguments}"


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
