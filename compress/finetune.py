"""Train a model on labelled data."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from compress.training import TrainConfig, TrainReport, train
from core.data import Data
from core.history import digest_of, step
from core.progress import Progress, no_progress
from core.result import Result
from core.torch_model import TorchModel, torch_digest


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
) -> Result[TorchModel, TrainReport]:
    """Train a model with cross-entropy and keep its best epoch by validation accuracy.

    Args:
        model: What to train; left untouched.
        data: Train and validation splits are read.
        config: How.
        workspace: Folder for the resumable state; None keeps none.
        progress: Told of every step.

    Raises:
        ToolError: The loss is not finite, or a sample cannot be read.
    """
    parent = torch_digest(model)

    def loss(logits: Tensor, samples: Tensor, targets: Tensor) -> Tensor:
        del samples
        return functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)

    key = digest_of(["finetune", asdict(config), parent, data.fingerprint])
    module, report = train(model, data, config, loss, stage="finetune", key=key, workspace=workspace, progress=progress)
    done = step("finetune", asdict(config), parent=parent, data=data.fingerprint)
    return Result(replace(model, module=module, history=(*model.history, done)), report)
