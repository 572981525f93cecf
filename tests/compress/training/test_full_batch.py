"""Training on the whole split at once: the optimizers that search along a line."""

import copy
import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from small_runs import StopHereError, losses

from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


def test_a_full_batch_optimizer_beats_as_many_epochs_of_sgd(tiny: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    samples = random.normal(size=(120, 5)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x_train=samples, y_train=(samples @ random.normal(size=(5, 3))).argmax(1))
    data = load_data(str(tmp_path / "rows.npz"))
    model = load_torch_model(f"{tiny}:mlp", data)
    final = {
        optimizer: losses(model, data, optimizer=optimizer, epochs=20, weight_decay=0)[-1]
        for optimizer in ("sgd", "cg", "lbfgs")
    }
    assert final["cg"] < final["sgd"]
    assert final["lbfgs"] < final["sgd"]


def test_a_full_batch_optimizer_goes_on_after_an_interruption(
    untrained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    config = FinetuneConfig(epochs=4, optimizer="lbfgs", weight_decay=0)
    workspace = tmp_path / "out.partial"

    def stop_at_two(description: str, done: int, total: int, unit: str) -> None:
        if done == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_at_two)
    seen: list[int] = []
    report = finetune(
        untrained, few_digits, config, workspace=workspace, progress=lambda _, done, *__: seen.append(done)
    ).report
    assert seen == [3, 4]
    values = [entry["train_loss"] for entry in report.metrics]
    assert values == sorted(values, reverse=True)


def test_weight_decay_holds_for_a_full_batch_optimizer(untrained: TorchModel, few_digits: Data) -> None:
    def size(weight_decay: float) -> float:
        config = FinetuneConfig(optimizer="lbfgs", epochs=8, weight_decay=weight_decay)
        return float(finetune(untrained, few_digits, config).model.module[-1].weight.detach().norm())

    assert size(1.0) < 0.8 * size(0.0)


def test_biases_alone_can_be_trained(few_digits: Data, tmp_path: Path) -> None:
    factory = tmp_path / "biased.py"
    factory.write_text(
        "import torch\nfrom torch import nn\n"
        "class Shift(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.bias = nn.Parameter(torch.zeros(10))\n"
        "    def forward(self, x):\n        return x + self.bias\n"
        "def net(num_classes=10, in_chans=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), Shift())\n"
    )
    model = load_torch_model(f"{factory}:net", few_digits)
    found = losses(model, few_digits, optimizer="lbfgs", epochs=3, freeze=("1",), l1=0.1)
    assert found[-1] < found[0]


@pytest.mark.parametrize("optimizer", ["lbfgs", "cg"])
def test_a_loss_that_is_not_finite_names_the_optimizer(
    optimizer: Literal["lbfgs", "cg"], untrained: TorchModel, few_digits: Data
) -> None:
    module = copy.deepcopy(untrained.module)
    with torch.no_grad():
        module[-1].weight *= 1e30  # whose squares float32 does not hold
    model = dataclasses.replace(untrained, module=module)
    message = (
        f"the training loss became inf with {optimizer}; its line search went too far: take adamw, or start from a "
        "trained model"
    )
    with pytest.raises(ToolError, match=message):
        finetune(model, few_digits, FinetuneConfig(optimizer=optimizer))


@pytest.mark.parametrize("optimizer", ["lbfgs", "cg"])
def test_a_start_that_no_step_is_better_than_is_refused(
    optimizer: Literal["lbfgs", "cg"], few_digits: Data, tmp_path: Path
) -> None:
    factory = tmp_path / "shifted.py"
    factory.write_text(
        "import torch\nfrom torch import nn\n"
        "class Shift(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.bias = nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, x):\n        return x + self.bias  # which softmax does not see\n"
        "def net(num_classes=10, in_chans=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), Shift())\n"
    )
    model = load_torch_model(f"{factory}:net", few_digits)
    message = (
        f"{optimizer} found no step that lowers the loss; it is at a minimum already, or too rough for a line search: "
        "take adamw"
    )
    with pytest.raises(ToolError, match=message):
        finetune(model, few_digits, FinetuneConfig(optimizer=optimizer, freeze=("1",)))


def test_a_line_search_is_not_shared_by_several_processes(
    untrained: TorchModel, few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ToolError, match="cg runs in one process; take sgd or adamw to share the work"):
        finetune(untrained, few_digits, FinetuneConfig(optimizer="cg"))
