"""The one training loop: finetune and distill differ only in the loss they hand it."""

import copy
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from compress.augment import augment
from compress.training_state import TrainingState, discard_state, load_state, save_state
from core.data import Data, Split, loader, raised
from core.errors import ToolError, require
from core.machine import has_bfloat16
from core.predict import check_reads
from core.preprocessing import Preprocessing, normalise
from core.progress import Progress
from core.result import Report
from core.torch_model import TorchModel
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

GPU_STEPS_UNCHECKED = 50  # looking at a loss waits for the GPU

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Student logits (N, K), augmented samples before normalisation (N, C, H, W), targets (N,) -> scalar loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples an optimizer step.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        lr: Highest learning rate, reached after the warm-up; a cosine takes it to 0 at the end.
        momentum: Momentum of sgd; adamw ignores it.
        weight_decay: Decay of weight matrices and kernels; biases and normalisation are spared.
        warmup_epochs: Epochs over which the learning rate rises linearly from 0.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        crop_padding: Pixels a side of zero padding before a random crop; 0 for none.
        flip: Mirror half of the images left to right.
        precision: ``auto`` takes bfloat16 where the processor multiplies it in hardware, else float32.
        compile: Run the student through torch.compile, which takes a minute to start and needs a C++ compiler.
        seed: Seeds the order of samples, the augmentation and dropout.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}; it must be at least 1")
        require(self.batch_size >= 2, f"batch_size is {self.batch_size}; it must be at least 2")
        require(self.lr > 0, f"lr is {self.lr}; it must be above 0")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative")
        require(self.warmup_epochs >= 0, f"warmup_epochs is {self.warmup_epochs}; it must not be negative")
        require(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        require(self.crop_padding >= 0, f"crop_padding is {self.crop_padding}; it must not be negative")


class TrainReport(Report, frozen=True):
    """What a training run did.

    Attributes:
        epochs: Epochs trained.
        best_epoch: The epoch that was kept, counted from 1.
        validation_accuracy: Its accuracy on the validation split, in percent.
        initial_accuracy: The accuracy before training, in percent.
        teacher_accuracy: The teacher's on the same split, in percent; None without a teacher.
        device: Where it ran.
        precision: ``float32`` or ``bfloat16``.
        samples_per_second: Training throughput, validation excluded.
        metrics: One entry per epoch, as in ``metrics.jsonl``.
    """

    epochs: int
    best_epoch: int
    validation_accuracy: float
    initial_accuracy: float
    teacher_accuracy: float | None = None
    device: str
    precision: str
    samples_per_second: float
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

    Raises:
        ToolError: The student cannot read the data, the loss is not finite, or what is to be cropped or flipped is no
            image.
    """
    check_reads(student, data)
    loop = _prepare(student, data.split("train"), config, loss)
    validation = data.split("validation")
    initial_accuracy = _accuracy(loop, validation)
    generator, optimizer = loop.generator, loop.optimizer
    state = load_state(workspace, key, loop.module, optimizer, generator) if workspace else TrainingState()
    if state.next_epoch:
        logger.info("going on after epoch %d of %d", state.next_epoch, config.epochs)
    for epoch in range(state.next_epoch, config.epochs):
        started = time.perf_counter()
        mean_loss = _run_epoch(loop, epoch, stage, progress)
        seconds = time.perf_counter() - started
        accuracy = _accuracy(loop, validation)
        entry = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": mean_loss,
            "validation_accuracy": accuracy,
            "samples_per_second": min(len(loop.batches) * config.batch_size, len(data.split("train"))) / seconds,
        }
        _note_epoch(state, loop.module, accuracy, entry)
        if workspace and loop.accelerator.is_main_process:
            save_state(workspace, key, state, loop.module, optimizer, generator)
            with whole_file(workspace / "metrics.jsonl") as part:
                part.write_text(metrics_lines(state.metrics))
    loop.module.load_state_dict(state.best_weights)
    loop.module.zero_grad(set_to_none=True)
    rates = [entry["samples_per_second"] for entry in state.metrics]
    report = TrainReport(
        stage=stage,
        epochs=config.epochs,
        best_epoch=state.best_epoch + 1,
        validation_accuracy=state.best_accuracy,
        initial_accuracy=initial_accuracy,
        device=str(loop.accelerator.device),
        precision="bfloat16" if loop.use_bfloat16 else "float32",
        samples_per_second=sum(rates) / len(rates),
        metrics=tuple(state.metrics),
    )
    return loop.module.to("cpu").to(memory_format=torch.contiguous_format).eval(), report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """What an epoch needs; `prepared` is `module` as accelerate and torch.compile wrap it."""

    accelerator: Accelerator
    module: nn.Module
    prepared: Any
    optimizer: Any
    schedule: Any
    batches: Any
    generator: torch.Generator
    preprocessing: Preprocessing
    layout: torch.memory_format
    use_bfloat16: bool
    loss: BatchLoss
    config: TrainConfig


def _prepare(student: TorchModel, split: Split, config: TrainConfig, loss: BatchLoss) -> _Loop:
    """Copy the student and set up everything that trains it."""
    if (config.crop_padding or config.flip) and student.preprocessing.image_size is None:
        raise ToolError(f"crop_padding and flip augment images; the samples have shape {student.inputs[0].shape}")
    accelerator = Accelerator()
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    # compiled kernels choose their own layout and lose by channels-last; eager convolutions gain by it
    is_eager_on_images = student.preprocessing.image_size is not None and not config.compile
    layout = torch.channels_last if is_eager_on_images else torch.contiguous_format
    module = copy.deepcopy(student.module).to(accelerator.device).to(memory_format=layout)
    optimizer = create_optimizer_v2(
        module, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    batches = loader(
        split,
        student.preprocessing,
        config.batch_size,
        generator=generator,
        drop_last=len(split) > config.batch_size,  # a last batch of one sample breaks batch norm
    )
    prepared, optimizer, batches = accelerator.prepare(module, optimizer, batches)
    num_steps = config.epochs * len(batches)
    return _Loop(
        accelerator=accelerator,
        module=module,
        prepared=torch.compile(prepared) if config.compile else prepared,
        optimizer=optimizer,
        schedule=CosineLRScheduler(
            optimizer,
            t_initial=num_steps,
            warmup_t=min(round(config.warmup_epochs * len(batches)), num_steps - 1),
            t_in_epochs=False,
        ),
        batches=batches,
        generator=generator,
        preprocessing=student.preprocessing,
        layout=layout,
        use_bfloat16=_use_bfloat16(config.precision, accelerator.device),
        loss=loss,
        config=config,
    )


def _run_epoch(loop: _Loop, epoch: int, stage: str, progress: Progress) -> float:
    """Train for one epoch and return the mean loss of its batches."""
    config, device, num_steps = loop.config, loop.accelerator.device, len(loop.batches)
    losses: list[Tensor] = []
    check_every = 1 if device.type == "cpu" else GPU_STEPS_UNCHECKED
    loop.prepared.train()
    for index, (raw, targets) in enumerate(raised(loop.batches)):
        loop.schedule.step_update(epoch * num_steps + index)
        samples = augment(raw, crop_padding=config.crop_padding, flip=config.flip, generator=loop.generator)
        inputs = normalise(samples, loop.preprocessing).contiguous(memory_format=loop.layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.use_bfloat16):
            logits = loop.prepared(inputs)
        loss = loop.loss(logits.float(), samples, targets)
        loop.optimizer.zero_grad()
        loop.accelerator.backward(loss)
        loop.optimizer.step()
        losses.append(loss.detach())
        if (index + 1) % check_every == 0 or index + 1 == num_steps:
            _require_finite(losses[-check_every:], index + 1, f"{num_steps} in epoch {epoch + 1}", inputs, loop)
        progress(f"{stage} epoch {epoch + 1}/{config.epochs}", index + 1, num_steps, "steps")
    return float(torch.stack(losses).mean())


def _accuracy(loop: _Loop, split: Split) -> float:
    """Return the accuracy of the model being trained on a split, in percent."""
    device, num_correct = loop.accelerator.device, 0
    loop.module.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=loop.use_bfloat16):
        for raw, targets in raised(loader(split, loop.preprocessing, 256)):
            inputs = normalise(raw.to(device), loop.preprocessing)
            num_correct += int((loop.module(inputs).argmax(1).cpu() == targets).sum())
    return 100 * num_correct / len(split)


def metrics_lines(metrics: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> str:
    """Return the text of ``metrics.jsonl``: one JSON object a line, one line an epoch."""
    return "".join(json.dumps(entry) + "\n" for entry in metrics)


def finish(workspace: Path | None) -> None:
    """Remove the state of a run whose result has been saved."""
    if workspace:
        discard_state(workspace)


def _note_epoch(state: TrainingState, module: nn.Module, accuracy: float, entry: dict[str, Any]) -> None:
    """Record a finished epoch; among equals the later one is kept, trained at the lower learning rate."""
    state.metrics.append(entry)
    if accuracy >= state.best_accuracy:
        state.best_accuracy, state.best_epoch = accuracy, state.next_epoch
        state.best_weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state.next_epoch += 1


def _require_finite(losses: list[Tensor], last_step: int, of_steps: str, inputs: Tensor, loop: _Loop) -> None:
    """Raise where one of the latest losses is not finite, with its step and what its batch looked like."""
    values = torch.stack(losses)
    if values.isfinite().all():
        return
    index = int((~values.isfinite()).nonzero()[0])
    step = last_step - len(losses) + index + 1
    batch = ""
    if step == last_step:  # else that batch is gone
        batch = f"; its batch's inputs lie in [{float(inputs.min()):g}, {float(inputs.max()):g}]"
    advice = f"lower --lr (it is {loop.config.lr}) or raise the warm-up"
    if loop.use_bfloat16:
        advice += ", or try --precision float32"
    raise ToolError(f"the training loss became {float(values[index])} at step {step} of {of_steps}{batch}; {advice}")


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and has_bfloat16()
