"""What may go wrong, as the user is told it."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class ToolError(Exception):
    """An expected failure: its message says what, which value, which limit, and what to do."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))  # dependencies' messages span lines


class InvalidValueError(ToolError, ValueError):
    """A configuration value lies outside what the stage accepts."""


class UnreadableSampleError(ToolError):
    """One sample is damaged; others may be read without it."""


class GateMissedError(ToolError):
    """A limit that was asked for is missed, or is known beforehand to be out of reach.

    Attributes:
        tried: What was tried on the way, a row each: name -> value.
    """

    exit_code = 3

    def __init__(self, message: str = "", tried: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.tried = tried


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest candidate, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidValueError` with this message unless the condition holds."""
    if not condition:
        raise InvalidValueError(message)
