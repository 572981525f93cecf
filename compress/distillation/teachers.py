"""What teachers put out for a batch: logits, run or taken from a cache, and the features that hints compare."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.distillation.config import DistillConfig
from compress.distillation.hints import Features, Tapped
from compress.distillation.teacher_cache import TeacherCache
from compress.training.accelerator import start_accelerator
from compress.training.step import IMAGE_AUGMENTATIONS, TrainBatch
from core.compatibility import preprocessing_of
from core.data import Data
from core.errors import ToolError
from core.machine import determining_versions
from core.model import Model, model_digest
from core.onnx_model import OnnxModel
from core.predict import frozen_copy, logits_of
from core.preprocessing import Preprocessing, Tensors, model_input
from core.torch_model import TorchModel

COMPUTE_LOGITS = (
    "onnxpress",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
)
"""The packages that augment samples and run teachers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """What the teachers put out for a batch.

    Attributes:
        logits: Each teacher's, float32 (N, K).
        features: Of the first teacher, at the hints' paths.
    """

    logits: tuple[Tensor, ...]
    features: Features = ()


RunTeachers = Callable[[TrainBatch], TeacherOutputs]


def teacher_runner(
    teachers: Sequence[Model],
    data: Data,
    read_as: Preprocessing,
    *,
    provider: str,
    threads: int,
    feature_paths: Sequence[str] = (),
) -> RunTeachers:
    """Return the function that runs the teachers on a batch, each on samples normalised as that teacher wants them.

    A teacher with another tokenizer than the student's reads the batch's texts itself.

    Args:
        teachers: At least one; torch models run on the training device, ONNX files where `provider` says.
        data: What the samples are from.
        read_as: How they became what is in the batches: the student's preprocessing.
        provider: Of ONNX files.
        threads: Of their sessions; 0 takes the cores this process may use.
        feature_paths: Modules of the first teacher whose outputs are wanted.

    Raises:
        ToolError: Features are wanted of an ONNX file, or of a module that is not there.
    """
    if not feature_paths:
        runs = [_logits_run(one, data, read_as, provider, threads) for one in teachers]
        return lambda batch: TeacherOutputs(tuple(run(batch) for run in runs))
    with_features = _features_run(teachers[0], data, read_as, feature_paths)
    others = [_logits_run(one, data, read_as, provider, threads) for one in teachers[1:]]

    def run_teachers(batch: TrainBatch) -> TeacherOutputs:
        logits, features = with_features(batch)
        return TeacherOutputs((logits, *(run(batch) for run in others)), features)

    return run_teachers


def cached_teacher_runner(run_teachers: RunTeachers, cache: TeacherCache, teachers: Sequence[Model]) -> RunTeachers:
    """Return the function that takes logits from the cache where it holds them, and runs the teachers for the rest.

    Torch models answer in the batch's precision, as they do without a cache; what ONNX files say does not depend on it.
    """
    has_torch_models = any(isinstance(teacher, TorchModel) for teacher in teachers)

    def run_or_read(batch: TrainBatch) -> TeacherOutputs:
        positions, in_bfloat16 = batch.positions.cpu(), batch.use_bfloat16 and has_torch_models
        logits, known = cache.read(batch.variant, positions, in_bfloat16=in_bfloat16)
        if not known.all():
            missing = ~known
            fresh = torch.cat(run_teachers(_only(batch, missing)).logits, 1).cpu()
            logits[missing] = fresh
            cache.write(batch.variant, positions[missing], fresh, in_bfloat16=in_bfloat16)
        return TeacherOutputs(logits.to(batch.targets.device).chunk(len(teachers), 1))

    return run_or_read


def cache_description(
    student: TorchModel, teachers: Sequence[Model], data: Data, config: DistillConfig
) -> dict[str, Any]:
    """Return what cached logits depend on, by what a user would call it."""
    text = student.preprocessing.text
    return {
        "data": data.fingerprint,
        "samples": len(data.split("train")),
        "teacher": [model_digest(teacher) for teacher in teachers],
        **({"provider": config.provider} if any(isinstance(one, OnnxModel) for one in teachers) else {}),
        "kind of device": start_accelerator().device.type,
        **{name: version for name, version in determining_versions().items() if name in COMPUTE_LOGITS},
        "image size or crop": student.preprocessing.model_dump(exclude={"scale", "mean", "std", "input", "text"}),
        "augmentation": {name: getattr(config, name) for name in IMAGE_AUGMENTATIONS},
        "seed": config.seed,
    } | ({"tokenizer": [text.tokenizer_sha256, text.max_length]} if text is not None else {})


def open_teacher_cache(
    folder: Path, student: TorchModel, teachers: Sequence[Model], data: Data, config: DistillConfig
) -> TeacherCache:
    """Open the folder that keeps the teachers' logits, or make it.

    Raises:
        ToolError: It was made for something else, or what is to be trained with cannot be cached: features, and
            samples mixed anew at every step.
    """
    if config.hints:
        raise ToolError("a teacher cache holds logits only, and hints compare features at every step; drop one of them")
    if config.mixup or config.cutmix:
        raise ToolError(
            "a teacher cache holds what a teacher says of single samples, mixup and cutmix make new ones at every "
            "step; drop them or the cache"
        )
    return TeacherCache(
        folder,
        cache_description(student, teachers, data, config),
        num_samples=len(data.split("train")),
        num_outputs=len(student.labels) * len(teachers),
        limit_bytes=round(config.teacher_cache_gb * 1e9),
    )


def _inputs_of(teacher: Model, data: Data, read_as: Preprocessing) -> Callable[[TrainBatch], Tensors]:
    """Return the function that makes a batch what the teacher takes."""
    preprocessing = preprocessing_of(teacher, data)
    if preprocessing.text == read_as.text:
        return lambda batch: model_input(batch.samples, preprocessing)
    split = data.split("train")

    def read_again(batch: TrainBatch) -> Tensors:
        texts = split.take(batch.positions.cpu())
        found = texts.samples.fetch(texts.indices.tolist(), preprocessing)
        return tuple(one.to(batch.targets.device) for one in found)

    return read_again


def _logits_run(
    teacher: Model, data: Data, read_as: Preprocessing, provider: str, threads: int
) -> Callable[[TrainBatch], Tensor]:
    inputs_of = _inputs_of(teacher, data, read_as)
    device = start_accelerator().device
    if isinstance(teacher, OnnxModel) and provider == "cpu" and device.type == "cuda":
        logger.warning(
            "the teacher %s runs on the CPU while the student trains on %s; --provider cuda runs it there",
            teacher.name,
            device,
        )
    run = logits_of(teacher, device=str(device), provider=provider, threads=threads)

    def logits_for(batch: TrainBatch) -> Tensor:
        with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            return run(inputs_of(batch)).float()

    return logits_for


def _features_run(
    teacher: Model, data: Data, read_as: Preprocessing, paths: Sequence[str]
) -> Callable[[TrainBatch], tuple[Tensor, Features]]:
    if isinstance(teacher, OnnxModel):
        raise ToolError(
            f"hints need the teacher's inner features, which the ONNX file {teacher.name} does not put out; "
            "name the torch model or checkpoint it was exported from"
        )
    inputs_of = _inputs_of(teacher, data, read_as)
    tapped = Tapped(frozen_copy(teacher, str(start_accelerator().device)), paths, "teacher")

    def logits_and_features_for(batch: TrainBatch) -> tuple[Tensor, Features]:
        with torch.no_grad(), torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            logits, features = tapped(*inputs_of(batch))
        return logits.float(), tuple(feature.float() for feature in features)

    return logits_and_features_for


def _only(batch: TrainBatch, which: Tensor) -> TrainBatch:
    """Return the chosen samples of a batch."""
    which = which.to(batch.targets.device)
    samples = tuple(one[which] for one in batch.samples)
    return replace(batch, samples=samples, targets=batch.targets[which], positions=batch.positions[which])
