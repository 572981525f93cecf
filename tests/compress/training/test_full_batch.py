"""Training on the whole split at once: the optimizers that search along a line."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import StopHereError, losses

from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.data_reference import load_data
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
