"""The training loop: it learns, keeps the best epoch, resumes, and says when it cannot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.finetune import FinetuneConfig, finetune
from compress.training_state import partial_folder
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


class StopHereError(Exception):
    """Stands for whatever ends a process."""


def stop_in_epoch(number: int):
    def progress(description: str, done: int, total: int, unit: str) -> None:
        if f"epoch {number}/" in description and done == 2:
            raise StopHereError

    return progress


def same_weights(one: TorchModel, other: TorchModel) -> bool:
    a, b = one.module.state_dict(), other.module.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_finetuning_learns(trained: TorchModel, untrained: TorchModel) -> None:
    assert trained.history[-1].stage == "finetune"
    assert not same_weights(trained, untrained)


OPTIMIZERS = {
    "sgd": 0.1,
    "adam": 0.01,
    "adamw": 0.01,
    "nadam": 0.01,
    "adamax": 0.02,
    "adagrad": 0.03,
    "adadelta": 1.0,
    "lbfgs": 1.0,
    "cg": 1.0,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_improves_the_model(untrained: TorchModel, few_digits: Data, optimizer: str) -> None:
    lr = OPTIMIZERS[optimizer]
    epochs = 12 if optimizer in ("lbfgs", "cg") else 3
    config = FinetuneConfig(epochs=epochs, batch_size=32, optimizer=optimizer, lr=lr, label_smoothing=0.1)
    report = finetune(untrained, few_digits, config).report
    assert report.validation_accuracy > report.initial_accuracy + 20


def test_the_kept_epoch_is_the_best_by_validation(untrained: TorchModel, few_digits: Data) -> None:
    report = finetune(untrained, few_digits, FinetuneConfig(epochs=4, batch_size=32, lr=0.1)).report
    accuracies = [entry["validation_accuracy"] for entry in report.metrics]
    assert report.validation_accuracy == max(accuracies) == accuracies[report.best_epoch - 1]


def test_the_learning_rate_warms_up_and_falls_to_zero(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=4, batch_size=32, lr=0.1, warmup_epochs=1)
    rates = [entry["lr"] for entry in finetune(untrained, few_digits, config).report.metrics]
    assert max(rates) <= 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


def test_the_model_that_went_in_is_untouched(untrained: TorchModel, few_digits: Data) -> None:
    before = {name: tensor.clone() for name, tensor in untrained.module.state_dict().items()}
    finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64))
    assert all(torch.equal(before[name], tensor) for name, tensor in untrained.module.state_dict().items())


def test_the_same_seed_gives_the_same_weights(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=1, batch_size=64, crop_padding=1, flip=True, seed=3)
    one, other = (finetune(untrained, few_digits, config).model for _ in range(2))
    assert same_weights(one, other)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    untrained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    config = FinetuneConfig(epochs=4, batch_size=64, crop_padding=1, flip=True)
    workspace = partial_folder(tmp_path / "out")
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(3))
    lines = (workspace / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    epochs_seen = set()
    resumed = finetune(
        untrained, few_digits, config, workspace=workspace, progress=lambda text, *_: epochs_seen.add(text)
    )
    assert epochs_seen == {"finetune epoch 3/4", "finetune epoch 4/4"}
    assert same_weights(resumed.model, finetune(untrained, few_digits, config).model)


@pytest.mark.parametrize("keep_bytes", [0, 100, 5000])
@pytest.mark.parametrize(("damaged", "first_epoch"), [(1, 2), (2, 1)], ids=["the-last", "both"])
def test_a_damaged_state_costs_an_epoch_not_the_result(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, keep_bytes: int, damaged: int, first_epoch: int
) -> None:
    config, workspace = FinetuneConfig(epochs=3, batch_size=64), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(3))
    states = sorted(workspace.glob("state-*"), key=lambda state: -state.stat().st_mtime_ns)
    assert len(states) == 2
    for state in states[:damaged]:
        state.write_bytes(state.read_bytes()[:keep_bytes])
    seen: list[str] = []
    resumed = finetune(untrained, few_digits, config, workspace=workspace, progress=lambda text, *_: seen.append(text))
    assert seen[0] == f"finetune epoch {first_epoch}/3"
    assert len(resumed.report.metrics) == 3
    assert same_weights(resumed.model, finetune(untrained, few_digits, config).model)


def test_a_state_of_another_run_is_ignored(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    workspace = tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(
            untrained,
            few_digits,
            FinetuneConfig(epochs=3, batch_size=64),
            workspace=workspace,
            progress=stop_in_epoch(2),
        )
    other = FinetuneConfig(epochs=3, batch_size=64, lr=0.01)
    assert same_weights(
        finetune(untrained, few_digits, other, workspace=workspace).model, finetune(untrained, few_digits, other).model
    )


def test_a_loss_that_is_not_finite_stops_with_advice(untrained: TorchModel, few_digits: Data) -> None:
    message = (
        r"loss became (nan|inf) at step 2 of 8 in epoch 1; its batch's samples lie in \[.+\]; lower --lr \(it is 1e"
    )
    with pytest.raises(ToolError, match=message):
        finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=32, lr=1e30, warmup_epochs=0))


def test_samples_that_are_not_images_are_trained_on_but_not_flipped(tiny: str, tmp_path: Path) -> None:
    targets = np.arange(90) % 3
    samples = np.eye(3, 5, dtype=np.float32)[targets]
    np.savez(tmp_path / "rows.npz", x_train=samples, y_train=targets)
    data = load_data(str(tmp_path / "rows.npz"))
    model = load_torch_model(f"{tiny}:mlp", data)
    assert finetune(model, data, FinetuneConfig(epochs=5, batch_size=8, lr=0.5)).report.validation_accuracy == 100
    with pytest.raises(ToolError, match=r"flip augments images; the samples have shape \(5,\)"):
        finetune(model, data, FinetuneConfig(flip=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_trains_to_the_same(untrained: TorchModel, few_digits: Data) -> None:
    losses = [
        finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64, compile=compiled)).report.metrics[0]
        for compiled in (False, True)
    ]
    assert losses[1]["train_loss"] == pytest.approx(losses[0]["train_loss"], rel=1e-3)
