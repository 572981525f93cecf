"""What teachers say of a batch: their logits, and the features that hints compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.accelerator import start_accelerator
from compress.hints import Features, Tapped
from compress.teacher_cache import TeacherCache
from compress.training_step import TrainBatch
from core.compatibility import preprocessing_of
from core.data import Data
from core.errors import ToolError
from core.model import Model
from core.onnx_model import OnnxModel
from core.predict import frozen_copy, logits_of
from core.preprocessing import Preprocessing, Tensors, model_input
from core.torch_model import TorchModel


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
    teachers: Sequence[Model],
    data: Data,
    read_as: Preprocessing,
    *,
    provider: str,
    threads: int,
    feature_paths: Sequence[str] = (),
) -> Ask:
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
        return lambda batch: Answer(tuple(run(batch) for run in runs))
    with_features = _features_run(teachers[0], data, read_as, feature_paths)
    others = [_logits_run(one, data, read_as, provider, threads) for one in teachers[1:]]

    def ask(batch: TrainBatch) -> Answer:
        logits, features = with_features(batch)
        return Answer((logits, *(run(batch) for run in others)), features)

    return ask


def asking_once(ask: Ask, cache: TeacherCache, teachers: Sequence[Model]) -> Ask:
    """Return the function that takes from the cache what it holds, and asks for the rest only.

    Torch models answer in the batch's precision, as they do without a cache; what ONNX files say does not depend on it.
    """
    has_torch_models = any(isinstance(one, TorchModel) for one in teachers)

    def ask_once(batch: TrainBatch) -> Answer:
        positions, in_bfloat16 = batch.positions.cpu(), batch.use_bfloat16 and has_torch_models
        logits, known = cache.read(batch.variant, positions, in_bfloat16=in_bfloat16)
        if not known.all():
            missing = ~known
            fresh = torch.cat(ask(_only(batch, missing)).logits, 1).cpu()
            logits[missing] = fresh
            cache.write(batch.variant, positions[missing], fresh, in_bfloat16=in_bfloat16)
        return Answer(logits.to(batch.targets.device).chunk(len(teachers), 1))

    return ask_once


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
    run = logits_of(teacher, device=str(start_accelerator().device), provider=provider, threads=threads)

    def answer(batch: TrainBatch) -> Tensor:
        with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            return run(inputs_of(batch)).float()

    return answer


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

    def answer(batch: TrainBatch) -> tuple[Tensor, Features]:
        with torch.no_grad(), torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=batch.use_bfloat16):
            logits, features = tapped(*inputs_of(batch))
        return logits.float(), tuple(one.float() for one in features)

    return answer


def _only(batch: TrainBatch, which: Tensor) -> TrainBatch:
    """Return the chosen samples of a batch."""
    which = which.to(batch.targets.device)
    samples = tuple(one[which] for one in batch.samples)
    return replace(batch, samples=samples, targets=batch.targets[which], positions=batch.positions[which])
