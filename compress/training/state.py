"""Where a training run stands after an epoch, on disk, so that the same command goes on after an interruption.

Held in ``OUTPUT.partial/state-{0,1}.safetensors`` beside the output until that is complete, the last two epochs' in
turn: what is trained, the best student, optimizer and random state, with the counters in the file's metadata. No pickle
is written or read.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from core.checkpoint import read_tensors
from core.errors import ToolError
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

STATES = ("state-0.safetensors", "state-1.safetensors")


@dataclass(slots=True)
class TrainingState:
    """What the loop needs to go on.

    Attributes:
        next_epoch: Index of the first epoch that is not done.
        best_accuracy: Highest validation accuracy so far, in percent.
        best_epoch: The last epoch that reached it.
        improved_epoch: The first epoch that reached it.
        best_weights: The student's tensors then.
        metrics: One entry per finished epoch.
    """

    next_epoch: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    improved_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)


def partial_folder(output: Path) -> Path:
    """Return the folder that holds the state of an unfinished run whose result goes to `output`."""
    return output.with_name(f"{output.name}.partial")


def save_state(
    folder: Path,
    key: str,
    state: TrainingState,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator,
) -> None:
    """Write the state after an epoch, replacing the one before the last.

    Args:
        folder: Where.
        key: Digest of everything that determines the run.
        state: Its counters.
        modules: What has weights to go on with, by name.
        optimizer: Whose moments go on too; None for one that keeps none between epochs.
        generator: Draws the order of samples.
    """
    tensors = _named("best", state.best_weights)
    for name, module in modules.items():
        tensors |= _named(name, module.state_dict())
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in (optimizer.state_dict()["state"] if optimizer is not None else {}).items():
        tensors |= _named(f"optimizer.{index}", {k: v for k, v in values.items() if isinstance(v, Tensor)})
        scalars[str(index)] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
    tensors["generator"] = generator.get_state()
    tensors["torch_random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["cuda_random"] = torch.cuda.get_rng_state()
    described = {
        "key": key,
        "next_epoch": state.next_epoch,
        "best_accuracy": state.best_accuracy,
        "best_epoch": state.best_epoch,
        "improved_epoch": state.improved_epoch,
        "metrics": state.metrics,
        "optimizer": scalars,
    }
    payload = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata={"state": json.dumps(described)},
    )
    with whole_file(folder / STATES[state.next_epoch % len(STATES)]) as part:
        part.write_bytes(payload)


def load_state(
    folder: Path,
    key: str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator,
) -> TrainingState:
    """Restore a run's state in place and return it; a fresh state when there is none for this very run."""
    there = [state for name in STATES if (state := _read(folder / name))]
    found = [state for state in there if state[0]["key"] == key]
    if not found:
        if there:
            logger.warning("the unfinished run in %s had other settings; starting anew in its place", folder)
        return TrainingState()
    described, tensors = max(found, key=lambda state: int(state[0]["next_epoch"]))
    for name, module in modules.items():
        module.load_state_dict(_under(name, tensors))
    if optimizer is not None:
        restored = optimizer.state_dict()
        restored["state"] = {
            int(index): _under(f"optimizer.{index}", tensors) | scalars
            for index, scalars in described["optimizer"].items()
        }
        optimizer.load_state_dict(restored)
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch_random"])
    if torch.cuda.is_available() and "cuda_random" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_random"])
    return TrainingState(
        next_epoch=described["next_epoch"],
        best_accuracy=described["best_accuracy"],
        best_epoch=described["best_epoch"],
        improved_epoch=described["improved_epoch"],
        best_weights=_under("best", tensors),
        metrics=described["metrics"],
    )


def discard_state(folder: Path) -> None:
    """Remove the state of a run that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return a state's counters and tensors; None where there is none or the disk has damaged it."""
    if not path.exists():
        return None
    try:
        tensors = read_tensors(path)
    except ToolError:
        return None
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["state"]), tensors


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }
