"""The strings users name things with: ``kind:name,key=value`` and ``FILE.py:FACTORY,key=value``."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from core.errors import ToolError, did_you_mean

Argument = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference.

    Attributes:
        text: As the user wrote it.
        kind: ``timm``, ``torchvision``, ``hf``, ``wds``, ``factory``, or ``path`` for everything without a prefix.
        name: What follows the prefix; for ``factory`` the function's name.
        arguments: What follows the commas.
        file: The Python file of a ``factory``.
    """

    text: str
    kind: str
    name: str
    arguments: dict[str, Argument]
    file: Path | None = None


def parse_reference(text: str, prefixes: Sequence[str]) -> Reference:
    """Parse a reference whose prefix is one of `prefixes`, a ``FILE.py:FACTORY``, or a path.

    Raises:
        ToolError: An argument is not ``key=value``, or the prefix is unknown.
    """
    head, *pairs = text.split(",")
    arguments = dict(_argument(pair, text) for pair in pairs)
    prefix, colon, name = head.rpartition(":")
    if not colon or _is_windows_drive(prefix, name):
        return Reference(text, "path", head, arguments)
    if prefix.endswith(".py"):
        return Reference(text, "factory", name, arguments, Path(prefix))
    if prefix in prefixes:
        return Reference(text, prefix, name, arguments)
    known = ", ".join(f"{known}:" for known in prefixes)
    raise ToolError(
        f"{text!r}: unknown kind {prefix!r}; known are {known} and FILE.py:FACTORY." + did_you_mean(prefix, prefixes)
    )


def load_factory(file: Path, name: str) -> Callable[..., Any]:
    """Import a Python file and return the function of that name.

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
    return factory  # type: ignore[no-any-return]


def accepted(factory: Callable[..., Any], defaults: dict[str, Argument]) -> dict[str, Argument]:
    """Return those of `defaults` that the factory has parameters for."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in defaults.items() if takes_any or name in parameters}


def check_arguments(reference: Reference, known: Sequence[str]) -> None:
    """Raise `ToolError` for the first argument that is not known, suggesting the nearest that is."""
    for key in reference.arguments:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ToolError(f"{reference.text!r}: unknown argument {key!r}; {takes}.{did_you_mean(key, known)}")


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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_sha256(path: Path) -> str:
    """Like `file_sha256`.

    Raises:
        ToolError: The file does not exist.
    """
    if not path.exists():
        raise missing_path(path)
    return file_sha256(path)


def missing_path(path: Path, known: Sequence[str] = ()) -> ToolError:
    """Make the error for a path that does not exist, naming the nearest that does, or a `known` name."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    besides = known if path.name == str(path) else ()
    return ToolError(f"{path} does not exist.{did_you_mean(path.name, [*besides, *siblings])}")


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_onnxpress_{file.stem}", file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, pickle and inspect look a class's module up there
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that it can import its neighbours, now and when its functions run
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ToolError(f"cannot import {file}: {type(error).__name__}: {error}") from error
    return module


def _argument(pair: str, text: str) -> tuple[str, Argument]:
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise ToolError(f"{text!r}: {pair!r} is not key=value")
    return key.strip(), _typed(value.strip())


def _typed(value: str) -> Argument:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def _is_windows_drive(prefix: str, name: str) -> bool:
    return len(prefix) == 1 and name.startswith(("\\", "/"))
