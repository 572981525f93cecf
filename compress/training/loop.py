"""The one training loop: finetune and distill differ only in the loss they hand it."""

import copy
import json
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from compress.training.accelerator import start_accelerator
from compress.training.config import FULL_BATCH_OPTIMIZERS, TrainConfig
from compress.training.full_batch import check_full_batch, minimise
from compress.training.learning_rate import schedule_of
from compress.training.non_finite import require_finite_loss, require_finite_weights
from compress.training.speed_trial import Execution, TimedExecution, choose_execution
from compress.training.state import TrainingState, load_state, save_state
from compress.training.step import (
    BatchLoss,
    Loop,
    Wrap,
    accuracy_on,
    as_it_is,
    epoch_batches,
    prepare_loop,
    train_mode,
    train_step,
)
from core.compatibility import check_reads
from core.data import Data, Split
from core.errors import ToolError
from core.folder_lock import locked
from core.held_images import held
from core.progress import Progress
from core.result import Report
from core.torch_model import TorchModel
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

EXECUTION_NOTE = "execution.json"
CPU_STEPS_UNCHECKED = 1
GPU_STEPS_UNCHECKED = 50  # looking at a loss waits for the GPU

OnEpoch = Callable[[dict[str, Any]], None]
"""Told an epoch's metrics, as they stand in ``metrics.jsonl``."""


class TrainReport(Report, frozen=True):
    """What a training run did.

    Attributes:
        epochs: Epochs trained: fewer than asked for where it stopped early.
        best_epoch: The epoch that was kept, counted from 1.
        validation_accuracy: Its accuracy on the validation split, in percent; where that has no labels, the share of
            samples on which student and teacher agree.
        initial_accuracy: The accuracy before training, in percent.
        teacher_accuracies: Each teacher's on the same split, in percent.
        device: Where it ran.
        num_processes: How many processes shared each batch.
        precision: ``float32`` or ``bfloat16``.
        channels_last: Whether images lay in memory channels last.
        compile: Whether torch.compile ran the student.
        speed_trial: What was timed to choose these three; empty where nothing was left to choose.
        samples_per_second: Training throughput, validation excluded.
        skipped_samples: How many samples could not be read and were left out.
        metrics: One entry per epoch, as in ``metrics.jsonl``.
    """

    epochs: int
    best_epoch: int
    validation_accuracy: float
    initial_accuracy: float
    teacher_accuracies: tuple[float, ...] = ()
    device: str
    num_processes: int
    precision: str
    channels_last: bool
    compile: bool
    speed_trial: tuple[TimedExecution, ...]
    samples_per_second: float
    skipped_samples: int
    metrics: tuple[dict[str, Any], ...]


def train(
    student: TorchModel,
    data: Data,
    config: TrainConfig,
    loss: BatchLoss,
    *,
    stage: str,
    key: str,
    workspace: Path | None,
    progress: Progress,
    on_epoch: OnEpoch | None = None,
    wrap: Wrap = as_it_is,
) -> tuple[nn.Module, TrainReport]:
    """Train a copy of the student and return it as it was after its best epoch by validation accuracy.

    Args:
        student: What to train; left untouched.
        data: Its train split is trained on, its validation split chooses the epoch.
        config: How.
        loss: The loss of a batch.
        stage: ``finetune`` or ``distill``, for the report.
        key: Digest of everything that determines this run; a state on disk with another key is ignored.
        workspace: Folder for the state and ``metrics.jsonl`` while the run is unfinished; None keeps neither.
        progress: Told of every step.
        on_epoch: Told of every epoch.
        wrap: Makes the module that is trained, whose outputs the loss is given.

    Raises:
        ToolError: The student cannot read the data, loss or weights are not finite, what is to be augmented is no
            image, a layer that the config names is not there, a sample cannot be read, or another run works in the
            workspace.
    """
    check_reads(student, data)
    split, validation = (held(data.split(name), student.preprocessing) for name in ("train", "validation"))
    check_full_batch(split, config)
    execution, tried = _execution(student, split, config, key, workspace)
    loop = prepare_loop(student, split, config, execution, loss, wrap)
    written = workspace if loop.accelerator.is_main_process else None
    with locked(written) if written else nullcontext():
        if written:
            _note_execution(execution, tried, key, written)
        initial_accuracy = accuracy_on(loop, validation)
        state = TrainingState()
        if workspace:
            state = load_state(workspace, key, _modules(loop), loop.optimizer, loop.generator)
            _require_shared(loop, state, workspace)
        if state.next_epoch:
            logger.info("going on after epoch %d of %d", state.next_epoch, config.epochs)
        run = _Run(loop, state, validation, stage, key, workspace, progress, on_epoch)
        if config.optimizer in FULL_BATCH_OPTIMIZERS:
            _iterate_full_batch(run)
        else:
            _iterate_epochs(run)
    if state.best_accuracy < initial_accuracy:
        logger.warning(
            "the best epoch's validation accuracy is %.2f %%, below the %.2f %% that training started from; lower "
            "--lr (it is %g) or train for longer",
            state.best_accuracy,
            initial_accuracy,
            config.lr,
        )
    trained = copy.deepcopy(student.module)
    trained.load_state_dict(state.best_weights)
    rates = [entry["samples_per_second"] for entry in state.metrics]
    report = TrainReport(
        stage=stage,
        epochs=state.next_epoch,
        best_epoch=state.best_epoch + 1,
        validation_accuracy=state.best_accuracy,
        initial_accuracy=initial_accuracy,
        device=str(loop.accelerator.device),
        num_processes=loop.accelerator.num_processes,
        **asdict(execution),
        speed_trial=tried,
        samples_per_second=sum(rates) / len(rates),
        skipped_samples=len(split.skipped) if split.skipped is not None else 0,
        metrics=tuple(state.metrics),
    )
    return trained.eval(), report


@dataclass(frozen=True, slots=True)
class _Run:
    loop: Loop
    state: TrainingState
    validation: Split
    stage: str
    key: str
    workspace: Path | None
    progress: Progress
    on_epoch: OnEpoch | None

    def goes_on(self) -> bool:
        """Tell whether another epoch is due."""
        config, state = self.loop.config, self.state
        without_better = state.next_epoch - 1 - state.improved_epoch
        stops_early = bool(config.patience) and state.next_epoch > 0 and without_better >= config.patience
        return state.next_epoch < config.epochs and not stops_early


def metrics_lines(metrics: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> str:
    """Return the text of ``metrics.jsonl``: one JSON object a line, one line an epoch."""
    return "".join(json.dumps(entry) + "\n" for entry in metrics)


def _execution(
    student: TorchModel, split: Split, config: TrainConfig, key: str, workspace: Path | None
) -> tuple[Execution, tuple[TimedExecution, ...]]:
    """Choose how to run the student; a run that goes on keeps its choice, on which its results depend."""
    note = workspace / EXECUTION_NOTE if workspace and start_accelerator().is_main_process else None
    read = _noted_execution(note) if note is not None and note.exists() else None
    noted = broadcast_object_list([read])[0]  # all must go on alike
    if noted is not None and noted["key"] == key:
        return Execution(**noted["execution"]), tuple(TimedExecution(**one) for one in noted["tried"])
    num_steps = config.epochs * max(len(split) // config.batch_size, 1) * config.accumulation_steps
    return choose_execution(student, config, num_steps)


def _require_shared(loop: Loop, state: TrainingState, workspace: Path) -> None:
    """Raise `ToolError` where some processes go on and others begin: they would wait for one another."""
    epochs = loop.accelerator.gather(torch.tensor([state.next_epoch], device=loop.accelerator.device)).tolist()
    if len(set(epochs)) > 1:
        raise ToolError(
            f"some processes find the state of an unfinished run in {workspace} and others do not ({epochs} epochs "
            "done); put the output on a disk that all machines share, or remove that folder everywhere"
        )


def _noted_execution(note: Path) -> dict[str, Any] | None:
    try:
        noted: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # the disk has damaged it
        return None
    return noted


def _note_execution(execution: Execution, tried: tuple[TimedExecution, ...], key: str, workspace: Path) -> None:
    chosen = {"key": key, "execution": asdict(execution), "tried": [one.model_dump() for one in tried]}
    with whole_file(workspace / EXECUTION_NOTE) as part:
        part.write_text(json.dumps(chosen), encoding="utf-8")


def _iterate_epochs(run: _Run) -> None:
    loop, config = run.loop, run.loop.config
    schedule = schedule_of(loop.optimizer, config, len(loop.batches))
    while run.goes_on():
        epoch, started = run.state.next_epoch, time.perf_counter()
        mean_loss = _run_epoch(run, epoch, schedule)
        num_samples = min(len(loop.batches) * config.batch_size, len(loop.split))
        _finish_epoch(run, mean_loss, num_samples / (time.perf_counter() - started))


def _iterate_full_batch(run: _Run) -> None:
    if not run.goes_on():
        return
    config = run.loop.config
    started = [time.perf_counter()]

    def after_iteration(loss: float) -> bool:
        rate = len(run.loop.split) / (time.perf_counter() - started[0])
        _finish_epoch(run, loss, rate)
        started[0] = time.perf_counter()
        run.progress(f"{run.stage} with {config.optimizer}", run.state.next_epoch, config.epochs, "iterations")
        return run.goes_on()

    minimise(run.loop, run.state.next_epoch, after_iteration)
    if not run.state.metrics:
        raise ToolError(
            f"{config.optimizer} found no step that lowers the loss; it is at a minimum already, or too rough for a "
            "line search: take adamw"
        )


def _run_epoch(run: _Run, epoch: int, schedule: Any) -> float:
    """Train for one epoch and return the mean loss of its batches."""
    loop, config, num_steps = run.loop, run.loop.config, len(run.loop.batches)
    losses = torch.zeros(
        num_steps, device=loop.accelerator.device
    )  # preallocated: many small tensors would fragment the heap
    check_every = CPU_STEPS_UNCHECKED if loop.accelerator.device.type == "cpu" else GPU_STEPS_UNCHECKED
    train_mode(loop)
    if loop.accelerator.num_processes > 1:
        torch.manual_seed(config.seed + epoch * loop.accelerator.num_processes + loop.accelerator.process_index)
    num_taken = 0  # as many as num_steps, unless every sample of a batch was left out
    unchecked: list[Tensor] = []  # where their samples stand
    for batch in epoch_batches(loop, epoch):
        step = epoch * num_steps + num_taken
        schedule.step_update(step)
        losses[num_taken] = train_step(loop, batch, (epoch + num_taken / num_steps) / config.epochs, step + 1)
        num_taken += 1
        unchecked.append(batch.positions)
        if num_taken % check_every == 0 or num_taken == num_steps:
            latest = losses[num_taken - len(unchecked) : num_taken]
            require_finite_loss(latest, num_taken, f"{num_steps} in epoch {epoch + 1}", unchecked, batch, loop)
            unchecked = []
        num_done = epoch * num_steps + num_taken
        run.progress(run.stage, num_done, config.epochs * num_steps, f"steps, epoch {epoch + 1}/{config.epochs}")
    mean = losses[:num_taken].mean()
    return float(loop.accelerator.reduce(mean, reduction="mean"))


def _finish_epoch(run: _Run, mean_loss: float, samples_per_second: float) -> None:
    """Judge the weights as they stand, note the epoch, and write the state.

    Raises:
        ToolError: They are not finite.
    """
    loop, state = run.loop, run.state
    require_finite_weights(loop, state.next_epoch + 1)
    accuracy = accuracy_on(loop, run.validation)
    entry = {
        "epoch": state.next_epoch + 1,
        "train_loss": mean_loss,
        "validation_accuracy": accuracy,
        "samples_per_second": samples_per_second,
    }
    if loop.optimizer is not None:
        entry["lr"] = loop.optimizer.param_groups[0]["lr"]
    _note_epoch(state, loop.judged, accuracy, entry)
    if not loop.accelerator.is_main_process:
        return
    if run.workspace:
        save_state(run.workspace, run.key, state, _modules(loop), loop.optimizer, loop.generator)
        with whole_file(run.workspace / "metrics.jsonl") as part:
            part.write_text(metrics_lines(state.metrics), encoding="utf-8")
    if run.on_epoch is not None:
        run.on_epoch(entry)


def _modules(loop: Loop) -> dict[str, nn.Module]:
    """Return what has a state to keep."""
    return {"trainee": loop.trainee} | ({"average": loop.average.module} if loop.average is not None else {})


def _note_epoch(state: TrainingState, module: nn.Module, accuracy: float, entry: dict[str, Any]) -> None:
    """Record a finished epoch; among equals the later one is kept, trained at the lower learning rate."""
    state.metrics.append(entry)
    if accuracy > state.best_accuracy:
        state.improved_epoch = state.next_epoch
    if accuracy >= state.best_accuracy:
        state.best_accuracy, state.best_epoch = accuracy, state.next_epoch
        state.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    state.next_epoch += 1
