"""Train a student on what teachers say, and on the labels."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.distillation.config import DistillConfig
from compress.distillation.hints import Features, Hint, Tapped, hints_loss, make_adapters, parse_hint
from compress.distillation.logit_losses import dist_loss, dkd_loss, kd_loss, ls_loss
from compress.distillation.teachers import RunTeachers, cached_teacher_runner, open_teacher_cache, teacher_runner
from compress.training.accelerator import start_accelerator
from compress.training.loop import OnEpoch, TrainReport, train
from compress.training.step import BatchLoss, TrainBatch, Wrap, as_it_is, check_augmentable
from compress.training.task_losses import task_loss
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
from core.sessions import Array, FloatArray
from core.tokenizing import Tokenization
from core.torch_model import TorchModel, example_inputs, with_activation


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
        terms = [
            weight * _teacher_loss(student, logits, targets, config)
            for weight, logits in zip(weights, teachers, strict=True)
        ]
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
    in the tokens of its own tokenizer. Where the data has no labels, the best epoch is the one whose student agrees
    most with the first teacher.

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
            `compress.training.loop.train` says.
    """
    teachers = (teachers,) if isinstance(teachers, (TorchModel, OnnxModel)) else tuple(teachers)
    _check(student, teachers, data, config)
    parent = model_digest(student)
    if config.activation is not None:
        student = with_activation(student, config.activation)
    teacher_digests = tuple(model_digest(teacher) for teacher in teachers)
    hints = [parse_hint(hint) for hint in config.hints]
    wrap = _hinted(student, teachers[0], hints)
    run_teachers = teacher_runner(
        teachers,
        data,
        student.preprocessing,
        provider=config.provider,
        threads=config.threads,
        feature_paths=[hint.teacher_path for hint in hints],
    )
    if teacher_cache is not None:
        cache = open_teacher_cache(teacher_cache, student, teachers, data, config)
        run_teachers = cached_teacher_runner(run_teachers, cache, teachers)
    # What a cache has room for changes no result: a run that found it full goes on with more.
    settings = {name: value for name, value in asdict(config).items() if name != "teacher_cache_gb"}
    predictions = [_predicted(teacher, data, config) for teacher in teachers]
    judged_on, targets = _with_targets(data, teachers[0], *predictions[0])
    module, report = train(
        student,
        judged_on,
        config,
        _loss(run_teachers, hints, config),
        stage="distill",
        key=digest_of(["distill", settings, parent, teacher_digests, data.fingerprint]),
        workspace=workspace,
        progress=progress,
        on_epoch=on_epoch,
        wrap=wrap,
    )
    done = step("distill", asdict(config), parent=parent, data=data.fingerprint, teachers=teacher_digests)
    accuracies = tuple(accuracy(logits, targets) for logits, _ in predictions)
    report = report.model_copy(update={"teacher_accuracies": accuracies})
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
    _check_same_tokens(student, teacher, hints, ours)

    def wrap(module: nn.Module) -> nn.Module:
        return _HintedStudent(Tapped(module, paths, "student"), make_adapters(hints, ours, theirs))

    return wrap


def _loss(run_teachers: RunTeachers, hints: Sequence[Hint], config: DistillConfig) -> BatchLoss:
    def of_logits(outputs: object, batch: TrainBatch) -> Tensor:
        return distillation_loss(logits_in(outputs), run_teachers(batch).logits, batch.targets, config)

    def of_features(outputs: tuple[Tensor, Features], batch: TrainBatch) -> Tensor:
        theirs = run_teachers(batch)
        logits, features = outputs
        return distillation_loss(logits, theirs.logits, batch.targets, config) + hints_loss(
            hints, features, theirs.features
        )

    return of_features if hints else of_logits


def _teacher_loss(student: Tensor, teacher: Tensor, targets: Tensor, config: DistillConfig) -> Tensor:
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


def _check_same_tokens(
    student: TorchModel, teacher: TorchModel, hints: Sequence[Hint], features: Sequence[Tensor]
) -> None:
    """Check that features of texts that are compared token by token, (N, L, C), are of the same tokens."""
    ours, theirs = student.preprocessing.text, teacher.preprocessing.text
    if ours is None or theirs is None or _cuts(ours) == _cuts(theirs):
        return
    by_token = [
        hint for hint, feature in zip(hints, features, strict=True) if feature.ndim > 2 and hint.method != "rkd"
    ]
    if by_token:
        raise ToolError(
            f"hint {by_token[0].method} compares {by_token[0].student_path!r} with {by_token[0].teacher_path!r} token "
            f"by token, and {student.name} and {teacher.name} cut texts into tokens differently; rkd compares samples "
            "with one another and takes any two"
        )


def _cuts(text: Tokenization) -> tuple[str, int, str]:
    """Return what decides which tokens a text becomes, and where they stand."""
    return text.tokenizer, text.max_length, text.padding_side


def _predicted(teacher: Model, data: Data, config: DistillConfig) -> tuple[FloatArray, Array]:
    """Run a teacher over validation: its logits (N, K), and the targets (N,)."""
    device = str(start_accelerator().device)
    return predict(teacher, data, "validation", device=device, provider=config.provider, threads=config.threads)


def _with_targets(data: Data, teacher: Model, logits: FloatArray, targets: Array) -> tuple[Data, Array]:
    """Return data to judge the student on, with its validation targets.

    Where it has no labels, the targets are the classes that the teacher's logits (N, K) are highest for.
    """
    split = data.split("validation")
    if split.is_labelled:
        return data, targets
    if len(logits) != len(split):
        raise ToolError(
            f"{len(split) - len(logits)} of the {len(split)} validation samples of {data.reference} cannot be read; "
            f"without labels, what {teacher.name} says of each is needed: remove them"
        )
    classes = logits.argmax(1)
    of_samples = split.targets.clone()
    of_samples[split.indices] = torch.from_numpy(classes)
    return replace(data, validation=replace(split, targets=of_samples)), classes
