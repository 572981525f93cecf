"""Train a student on what teachers say, and on the labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from compress.accelerator import start_accelerator
from compress.hints import Features, Hint, Tapped, hints_loss, make_adapters, parse_hint
from compress.logit_losses import dist_loss, dkd_loss, kd_loss, ls_loss
from compress.task_losses import task_loss
from compress.teacher_cache import TeacherCache
from compress.teachers import Ask, asking, asking_once
from compress.train_config import TrainConfig
from compress.training import OnEpoch, TrainReport, train
from compress.training_step import IMAGE_AUGMENTATIONS, BatchLoss, TrainBatch, Wrap, as_it_is, check_augmentable
from core.compatibility import check_reads, check_same_task
from core.data import Data
from core.errors import ToolError, require
from core.history import digest_of, step
from core.model import Model, model_digest
from core.onnx_model import OnnxModel
from core.outputs import logits_in
from core.predict import accuracy, frozen_copy, predict
from core.progress import Progress, no_progress
from core.result import Result
from core.sessions import FloatArray
from core.torch_model import TorchModel, example_inputs, with_activation

Method = Literal["kd", "ls", "dkd", "dist"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(TrainConfig):
    """How to distil.

    Attributes:
        method: What a teacher's logits teach, as in `compress.logit_losses`: ``kd`` (their softened distribution),
            ``ls`` (that of standardized logits), ``dkd`` (target and other classes apart) or ``dist`` (correlations).
        temperature: T, which softens both distributions; above 0.
        dkd_beta: Weight of dkd's divergence among the other classes against that of the target; the paper's lie between
            0.1 and 10, the larger the more confident the teacher.
        kd_ratio: Share of the teachers' loss, in [0, 1]: loss = (1 - kd_ratio) * task + kd_ratio * method. With 1, no
            labels are needed.
        hints: Pairs of layers whose features are compared too, as in `compress.hints`; the first teacher gives them.
        teacher_weights: Relative weights of several teachers' losses; empty weighs them alike.
        teacher_cache_gb: What the folder of a teacher cache may grow to, in 10^9 bytes.
        provider: Where a teacher given as an .onnx file runs.
        threads: Threads of such a teacher; 0 takes the cores this process may use.
    """

    method: Method = "kd"
    temperature: float = 4.0
    dkd_beta: float = 8.0
    kd_ratio: float = 0.9
    hints: tuple[str, ...] = ()
    teacher_weights: tuple[float, ...] = ()
    teacher_cache_gb: float = 4.0
    provider: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        super(DistillConfig, self).__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        require(self.dkd_beta > 0, f"dkd_beta is {self.dkd_beta}; it must be above 0")
        require(0 <= self.kd_ratio <= 1, f"kd_ratio is {self.kd_ratio}; it must be in [0, 1]")
        require(self.teacher_cache_gb > 0, f"teacher_cache_gb is {self.teacher_cache_gb}; it must be above 0")
        require(
            all(weight > 0 for weight in self.teacher_weights),
            f"teacher_weights are {self.teacher_weights}; each must be above 0",
        )
        require(
            self.method != "dkd" or not (self.mixup or self.cutmix),
            "method dkd needs one class a sample; mixup and cutmix give two",
        )
        for hint in self.hints:
            parse_hint(hint)


def distillation_loss(
    student: Tensor,
    teachers: Sequence[Tensor],
    targets: Tensor,
    config: DistillConfig,
) -> Tensor:
    """Return (1 - kd_ratio) * task + kd_ratio * method, the latter averaged over teachers by their weights.

    Args:
        student: Logits (N, K).
        teachers: Logits (N, K) of each.
        targets: Classes (N,), or shares (N, K) of mixed samples; not read where kd_ratio is 1, but for dkd.
        config: Loss, label smoothing, method, temperature, ratio and weights.
    """
    weights = config.teacher_weights or (1.0,) * len(teachers)
    taught = torch.zeros((), device=student.device)
    if config.kd_ratio > 0:
        terms = [weight * _taught(student, one, targets, config) for weight, one in zip(weights, teachers, strict=True)]
        taught = torch.stack(terms).sum() / sum(weights)
    if config.kd_ratio == 1:
        return taught
    task = task_loss(student, targets, config.loss, config.label_smoothing)
    return (1 - config.kd_ratio) * task + config.kd_ratio * taught


def distill(
    student: TorchModel,
    teachers: Model | Sequence[Model],
    data: Data,
    config: DistillConfig,
    *,
    workspace: Path | None = None,
    teacher_cache: Path | None = None,
    progress: Progress = no_progress,
    on_epoch: OnEpoch | None = None,
) -> Result[TorchModel, TrainReport]:
    """Train a student on its teachers' logits and the labels; keep its best epoch by validation accuracy.

    Teachers see the same augmented samples as the student, each normalised as that model wants it; the same texts, each
    in the tokens of its own tokenizer, unless features are compared place by place. Where the data has
    no labels, the best epoch is the one whose student agrees most with the first teacher.

    Args:
        student: What to train; left untouched.
        teachers: One or several: torch models or ONNX files.
        data: Train and validation splits are read.
        config: How.
        workspace: Folder for the resumable state; None keeps none.
        teacher_cache: Folder that teachers' logits are kept in and taken from; None runs them at every step.
        progress: Told of every step.
        on_epoch: Told of every epoch.

    Raises:
        ToolError: Teacher and student differ in classes or input, a hint's module does not exist or cannot be compared,
            the cache was made for something else, the data lacks labels that the loss needs, or training fails as
            `compress.training.train` says.
    """
    teachers = (teachers,) if isinstance(teachers, (TorchModel, OnnxModel)) else tuple(teachers)
    _check(student, teachers, data, config)
    parent = model_digest(student)
    if config.activation is not None:
        student = with_activation(student, config.activation)
    taught_by = tuple(model_digest(teacher) for teacher in teachers)
    hints = [parse_hint(hint) for hint in config.hints]
    ask = asking(
        teachers,
        data,
        student.preprocessing,
        provider=config.provider,
        threads=config.threads,
        feature_paths=[hint.teacher_path for hint in hints],
    )
    if teacher_cache is not None:
        ask = asking_once(ask, _open_cache(teacher_cache, student, taught_by, data, config), teachers)
    device = str(start_accelerator().device)
    said = [
        predict(one, data, "validation", device=device, provider=config.provider, threads=config.threads)
        for one in teachers
    ]
    if data.split("validation").is_labelled:
        judging, targets = data, said[0][1]
    else:
        judging, targets = _labelled_by(teachers[0], said[0][0], data), said[0][0].argmax(1)
    key = digest_of(["distill", asdict(config), parent, taught_by, data.fingerprint])
    module, report = train(
        student,
        judging,
        config,
        _loss(ask, hints, config),
        stage="distill",
        key=key,
        workspace=workspace,
        progress=progress,
        on_epoch=on_epoch,
        wrap=_hinted(student, teachers[0], hints),
    )
    done = step("distill", asdict(config), parent=parent, data=data.fingerprint, teachers=taught_by)
    report = report.model_copy(update={"teacher_accuracies": tuple(accuracy(logits, targets) for logits, _ in said)})
    return Result(replace(student, module=module, history=(*student.history, done)), report)


class _HintedStudent(nn.Module):
    """A student whose features, adapted, are put out beside its logits."""

    def __init__(self, student: Tapped, adapters: nn.ModuleList) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Features]:
        logits, features = self.student(*inputs)
        return logits, tuple(adapt(one) for adapt, one in zip(self.adapters, features, strict=True))


def _hinted(student: TorchModel, teacher: Model, hints: Sequence[Hint]) -> Wrap:
    """Return what makes a student put out its features, with adapters as the hints need them."""
    if not hints or not isinstance(teacher, TorchModel):
        return as_it_is
    paths = [hint.student_path for hint in hints]
    with torch.no_grad():
        _, ours = Tapped(frozen_copy(student, "cpu"), paths, "student")(*example_inputs(student, 2))
        _, theirs = Tapped(frozen_copy(teacher, "cpu"), [hint.teacher_path for hint in hints], "teacher")(
            *example_inputs(teacher, 2)
        )

    def wrap(module: nn.Module) -> nn.Module:
        return _HintedStudent(Tapped(module, paths, "student"), make_adapters(hints, ours, theirs))

    return wrap


def _loss(ask: Ask, hints: Sequence[Hint], config: DistillConfig) -> BatchLoss:
    def of_logits(outputs: object, batch: TrainBatch) -> Tensor:
        answer = ask(batch)
        return distillation_loss(logits_in(outputs), answer.logits, batch.targets, config)

    def of_features(outputs: tuple[Tensor, Features], batch: TrainBatch) -> Tensor:
        answer = ask(batch)
        logits, features = outputs
        return distillation_loss(logits, answer.logits, batch.targets, config) + hints_loss(
            hints, features, answer.features
        )

    return of_features if hints else of_logits


def _taught(student: Tensor, teacher: Tensor, targets: Tensor, config: DistillConfig) -> Tensor:
    match config.method:
        case "kd":
            return kd_loss(student, teacher, config.temperature)
        case "ls":
            return ls_loss(student, teacher, config.temperature)
        case "dkd":
            return dkd_loss(student, teacher, targets, config.temperature, config.dkd_beta)
        case "dist":
            return dist_loss(student, teacher, config.temperature)


def _check(student: TorchModel, teachers: Sequence[Model], data: Data, config: DistillConfig) -> None:
    check_augmentable(student, config)
    for teacher in teachers:
        check_same_task(student, teacher)
        check_reads(teacher, data)
        if isinstance(teacher, OnnxModel) and teacher.fixed_batch:
            raise ToolError(
                f"the teacher {teacher.name} has its batch fixed at {teacher.fixed_batch}, and training makes "
                "batches of any size; export it with a dynamic batch"
            )
    weights = config.teacher_weights
    require(
        not weights or len(weights) == len(teachers),
        f"there are {len(teachers)} teachers and {len(weights)} teacher_weights; give one each",
    )
    needs_labels = config.kd_ratio < 1 or config.method == "dkd"
    if needs_labels and not data.split("train").is_labelled:
        why = f"kd_ratio is {config.kd_ratio}" if config.kd_ratio < 1 else "method dkd reads them"
        raise ToolError(f"{data.reference} has no labels to train on, and {why}; set kd_ratio to 1 with kd, ls or dist")


def _open_cache(
    folder: Path, student: TorchModel, taught_by: Sequence[str], data: Data, config: DistillConfig
) -> TeacherCache:
    if config.hints:
        raise ToolError("a teacher cache holds logits only, and hints compare features at every step; drop one of them")
    if config.mixup or config.cutmix:
        raise ToolError(
            "a teacher cache holds what a teacher says of single samples, mixup and cutmix make new ones at every "
            "step; drop them or the cache"
        )
    split, text = data.split("train"), student.preprocessing.text
    description = {
        "data": data.fingerprint,
        "samples": len(split),
        "teacher": list(taught_by),
        "provider": config.provider,
        "image size or crop": student.preprocessing.model_dump(exclude={"scale", "mean", "std", "input", "text"}),
        "augmentation": {name: getattr(config, name) for name in IMAGE_AUGMENTATIONS},
        "seed": config.seed,
    }
    if text is not None:
        description["tokenizer"] = [text.tokenizer_sha256, text.max_length]
    return TeacherCache(
        folder,
        description,
        num_samples=len(split),
        num_outputs=len(student.labels) * len(taught_by),
        limit_bytes=round(config.teacher_cache_gb * 1e9),
    )


def _labelled_by(teacher: Model, logits: FloatArray, data: Data) -> Data:
    """Return data whose validation targets are the classes that a teacher's logits (N, K) are highest for."""
    split = data.split("validation")
    if len(logits) != len(split):
        raise ToolError(
            f"{len(split) - len(logits)} validation samples of {data.reference} cannot be read; without labels, what "
            f"{teacher.name} says of each is needed: remove them"
        )
    targets = split.targets.clone()
    targets[split.indices] = torch.from_numpy(logits.argmax(1))
    return replace(data, validation=replace(split, targets=targets))
