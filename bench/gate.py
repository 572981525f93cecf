"""The limits a recipe sets on what it made, and whether the bench report keeps them."""

import dataclasses
from dataclasses import dataclass

from pydantic import BaseModel

from bench.compare import BenchReport
from core.errors import GateMissedError, ToolError


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Limits on the last model of a bench report, against its first, in the first setting.

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


class Bar(BaseModel, frozen=True):
    """One figure against its limit."""

    name: str
    value: float
    limit: float
    ok: bool


def bars(gate: Gate, report: BenchReport) -> tuple[Bar, ...]:
    """Hold a bench report against the limits that are set.

    Raises:
        ToolError: Accuracy is limited and was not measured.
    """
    limits = {name: limit for name, limit in dataclasses.asdict(gate).items() if limit is not None}
    measured = _measured(report)
    for name in limits:
        if name not in measured:
            raise ToolError(f"the gate's {name} limits accuracy, which the bench did not measure; give it data")
    return tuple(
        Bar(
            name=name,
            value=measured[name],
            limit=limit,
            ok=measured[name] >= limit if name.startswith("min_") else measured[name] <= limit,
        )
        for name, limit in limits.items()
    )


def require_bars(checked: tuple[Bar, ...]) -> None:
    """Raise `GateMissedError` when a bar was missed."""
    missed = [f"{bar.name} is {bar.limit:g}, measured {bar.value:.4g}" for bar in checked if not bar.ok]
    if missed:
        raise GateMissedError(f"the gate stays shut: {'; '.join(missed)}; the last good file is left as it was")


def require_placement(report: BenchReport, limit: float) -> None:
    """Raise `GateMissedError` when too few of a model's nodes ran on the provider that was asked for.

    Args:
        report: Of the bench.
        limit: Least share of the nodes of every file, in [0, 1].
    """
    for row in report.rows:
        if row.placement is not None and row.placement.placed_ratio < limit:
            elsewhere = ", ".join(f"{operator} ({count})" for operator, count in row.placement.fell_back.items())
            raise GateMissedError(
                f"{row.name}: {100 * row.placement.placed_ratio:.1f} % of its nodes ran on {row.placement.provider}, "
                f"{100 * limit:g} % are required; elsewhere ran {elsewhere}, "
                f"with {row.placement.copies} copies between host and device a run"
            )


def _measured(report: BenchReport) -> dict[str, float]:
    rows = [row for row in report.rows if row.setting == report.rows[0].setting]
    last = rows[-1]
    measured = {
        "min_speedup": last.speedup.ratio if last.speedup else 1.0,
        "max_latency_ms": last.latency.p50_ms,
        "max_size_bytes": float(last.size_bytes),
    }
    if last.quality is not None:
        drop = last.change.drop if last.change else 0.0
        measured |= {"max_drop": drop, "min_accuracy": last.quality.accuracy}
    return measured
