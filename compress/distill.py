"""Train a student on a teacher's logits and the labels."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from compress.logit_losses import dist_loss, dkd_loss, kd_loss, ls_loss
from compress.training import TrainConfig, TrainReport, train
from core.data import Data
from core.errors import require
from core.history import digest_of, step
from core.onnx_model import OnnxModel
from core.predict import Logits, accuracy, check_reads, check_same_task, logits_of, predict, preprocessing_of
from core.preprocessing import Preprocessing, normalise
from core.progress import Progress, no_progress
from core.result import Result
from core.torch_model import TorchModel, torch_digest

Method = Literal["kd", "ls", "dkd", "dist"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(TrainConfig):
    """How to distil.

    Attributes:
        method: What the teacher's logits teach, as in `compress.logit_losses`: ``kd`` (their softened distribution),
            ``ls`` (that of standardized logits), ``dkd`` (target and other classes apart) or ``dist`` (correlations).
        temperature: T, which softens both distributions; above 0.
        kd_ratio: Share of the teacher's loss, in [0, 1]: loss = (1 - kd_ratio) * task + kd_ratio * method.
        provider: Where a teacher given as an .onnx file runs.
        threads: Threads of such a teacher; 0 takes the cores this process may use.
    """

    method: Method = "kd"
    temperature: float = 4.0
    kd_ratio: float = 0.9
    provider: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        super(DistillConfig, self).__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        require(0 <= self.kd_ratio <= 1, f"kd_ratio is {self.kd_ratio}; it must be in [0, 1]")


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    method: Method,
    temperature: float,
    kd_ratio: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return (1 - kd_ratio) * cross-entropy + kd_ratio * method: logits (N, K), (N, K), targets (N,) -> scalar."""
    task = functional.cross_entropy(student, targets, label_smoothing=label_smoothing)
    if kd_ratio == 0:
        return task
    return (1 - kd_ratio) * task + kd_ratio * _taught(student, teacher, targets, method, temperature)


def distill(
    student: TorchModel,
    teacher: TorchModel | OnnxModel,
    data: Data,
    config: DistillConfig,
    *,
    workspace: Path | None = None,
    progress: Progress = no_progress,
) -> Result[TorchModel, TrainReport]:
    """Train a student on the teacher's logits and the labels; keep its best epoch by validation accuracy.

    The teacher sees the same augmented samples as the student, each normalised as that model wants it.

    Args:
        student: What to train; left untouched.
        teacher: A torch model or an ONNX file.
        data: Train and validation splits are read.
        config: How.
        workspace: Folder for the resumable state; None keeps none.
        progress: Told of every step.

    Raises:
        ToolError: Teacher and student differ in classes or input, the loss is not finite, or a sample cannot be read.
    """
    check_same_task(student, teacher)
    check_reads(teacher, data)
    parent = torch_digest(student)
    taught_by = teacher.sha256 if isinstance(teacher, OnnxModel) else torch_digest(teacher)
    teach = _teacher(teacher, preprocessing_of(teacher, data), config)

    def loss(logits: Tensor, samples: Tensor, targets: Tensor) -> Tensor:
        return distillation_loss(
            logits,
            teach(samples),
            targets,
            method=config.method,
            temperature=config.temperature,
            kd_ratio=config.kd_ratio,
            label_smoothing=config.label_smoothing,
        )

    key = digest_of(["distill", asdict(config), parent, taught_by, data.fingerprint])
    module, report = train(
        student, data, config, loss, stage="distill", key=key, workspace=workspace, progress=progress
    )
    done = step("distill", asdict(config), parent=parent, data=data.fingerprint, teachers=(taught_by,))
    logits, targets = predict(teacher, data, "validation", provider=config.provider, threads=config.threads)
    report = report.model_copy(update={"teacher_accuracy": accuracy(logits, targets)})
    return Result(replace(student, module=module, history=(*student.history, done)), report)


def _taught(student: Tensor, teacher: Tensor, targets: Tensor, method: Method, temperature: float) -> Tensor:
    match method:
        case "kd":
            return kd_loss(student, teacher, temperature)
        case "ls":
            return ls_loss(student, teacher, temperature)
        case "dkd":
            return dkd_loss(student, teacher, targets, temperature)
        case "dist":
            return dist_loss(student, teacher, temperature)


def _teacher(teacher: TorchModel | OnnxModel, preprocessing: Preprocessing, config: DistillConfig) -> Logits:
    """Return the function from raw samples (N, C, H, W) to the teacher's logits (N, K)."""
    device = str(Accelerator().device)
    run = logits_of(teacher, device=device, provider=config.provider, threads=config.threads)
    return lambda samples: run(normalise(samples, preprocessing))
