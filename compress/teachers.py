"""What teachers say of a batch: their logits, and the features that hints compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.accelerator import start_accelerator
from compress.hints import Features, Tapped
from compress.teacher_cache import TeacherCache
from compress.training_step import TrainBatch
from core.data import Data
from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.predict import frozen_copy, logits_of, preprocessing_of
from core.preprocessing import model_input, normalise
from core.torch_model import TorchModel

Teacher = TorchModel | OnnxModel


@dataclass(frozen=True, slots=True)
class Answer:
    """What the teachers say of a batch.

    Attributes:
        logits: Each teacher's, float32 (N, K).
        features: Of the first teacher, at the hints' paths.
    """

    logits: tuple[Tensor, ...]
    features: Features = ()


Ask = Callable[[TrainBatch], Answer]


def asking(
    teachers: Sequence[Teacher], data: Data, *, provider: str, threads: int, feature_paths: Sequence[str] = ()
) -> Ask:
    """Return the function that runs the teachers on a batch, each on samples normalised as that teacher wants them.

    Args:
        teachers: At least one; torch models run on the training device, ONNX files where `provider` says.
        data: What the samples are from.
        provider: Of ONNX files.
        threads: Of their sessions; 0 takes the cores this process may use.
        feature_paths: Modules of the first teacher whose outputs are wanted.

    Raises:
        ToolError: Features are wanted of an ONNX file, or of a module that is not there.
    """
    if not feature_paths:
        runs = [_logits_run(one, data, provider, threads) for one in teachers]
        return lambda batch: Answer(tuple(run(batch) for run in runs))
    with_features = _features_run(teachers[0], data, feature_paths)
    others = [_logits_run(one, data, provider, threads) for one in teachers[1:]]

    def ask(batch: TrainBatch) -> Answer:
        logits, features = with_features(batch)
        return Answer((logits, *(run(batch) for run in others)), features)

    return ask


def asking_once(ask: Ask, cache: TeacherCache, num_teachers: int) -> Ask:
    """Return the function that takes from the cache what it holds, and asks for the rest only, in float32."""

    def ask_once(batch: TrainBatch) -> Answer:
        positions = batch.positions.cpu()
        logits, known = cache.read(batch.variant, positions)
        if not known.all():
            missing = ~known
            fresh = torch.cat(ask(_only(batch, missing)).logits, 1).cpu()
            logits[missing] = fresh
            cache.write(batch.variant, positions[missing], fresh)
        return Answer(logits.to(batch.samples.device).chunk(num_teachers, 1))

    return ask_once


def _logits_run(teacher: Teacher, data: Data, provider: str, threads: int) -> Callable[[TrainBatch], Tensor]:
    preprocessing = preprocessing_of(teacher, data)
    run = logits_of(teacher, device=str(start_accelerator().device), provider=provider, threads=threads)

    def answer(batch: TrainBatch) -> Tensor:
        with torch.autocast(batch.samples.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            return run(model_input(batch.samples, preprocessing)).float()

    return answer


def _features_run(
    teacher: Teacher, data: Data, paths: Sequence[str]
) -> Callable[[TrainBatch], tuple[Tensor, Features]]:
    if isinstance(teacher, OnnxModel):
        raise ToolError(
            f"hints need the teacher's inner features, which the ONNX file {teacher.name} does not put out; "
            "name the torch model or checkpoint it was exported from"
        )
    preprocessing = preprocessing_of(teacher, data)
    tapped = Tapped(frozen_copy(teacher, str(start_accelerator().device)), paths, "teacher")

    def answer(batch: TrainBatch) -> tuple[Tensor, Features]:
        with torch.no_grad(), torch.autocast(batch.samples.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            logits, features = tapped(normalise(batch.samples, preprocessing))
        return logits.float(), tuple(one.float() for one in features)

    return answer


def _only(batch: TrainBatch, which: Tensor) -> TrainBatch:
    """Return the chosen samples of a batch, to be answered in float32 whatever the student runs in."""
    which = which.to(batch.samples.device)
    return TrainBatch(
        batch.samples[which], batch.targets[which], batch.positions[which], batch.variant, use_bfloat16=False
    )
