"""How library code tells its caller that it advances, without printing."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called as ``progress(description, done, total, unit)``; ``done`` rises, to ``total`` at most."""


def no_progress(description: str, done: int, total: int, unit: str) -> None:
    """Tell nobody."""
