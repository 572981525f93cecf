"""From a table of a recipe to a stage's frozen config, with errors a person can act on."""

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from core.errors import ToolError, did_you_mean

ConfigT = TypeVar("ConfigT")


def typed_config(config: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Make a config from plain values, checking their names and types.

    Args:
        config: A dataclass.
        values: Field name to value.
        where: What to call the table in an error.

    Raises:
        ToolError: A name is unknown, or a value has another type or lies outside its range.
    """
    check_keys(values, field_names(config), where)
    try:
        return TypeAdapter(config).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ToolError(f"{where}: {key + ': ' if key else ''}{reason}") from error


def with_settings(config: type[ConfigT], options: Mapping[str, Any]) -> ConfigT:
    """Make a config from a command's options, of which ``settings`` holds further values as ``key=value`` texts.

    Raises:
        ToolError: As `typed_config`, or a setting is not ``key=value``.
    """
    values = {name: value for name, value in options.items() if name != "settings"}
    for text in options["settings"]:
        key, equals, value = text.partition("=")
        if not equals:
            raise ToolError(f"--set {text}: write key=value")
        values[key.strip()] = toml_value(value)
    return typed_config(config, values, "--set" if options["settings"] else "the options")


def toml_value(text: str) -> Any:
    """Read a value as TOML writes it; what is no TOML is taken as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise `ToolError` for the first key that is not known, suggesting the nearest that is."""
    for key in table:
        if key not in known:
            raise ToolError(f"{where}: unknown key {key!r}.{did_you_mean(key, known)}")


def field_names(config: type) -> set[str]:
    """Return the names of a config's fields."""
    return {field.name for field in dataclasses.fields(config)}
