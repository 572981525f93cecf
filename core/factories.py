"""``FILE.py:FACTORY``: importing a user's file, with the neighbours it has; calling its function; what it rests on."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from core.errors import ToolError, did_you_mean
from core.history import digest_of
from core.own_code import OWN_MODULES
from core.references import Argument, existing_sha256, file_sha256, missing_path

_neighbours: dict[Path, dict[str, ModuleType]] = {}
"""Folder of a factory's file -> what was imported from it, by its names in `sys.modules`."""


def load_factory(file: Path, name: str) -> Callable[..., Any]:
    """Import a Python file and return the function of that name, which finds its file's neighbours when it is called.

    Raises:
        ToolError: The file or the function does not exist, or importing the file fails.
    """
    if not file.exists():
        raise missing_path(file)
    module = _import(file)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ToolError(f"{file} has no function {name!r}.{did_you_mean(name, functions)}")

    @functools.wraps(factory)
    def made(*arguments: Any, **named: Any) -> Any:
        with _neighbours_first(file.resolve().parent):
            return factory(*arguments, **named)

    return made


def accepted(factory: Callable[..., Any], defaults: dict[str, Argument]) -> dict[str, Argument]:
    """Return those of `defaults` that the factory has parameters for."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in defaults.items() if takes_any or name in parameters}


def call_factory(factory: Callable[..., Any], arguments: dict[str, Any], text: str) -> Any:
    """Call a factory with the reference's arguments.

    Raises:
        ToolError: The factory does not take them.
    """
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ToolError(f"{text!r}: {error}; the factory takes {inspect.signature(factory)}") from error
    return factory(**arguments)


def factory_sha256(file: Path) -> str:
    """Return the SHA-256 of a factory's file; where it imports neighbours, over theirs too.

    Raises:
        ToolError: The file does not exist.
    """
    alone = existing_sha256(file)
    files = imported_files(file)
    if len(files) == 1:
        return alone
    folder = file.resolve().parent
    return digest_of([[one.relative_to(folder).as_posix(), file_sha256(one)] for one in files])


def imported_files(file: Path) -> list[Path]:
    """Return a Python file and those in its folder that it imports, itself or through one another, in their order.

    They are read, not run: what is imported by a name that is made up on the way is not found.
    """
    file = file.resolve()
    found: set[Path] = set()
    to_read = [file]
    while to_read:
        one = to_read.pop()
        if one not in found:
            found.add(one)
            to_read += [path for name in _imported_names(one, file.parent) for path in _files_of(name, file.parent)]
    return sorted(found)


def _imported_names(file: Path, folder: Path) -> list[str]:
    """Return the dotted names that a file may import, as they are from its factory's folder."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # which importing it tells of
        return []
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    package = file.relative_to(folder).parent.parts
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            above = package[: max(len(package) + 1 - node.level, 0)] if node.level else ()
            parent = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{parent}.{alias.name}".lstrip(".") for alias in node.names]
    return names


def _files_of(name: str, folder: Path) -> list[Path]:
    """Return the files in a folder that importing a dotted name runs: of its packages, and its own."""
    parts = name.split(".")
    places = [folder.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    files = [one for place in places for one in (place.with_suffix(".py"), place / "__init__.py")]
    return [one for one in files if one.is_file()]


def _import(file: Path) -> ModuleType:
    resolved = file.resolve()
    unique = hashlib.sha256(str(resolved).encode(errors="surrogateescape")).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_onnxpress_{file.stem}_{unique}", resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, pickle and inspect look a class's module up there
    try:
        with _neighbours_first(resolved.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ToolError(f"cannot import {file}: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _neighbours_first(folder: Path) -> Iterator[None]:
    """Let imports find what lies in a folder first, under names that others have too.

    While the block runs, modules that came from other factories' folders are out of the way, and so are this package's
    own where the folder has one of that name. Afterwards the folder is found last, for what is imported later.
    """
    own = _neighbours.setdefault(folder, {})
    hidden = {name: module for name, module in sys.modules.items() if _is_in_the_way(name, module, folder)}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(own)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have rearranged it
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        own |= {name: module for name, module in new.items() if _comes_from(module, name, folder)}
        taken = {_top(name) for name in hidden}
        for name in [name for name in own if _top(name) in taken]:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _is_in_the_way(name: str, module: ModuleType, folder: Path) -> bool:
    if _top(name) in OWN_MODULES:
        return bool(_files_of(_top(name), folder)) and not _comes_from(module, name, folder)
    return any(name in modules and modules[name] is module for other, modules in _neighbours.items() if other != folder)


def _comes_from(module: ModuleType, name: str, folder: Path) -> bool:
    """Tell whether a module is a file or folder of its name that lies in a folder, not deeper in it."""
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    inside = [Path(place).relative_to(folder) for place in places if Path(place).is_relative_to(folder)]
    return any(one.parts[0].partition(".")[0] == _top(name) for one in inside if one.parts)


def _top(name: str) -> str:
    return name.partition(".")[0]
