"""One optimizer step, and everything it needs: set up once a run, used by training and by the learning-rate test."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from compress.quantization.int8_layouts import fast_layout
from compress.training.accelerator import start_accelerator
from compress.training.augment import augment, draw
from compress.training.config import FULL_BATCH_OPTIMIZERS, TrainConfig, changed, part_size
from compress.training.layer_settings import frozen_modules, set_dropout, set_stochastic_depth
from compress.training.mixing import Mix, mixing
from compress.training.penalties import has_penalty, penalty, weights_of
from compress.training.quantization_aware import round_layers
from compress.training.speed_trial import Execution
from compress.training.sync_batch_norm import synchronised_batch_norm
from core.batches import loader, raised
from core.data import Split
from core.errors import ToolError
from core.outputs import logits_in
from core.preprocessing import Preprocessing, Tensors, normalise
from core.torch_model import TorchModel

SAMPLE_AUGMENTATIONS = ("resized_crop", "crop_padding", "flip", "shear", "zoom", "rand_augment")
IMAGE_AUGMENTATIONS = (*SAMPLE_AUGMENTATIONS, "mixup", "cutmix")
OF_IMAGES = ("augmentations", "channels_last")


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What a loss may look at beside the student's outputs.

    Attributes:
        samples: A tensor an input, augmented, before normalisation: (N, C, H, W) for images, int64 (N, length) for
            texts, padded to the longest of the batch.
        targets: Classes int64 (N,), or their shares float32 (N, K) where samples were mixed.
        positions: Where each sample stands in the training split, int64 (N,).
        variant: Which of its augmentations each sample is seen in.
        use_bfloat16: Whether the student runs under bfloat16 autocast.
    """

    samples: Tensors
    targets: Tensor
    positions: Tensor
    variant: int
    use_bfloat16: bool

    def split(self, num_parts: int) -> list["TrainBatch"]:
        """Cut the batch into parts of nearly equal size, fewer where a part would hold less than two samples."""
        num_parts = min(num_parts, max(len(self.targets) // 2, 1))
        parts = zip(
            *(one.tensor_split(num_parts) for one in (self.targets, self.positions, *self.samples)), strict=True
        )
        return [
            TrainBatch(tuple(samples), targets, positions, self.variant, self.use_bfloat16)
            for targets, positions, *samples in parts
        ]


BatchLoss = Callable[[Any, TrainBatch], Tensor]
"""What the trained module returns for a batch, in float32, and the batch itself -> scalar loss, a mean over samples."""

Wrap = Callable[[nn.Module], nn.Module]
"""The student's module -> the module to train, whose outputs the loss is given; parameters it adds are trained too."""


def as_it_is(module: nn.Module) -> nn.Module:
    """Train the student's module itself: the loss is given its outputs."""
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What training steps need.

    Attributes:
        accelerator: Where it runs, and with which other processes.
        module: The student being trained, a copy.
        trainee: `module`, and what is trained with it.
        prepared: `trainee` as torch.compile and accelerate wrap it.
        optimizer: As accelerate wraps it; None where SciPy's takes its place.
        batches: The training split's loader as accelerate wraps it, shuffled unless all samples are seen at once.
        split: What is trained on.
        generator: Draws the order of samples.
        preprocessing: The student's.
        execution: Precision and layout.
        loss: Of a batch.
        config: How to train.
        frozen: Modules that stay in evaluation mode.
        start: The weights that training started from.
        average: The moving average of the weights, None where it is not asked for.
        mix: Mixes samples within a batch, None where it is not asked for.
    """

    accelerator: Accelerator
    module: nn.Module
    trainee: nn.Module
    prepared: Any
    optimizer: Any
    batches: Any
    split: Split
    generator: torch.Generator
    preprocessing: Preprocessing
    execution: Execution
    loss: BatchLoss
    config: TrainConfig
    frozen: list[nn.Module]
    start: dict[str, Tensor]
    average: ModelEmaV3 | None
    mix: Mix | None

    @property
    def judged(self) -> nn.Module:
        """The module whose accuracy counts: the average of the weights where one is kept."""
        return self.module if self.average is None else self.average.module


def prepare_loop(
    student: TorchModel, split: Split, config: TrainConfig, execution: Execution, loss: BatchLoss, wrap: Wrap = as_it_is
) -> Loop:
    """Copy the student and set up everything that trains it.

    Raises:
        ToolError: Images are to be augmented and the samples are none, or a layer that the config names is not there.
    """
    check_augmentable(student, config)
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        _check_shareable(split, config, accelerator.num_processes)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    module = copy.deepcopy(student.module).to(accelerator.device).to(memory_format=execution.memory_format)
    if config.dropout is not None:
        set_dropout(module, config.dropout)
    if config.stochastic_depth is not None:
        set_stochastic_depth(module, config.stochastic_depth)
    if config.quantization_aware:
        round_layers(module, reduce_range=fast_layout(config.reduce_range).reduce_range)
    # warmed up: of a few hundred steps a decay of 0.999 would keep more of the start than of what was learned
    average = ModelEmaV3(module, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    if accelerator.num_processes > 1:
        module = synchronised_batch_norm(module, accelerator.device)
    frozen = frozen_modules(module, config.freeze) if config.freeze else []
    trainee = wrap(module).to(accelerator.device)
    sees_all_at_once = config.optimizer in FULL_BATCH_OPTIMIZERS
    batches = loader(
        split,
        student.preprocessing,
        part_size(config) if sees_all_at_once else config.batch_size,
        generator=None if sees_all_at_once else generator,
        drop_last=len(split) > config.batch_size and not sees_all_at_once,  # a last batch of one breaks batch norm
    )
    prepared, batches = accelerator.prepare(trainee, batches)
    optimizer = None if sees_all_at_once else accelerator.prepare(_optimizer(trainee, config))
    return Loop(
        accelerator=accelerator,
        module=module,
        trainee=trainee,
        prepared=torch.compile(prepared) if execution.compile else prepared,
        optimizer=optimizer,
        batches=batches,
        split=split,
        generator=generator,
        preprocessing=student.preprocessing,
        execution=execution,
        loss=loss,
        config=config,
        frozen=frozen,
        start={name: one.detach().clone() for name, one in weights_of(module).items()} if config.l2_sp else {},
        average=average,
        mix=mixing(config.mixup, config.cutmix, len(student.labels)),
    )


def _optimizer(trainee: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make timm's optimizer; weight decay spares biases and normalisation."""
    is_sgd = config.optimizer == "sgd"
    made: torch.optim.Optimizer = create_optimizer_v2(
        trainee,
        opt="momentum" if is_sgd and not config.momentum else config.optimizer,  # Nesterov's needs some
        lr=config.lr,
        weight_decay=config.weight_decay,
        **({"momentum": config.momentum} if is_sgd else {}),
    )
    return made


def check_augmentable(student: TorchModel, config: TrainConfig) -> None:
    """Raise `ToolError` where images are to be augmented, or laid out, and the samples are none."""
    asked, kind = changed(config, IMAGE_AUGMENTATIONS), student.preprocessing.kind
    samples = "are texts" if kind == "text" else f"have shape {student.inputs[0].shape}"
    if asked and kind != "image":
        verb = "augments" if len(asked) == 1 else "augment"
        raise ToolError(f"{' and '.join(asked)} {verb} images; the samples {samples}")
    has_channels = kind != "text" and len(student.inputs[0].shape) == 3  # also of samples that are no pixels
    given = [name for name in changed(config, OF_IMAGES) if not (name == "channels_last" and has_channels)]
    if kind != "image" and given:
        raise ToolError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for images; the samples {samples}")


def _check_shareable(split: Split, config: TrainConfig, num_processes: int) -> None:
    if config.batch_size % num_processes:
        raise ToolError(
            f"batch_size is {config.batch_size}; it must be a multiple of the {num_processes} processes that share "
            "each batch"
        )
    if len(split) < config.batch_size:
        raise ToolError(
            f"{len(split)} samples do not fill a batch of {config.batch_size}, which several processes would fill up "
            "with samples taken twice; give a smaller batch_size"
        )
    if part_size(config) < 2:
        raise ToolError(
            f"a batch of {config.batch_size} over {num_processes} processes in {config.accumulation_steps} "
            "accumulation steps leaves less than 2 samples a step"
        )
    if split.skipped is not None:
        raise ToolError("--skip-bad works in one process: several must agree on every batch; replace the bad samples")


def variant_of(config: TrainConfig, epoch: int) -> int:
    """Return which of a sample's augmentations an epoch sees; without any there is only one."""
    if not changed(config, SAMPLE_AUGMENTATIONS):
        return 0
    return epoch % config.augmentations if config.augmentations else epoch


def epoch_batches(loop: Loop, epoch: int) -> Iterator[TrainBatch]:
    """Yield an epoch's batches, augmented and mixed, on the training device."""
    config, variant = loop.config, variant_of(loop.config, epoch)
    drawn = None
    if changed(config, SAMPLE_AUGMENTATIONS):
        drawn = draw(len(loop.split), config.seed, variant).to(loop.accelerator.device)
    for raw in raised(loop.batches, loop.split):
        samples, targets = raw.samples, raw.targets
        if loop.preprocessing.image_size is not None:
            images = samples[0]
            if drawn is not None:
                images = augment(
                    images,
                    drawn[raw.positions],
                    resized_crop=config.resized_crop,
                    crop_padding=config.crop_padding,
                    flip=config.flip,
                    shear=config.shear,
                    zoom=config.zoom,
                    rand_augment_magnitude=config.rand_augment,
                )
            if loop.mix is not None:
                images, targets = loop.mix(images, targets)
            samples = (images,)
        yield TrainBatch(samples, targets, raw.positions, variant, loop.execution.use_bfloat16)


def train_step(loop: Loop, batch: TrainBatch, share: float = 1.0, number: int = 1) -> Tensor:
    """Take one optimizer step on a batch and return its loss, without gradient.

    Args:
        loop: What to train.
        batch: What on.
        share: How much of the run has passed, in [0, 1], by which growing penalties go.
        number: Which step of the run it is, counted from 1, by which the average of the weights warms up.
    """
    config, parts = loop.config, batch.split(loop.config.accumulation_steps)
    total = torch.zeros((), device=batch.targets.device)
    loop.optimizer.zero_grad()
    for index, part in enumerate(parts):
        is_last = index + 1 == len(parts)
        with _synchronised(loop, is_last):
            loss = loss_of(loop, part) * (len(part.targets) / len(batch.targets))
            if is_last and has_penalty(config):
                loss = loss + penalty(loop.module, loop.start, config, share)
            loop.accelerator.backward(loss)
        total = total + loss.detach()
    if loop.accelerator.num_processes > 1:
        _require_gradients(loop.trainee)
    if config.clip_grad_norm:
        loop.accelerator.clip_grad_norm_(loop.trainee.parameters(), config.clip_grad_norm)
    loop.optimizer.step()
    if loop.average is not None:
        loop.average.update(loop.module, number)
    return total


def _require_gradients(trainee: nn.Module) -> None:
    """Raise `ToolError` where a parameter took no part: processes would wait for its gradient at the next step."""
    idle = [name for name, one in trainee.named_parameters() if one.requires_grad and one.grad is None]
    if idle:
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        raise ToolError(
            f"several processes need a gradient of every parameter, and the loss does not depend on {idle[0]}{more}; "
            "freeze the module, or train in one process"
        )


def loss_of(loop: Loop, batch: TrainBatch) -> Tensor:
    """Run the student on a batch and return its loss.

    Raises:
        ToolError: It is to be compiled and cannot be.
    """
    layout = loop.execution.memory_format
    inputs = tuple(one.contiguous(memory_format=layout) for one in normalise(batch.samples, loop.preprocessing))
    with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=loop.execution.use_bfloat16):
        try:
            outputs = loop.prepared(*inputs)
        except TorchDynamoException as error:
            reason = str(error).partition("\n")[0]
            raise ToolError(
                f"torch.compile fails on this model or machine: {reason}; train with --no-compile"
            ) from error
    return loop.loss(_in_float32(outputs), batch)


def train_mode(loop: Loop) -> None:
    """Put the student into training mode, but for what is frozen."""
    loop.prepared.train()
    for module in loop.frozen:
        module.eval()


def accuracy_on(loop: Loop, split: Split) -> float:
    """Return the accuracy on a split of the weights that count, in percent; needs no more memory than training.

    Processes share the split, and all are told the same figure.
    """
    device, num_correct, num_seen = loop.accelerator.device, 0, 0
    rank, num_ranks = loop.accelerator.process_index, loop.accelerator.num_processes
    split = split.take(torch.arange(rank, len(split), num_ranks))
    judged = loop.judged.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=loop.execution.use_bfloat16):
        for batch in raised(loader(split, loop.preprocessing, part_size(loop.config)), split):
            inputs = normalise(tuple(one.to(device) for one in batch.samples), loop.preprocessing)
            num_correct += int((logits_in(judged(*inputs)).argmax(1).cpu() == batch.targets).sum())
            num_seen += len(batch.targets)
    counts = loop.accelerator.reduce(torch.tensor([num_correct, num_seen], device=device), reduction="sum")
    return 100 * int(counts[0]) / int(counts[1])


def _synchronised(loop: Loop, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients with the other processes at the last part of a batch only."""
    return nullcontext() if is_last else loop.accelerator.no_sync(loop.prepared)


def _in_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: _in_float32(one) for name, one in outputs.items()}
    return tuple(_in_float32(one) for one in outputs) if isinstance(outputs, (tuple, list)) else outputs
