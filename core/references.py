"""The strings users name things with: ``kind:name,key=value`` and ``FILE.py:FACTORY,key=value``."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    prefix, colon, name = head.partition(":")
    if prefix in prefixes:
        return Reference(text, prefix, name, arguments)
    file, _, factory = head.rpartition(":")
    if file.endswith(".py"):
        return Reference(text, "factory", factory, arguments, Path(file))
    if not colon or _is_of_a_path(prefix, name):
        return Reference(text, "path", head, arguments)
    known = ", ".join(f"{known}:" for known in prefixes)
    raise ToolError(
        f"{text!r}: unknown kind {prefix!r}; known are {known} and FILE.py:FACTORY." + did_you_mean(prefix, prefixes)
    )


def check_arguments(reference: Reference, known: Sequence[str]) -> None:
    """Raise `ToolError` for the first argument that is not known, suggesting the nearest that is."""
    for key in reference.arguments:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ToolError(f"{reference.text!r}: unknown argument {key!r}; {takes}.{did_you_mean(key, known)}")


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


def _is_of_a_path(prefix: str, name: str) -> bool:
    """Tell whether what stands before the first colon is a Windows drive, or holds a folder: no kind is called so."""
    is_drive = len(prefix) == 1 and name.startswith(("\\", "/"))
    return is_drive or "/" in prefix or "\\" in prefix
