"""What one may tune of the training loop, and its limits."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from core.errors import InvalidValueError, require
from core.processes import num_processes

Optimizer = Literal["sgd", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "lbfgs", "cg"]
TaskLoss = Literal["cross-entropy", "binary-cross-entropy", "mse"]
Schedule = Literal["cosine", "linear", "polynomial", "step", "constant"]
Activation = Literal["relu", "relu6", "leaky-relu", "hardswish", "silu", "gelu"]
FULL_BATCH_OPTIMIZERS = ("lbfgs", "cg")
MAX_RAND_AUGMENT = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training split; of a full-batch optimizer, its iterations.
        batch_size: Samples an optimizer step, over all processes and accumulation steps.
        accumulation_steps: Parts that a batch is computed in, one after the other, to fit into memory.
        optimizer: ``sgd`` (with Nesterov momentum), ``adam``, ``adamw``, ``nadam``, ``adamax``, ``adagrad``,
            ``adadelta``; ``lbfgs`` and ``cg`` (nonlinear conjugate gradient) see all samples at once and suit small
            problems.
        lr: Highest learning rate, reached after the warm-up. Full-batch optimizers search their steps and ignore it.
        momentum: Momentum of sgd; the others ignore it.
        schedule: How the learning rate falls: ``cosine`` and ``linear`` to 0, ``polynomial`` (squared) to 0, ``step``
            to a tenth at each third of the epochs, or ``constant``.
        warmup_epochs: Epochs over which the learning rate rises linearly from 0; None takes one, or a tenth of the run
            where that is shorter.
        clip_grad_norm: Scale gradients down to at most this norm; 0 leaves them.
        ema_decay: Decay a step, such as 0.999, of an exponential moving average of the weights, which is what is judged
            and kept; at step n it is 1 - n^(-2/3) at most. 0 for none.
        patience: Stop after this many epochs without a better validation accuracy; 0 never stops early.
        loss: ``cross-entropy``, ``binary-cross-entropy`` (each class by itself), or ``mse`` between logits and one-hot
            targets (Hui and Belkin 2020, https://arxiv.org/abs/2006.07322).
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        weight_decay: Decay of weight matrices and kernels; biases and normalisation are spared.
        l1: Weight of the sum of absolute weights.
        l2_sp: Weight of half the squared distance to the weights that training started from, random ones of a new head
            included (after Li et al. 2018, https://arxiv.org/abs/1802.01483, who let those decay to 0).
        group_lasso: Weight of the sum of norms of each output channel's weights, which empties whole channels (Yuan
            and Lin 2006).
        bn_l1: Weight of the sum of absolute batch-norm scales, which empties channels too (network slimming, Liu et
            al. 2017, https://arxiv.org/abs/1708.06519).
        growing_penalties: Raise l1, l2_sp, group_lasso and bn_l1 from nothing to what is given over the run, so that
            channels empty gently before they are pruned: all alike, where Wang et al. 2021
            (https://arxiv.org/abs/2012.09243) penalise those that are to go.
        dropout: Set the model's dropout layers to this rate; None leaves them.
        stochastic_depth: Set the model's last stochastic-depth layer to this rate, those before it proportionally less
            (Huang et al. 2016, https://arxiv.org/abs/1603.09382); None leaves them.
        activation: Put this activation in place of the student's before training; None leaves them.
        quantization_aware: Round weights and layers' inputs to int8 in training, so that the model bears it (Jacob et
            al. 2018, https://arxiv.org/abs/1712.05877).
        reduce_range: Round weights to 7 of 8 bits where training is quantization-aware; None asks this processor, as
            int8 files do.
        freeze: Paths of modules that are not trained, their batch-norm statistics included.
        resized_crop: Least share of an image's area that a random crop keeps, in (0, 1], of an aspect ratio between 3:4
            and 4:3, scaled back to full size (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842); 1 for none.
        crop_padding: Pixels a side of zero padding before a random crop; 0 for none.
        flip: Mirror half of the images left to right.
        shear: Largest random horizontal shear either way, in degrees.
        zoom: Largest random change of size either way, as a share, in [0, 1).
        rand_augment: Magnitude of RandAugment, two operations an image, in [0, 30]; 0 for none.
        mixup: Alpha of mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412); 0 for none.
        cutmix: Alpha of CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899); 0 for none. With both, each batch
            draws one of the two.
        augmentations: How many different augmentations a sample has, taken in turn; 0 for a new one every epoch.
        precision: ``float32`` or ``bfloat16`` (autocast); ``auto`` takes what a short trial measures to be faster.
        channels_last: Memory layout of images; None takes what the trial measures to be faster.
        compile: Run the student through torch.compile, which takes a minute to start and needs a C++ compiler; None
            tries it where the run is long enough to earn that back.
        seed: Seeds the order of samples, the augmentation and dropout.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulation_steps: int = 1
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup_epochs: float | None = None
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    loss: TaskLoss = "cross-entropy"
    label_smoothing: float = 0.0
    weight_decay: float = 5e-4
    l1: float = 0.0
    l2_sp: float = 0.0
    group_lasso: float = 0.0
    bn_l1: float = 0.0
    growing_penalties: bool = False
    dropout: float | None = None
    stochastic_depth: float | None = None
    activation: Activation | None = None
    quantization_aware: bool = False
    reduce_range: bool | None = None
    freeze: tuple[str, ...] = ()
    resized_crop: float = 1.0
    crop_padding: int = 0
    flip: bool = False
    shear: float = 0.0
    zoom: float = 0.0
    rand_augment: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    augmentations: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool | None = None
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            require(value is None or value >= least, f"{name} is {value}; it must {_at_least(least)}")
        require(self.lr > 0, f"lr is {self.lr}; it must be above 0")
        for name in _BELOW_ONE:
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"{name} is {value}; it must be in [0, 1)")
        require(
            self.batch_size >= 2 * self.accumulation_steps,
            f"a batch of {self.batch_size} in {self.accumulation_steps} accumulation steps leaves less than 2 samples "
            "a step",
        )
        require(
            self.rand_augment <= MAX_RAND_AUGMENT,
            f"rand_augment is {self.rand_augment}; a magnitude is at most {MAX_RAND_AUGMENT}",
        )
        require(0 < self.resized_crop <= 1, f"resized_crop is {self.resized_crop}; it must be in (0, 1]")
        require(
            self.reduce_range is None or self.quantization_aware,
            "reduce_range is of the rounding of quantization_aware training; set that too",
        )
        if self.optimizer in FULL_BATCH_OPTIMIZERS:
            _require_deterministic(self)


def part_size(config: TrainConfig) -> int:
    """Return how many samples a process computes at once."""
    return config.batch_size // config.accumulation_steps // num_processes()


def changed(config: TrainConfig, among: Iterable[str]) -> list[str]:
    """Return the settings, of some, that differ from their defaults."""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    return [name for name in among if getattr(config, name) != defaults[name]]


_AT_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulation_steps": 1,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "clip_grad_norm": 0,
    "patience": 0,
    "l1": 0,
    "l2_sp": 0,
    "group_lasso": 0,
    "bn_l1": 0,
    "crop_padding": 0,
    "shear": 0,
    "rand_augment": 0,
    "mixup": 0,
    "cutmix": 0,
    "augmentations": 0,
}
_BELOW_ONE = ("momentum", "ema_decay", "label_smoothing", "dropout", "stochastic_depth", "zoom")
_RANDOM = (
    "resized_crop",
    "crop_padding",
    "flip",
    "shear",
    "zoom",
    "rand_augment",
    "mixup",
    "cutmix",
    "dropout",
    "stochastic_depth",
)
_OF_STEPS = ("ema_decay", "clip_grad_norm", "growing_penalties")


def _at_least(least: int) -> str:
    return "not be negative" if least == 0 else f"be at least {least}"


def _require_deterministic(config: TrainConfig) -> None:
    """Raise for what a line search cannot serve: the loss must be the same function of the weights at each look."""
    for name in changed(config, (*_RANDOM, *_OF_STEPS)):
        reason = "draws anew each time" if name in _RANDOM else "belongs to optimizers that go batch by batch"
        raise InvalidValueError(
            f"{config.optimizer} minimises one function of all samples, and {name} {reason}; "
            f"drop {name} or take sgd or adamw"
        )
