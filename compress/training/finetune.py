"""Train a model on labelled data."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from compress.training.config import TrainConfig
from compress.training.loop import OnEpoch, TrainReport, train
from compress.training.task_losses import labels_loss
from core.data import Data
from core.errors import ToolError
from core.history import digest_of, step
from core.progress import Progress, no_progress
from core.result import Result
from core.torch_model import TorchModel, torch_digest, with_activation


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(TrainConfig):
    """How to fine-tune: the training loop's own settings."""


def finetune(
    model: TorchModel,
    data: Data,
    config: FinetuneConfig,
    *,
    workspace: Path | None = None,
    progress: Progress = no_progress,
    on_epoch: OnEpoch | None = None,
) -> Result[TorchModel, TrainReport]:
    """Train a model on the labels and keep its best epoch by validation accuracy.

    Args:
        model: What to train; left untouched.
        data: Train and validation splits are read.
        config: How.
        workspace: Folder for the resumable state; None keeps none.
        progress: Told of every step.
        on_epoch: Told of every epoch.

    Raises:
        ToolError: The data has no labels, or training fails as `compress.training.loop.train` says.
    """
    if not data.split("train").is_labelled:
        raise ToolError(f"{data.reference} has no labels to train on; distil from a teacher with kd_ratio 1")
    if not data.split("validation").is_labelled:
        raise ToolError(f"the validation split of {data.reference} has no labels to judge an epoch by; give it some")
    parent = torch_digest(model)
    if config.activation is not None:
        model = with_activation(model, config.activation)
    key = digest_of(["finetune", asdict(config), parent, data.fingerprint])
    module, report = train(
        model,
        data,
        config,
        labels_loss(config),
        stage="finetune",
        key=key,
        workspace=workspace,
        progress=progress,
        on_epoch=on_epoch,
    )
    done = step("finetune", asdict(config), parent=parent, data=data.fingerprint)
    return Result(replace(model, module=module, history=(*model.history, done)), report)
