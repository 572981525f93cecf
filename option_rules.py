"""Which options of one command go together. What does not is wrong usage, said before anything heavy is imported."""

from collections.abc import Sequence
from typing import Any

import click
from click import UsageError
from click.core import ParameterSource

from command_options import PRUNING_TARGETS

PRUNE_ONLY = (
    "precision",
    "batch_size",
    "allocation",
    "round_to",
    "prune_heads",
    "baseline",
    "provider",
    "threads",
)


def require_pruning_target(given: dict[str, Any], *, sensitivity: bool, data: str | None) -> None:
    """Raise `click.UsageError` unless exactly one target is given, or for `--sensitivity` none, with data.

    What `--sensitivity` does not read may not be given with it.
    """
    num_targets = sum(given[name] is not None for name in PRUNING_TARGETS)
    if sensitivity and (num_targets or data is None):
        raise UsageError("--sensitivity takes --data and no target: it prunes nothing")
    if sensitivity and (unread := _on_command_line(PRUNE_ONLY)):
        raise UsageError(f"--sensitivity prunes nothing and does not read {', '.join(unread)}; leave that away")
    if not sensitivity and num_targets != 1:
        words = [f"--{name.replace('_', '-')}" for name in PRUNING_TARGETS]
        raise UsageError(f"give one of {', '.join(words[:-1])} and {words[-1]}")


def _on_command_line(names: Sequence[str]) -> list[str]:
    """Return those options of the running command that the user gave, as they are spelled."""
    source = click.get_current_context().get_parameter_source
    return [f"--{name.replace('_', '-')}" for name in names if source(name) == ParameterSource.COMMANDLINE]


def qat_settings(
    precision: str, *, sensitivity: bool, qat: bool, **settings: float | int | None
) -> dict[str, float | int]:
    """Return those of quantization-aware training's settings that are given.

    Raises `click.UsageError` where they, `--qat` or `--sensitivity` could change nothing.
    """
    if qat and sensitivity:
        raise UsageError("--sensitivity quantizes nothing, and so trains nothing; drop --qat")
    if (qat or sensitivity) and precision != "int8":
        does = "--qat trains a model to bear" if qat else "--sensitivity looks at"
        raise UsageError(f"{does} int8, not {precision}; drop one of them")
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not qat:
        unused = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{unused}: of --qat, which trains; add that, or drop it")
    return given


def refuse_tracking(track: tuple[str, ...], *, find_lr: bool) -> None:
    """Raise `click.UsageError` where `--find-lr` leaves `--track` nothing to send."""
    if find_lr and track:
        raise UsageError("--find-lr trains nothing whose metrics --track could send; drop one of them")


def require_server_limit(scenarios: tuple[str, ...], slo_ms: float | None) -> None:
    """Raise `click.UsageError` unless a server scenario has its latency limit, in ms, and no other has one."""
    if ("server" in scenarios) != (slo_ms is not None):
        raise UsageError("--scenario server and --slo-ms go together")
