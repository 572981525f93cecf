"""What a result promises: a figure beside its limit, and whether that is kept."""

from collections.abc import Sequence
from typing import Any

from results_file import markdown_table


def at_least(name: str, value: float, limit: float) -> dict[str, Any]:
    """Return the bar of a figure that is to reach its limit."""
    return bar(name, value, limit, ok=value >= limit)


def at_most(name: str, value: float, limit: float) -> dict[str, Any]:
    """Return the bar of a figure that is not to pass its limit."""
    return bar(name, value, limit, ok=value <= limit)


def bar(name: str, value: float, limit: float, *, ok: bool) -> dict[str, Any]:
    """Return a bar whose verdict is not by the figure alone."""
    return {"name": name, "value": value, "limit": limit, "ok": ok}


def bars_table(bars: Sequence[dict[str, Any]]) -> str:
    """Return the bars as Markdown."""
    return markdown_table(
        bars,
        {
            "bar": lambda bar: bar["name"],
            "measured": lambda bar: f"{bar['value']:.4g}",
            "limit": lambda bar: f"{bar['limit']:g}",
            "": lambda bar: "kept" if bar["ok"] else "MISSED",
        },
    )
