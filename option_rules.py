"""Which options of one command go together. What does not is wrong usage, said before anything heavy is imported."""

from typing import Any

from click import UsageError

from command_options import PRUNING_TARGETS


def require_pruning_target(given: dict[str, Any], *, sensitivity: bool, data: str | None) -> None:
    """Raise `click.UsageError` unless exactly one target is given, or none, and data, for `--sensitivity`."""
    num_targets = sum(given[name] is not None for name in PRUNING_TARGETS)
    if sensitivity and (num_targets or data is None):
        raise UsageError("--sensitivity takes --data and no target: it prunes nothing")
    if not sensitivity and num_targets != 1:
        words = [f"--{name.replace('_', '-')}" for name in PRUNING_TARGETS]
        raise UsageError(f"give one of {', '.join(words[:-1])} and {words[-1]}")


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


def require_server_limit(scenarios: tuple[str, ...], slo_ms: float | None) -> None:
    """Raise `click.UsageError` unless a server scenario has its latency limit, in ms, and no other has one."""
    if ("server" in scenarios) != (slo_ms is not None):
        raise UsageError("--scenario server and --slo-ms go together")
