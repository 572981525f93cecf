"""How others train a student of a teacher: the textbook's loop, timm's task, torchdistill's box; each step by step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from core.data import Data
from core.machine import available_cores
from core.predict import frozen_copy
from core.preprocessing import Preprocessing
from core.torch_model import TorchModel

BATCH, TEMPERATURE, KD_RATIO = 128, 4.0, 0.9

Steps = Iterator[None]
"""Each ``next`` trains on one batch."""


class _Images(Dataset[tuple[Any, int]]):
    """CIFAR-10 a sample at a time, as torchvision gives it."""

    def __init__(self, data: Data) -> None:
        split = data.split("train")
        (self._images,), self._targets = split.samples.fetch(split.indices.tolist(), Preprocessing()), split.labels()
        self._transform = v2.Compose(
            [
                v2.ToPILImage(),
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._images[index]), int(self._targets[index])


def _loader(data: Data) -> "DataLoader[tuple[Any, int]]":
    return DataLoader(_Images(data), BATCH, shuffle=True, num_workers=available_cores(), drop_last=True)


def plain_loop(student: TorchModel, teacher: TorchModel, data: Data) -> Steps:
    """Train as the textbook does: float32, eager, a sample at a time, the teacher at every step."""
    module = frozen_copy(student, "cpu").to(memory_format=torch.contiguous_format).requires_grad_(True).train()
    taught_by = frozen_copy(teacher, "cpu").to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    while True:
        for inputs, targets in _loader(data):
            with torch.no_grad():
                answers = taught_by(inputs)
            logits = module(inputs)
            soft = functional.kl_div(
                functional.log_softmax(logits / TEMPERATURE, 1),
                functional.softmax(answers / TEMPERATURE, 1),
                reduction="batchmean",
            )
            loss = (1 - KD_RATIO) * functional.cross_entropy(logits, targets) + KD_RATIO * TEMPERATURE**2 * soft
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            yield


def timm_loop(student: TorchModel, teacher: TorchModel, data: Data) -> Steps:
    """Train with timm's own task for logits, on the plain loop's data."""
    from timm.task import LogitDistillationTask

    module = frozen_copy(student, "cpu").to(memory_format=torch.contiguous_format).requires_grad_(True).train()
    for name, value in {"num_classes": len(student.labels), "in_chans": student.inputs[0].shape[0]}.items():
        setattr(module, name, value)  # timm's task asks for them
    task = LogitDistillationTask(
        student_model=module,
        teacher_model=frozen_copy(teacher, "cpu").to(memory_format=torch.contiguous_format),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - KD_RATIO,
        distill_loss_weight=KD_RATIO,
        temperature=TEMPERATURE,
        verbose=False,
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    while True:
        for inputs, targets in _loader(data):
            loss = task(inputs, targets)["loss"]
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            yield


def torchdistill_loop(student: TorchModel, teacher: TorchModel, data: Data) -> Steps:
    """Train with torchdistill's DistillationBox and its KDLoss, on the plain loop's data."""
    from torchdistill.core.distillation import get_distillation_box

    kd: dict[str, Any] = {"student_module_path": ".", "student_module_io": "output"}
    kd |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    kd |= {"temperature": TEMPERATURE, "alpha": KD_RATIO, "reduction": "batchmean"}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "cifar10",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": available_cores(), "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(
        frozen_copy(teacher, "cpu").to(memory_format=torch.contiguous_format),
        frozen_copy(student, "cpu").to(memory_format=torch.contiguous_format).requires_grad_(True),
        {"cifar10": _Images(data)},
        config,
        torch.device("cpu"),
        None,
        False,
        1,
        None,
    )
    while True:
        box.pre_epoch_process(epoch=0)
        for inputs, targets, *rest in box.train_data_loader:
            loss = box.forward_process(inputs, targets, *rest)
            box.post_forward_process(loss)
            yield
