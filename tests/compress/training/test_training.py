"""The training loop: it learns, keeps the best epoch, and says when it cannot."""

import dataclasses
import shutil
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from small_runs import losses, same_weights
from torch import nn

from compress.training import loop as training_module
from compress.training.config import TrainConfig
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.step import Loop, TrainBatch, _check_shareable, variant_of
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


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


def test_sgd_works_without_momentum(untrained: TorchModel, few_digits: Data) -> None:
    report = finetune(untrained, few_digits, FinetuneConfig(epochs=2, lr=0.1, batch_size=32, momentum=0.0)).report
    assert report.validation_accuracy > report.initial_accuracy


def test_the_kept_epoch_is_the_best_by_validation(untrained: TorchModel, few_digits: Data) -> None:
    report = finetune(untrained, few_digits, FinetuneConfig(epochs=4, batch_size=32, lr=0.1)).report
    accuracies = [entry["validation_accuracy"] for entry in report.metrics]
    assert report.validation_accuracy == max(accuracies) == accuracies[report.best_epoch - 1]


def test_the_model_that_went_in_is_untouched(untrained: TorchModel, few_digits: Data) -> None:
    before = {name: tensor.clone() for name, tensor in untrained.module.state_dict().items()}
    finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64))
    assert all(torch.equal(before[name], tensor) for name, tensor in untrained.module.state_dict().items())


def test_the_same_seed_gives_the_same_weights(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=1, batch_size=64, crop_padding=1, flip=True, seed=3)
    one, other = (finetune(untrained, few_digits, config).model for _ in range(2))
    assert same_weights(one, other)


def test_a_loss_that_is_not_finite_stops_with_advice(untrained: TorchModel, few_digits: Data) -> None:
    message = (
        r"loss became (nan|inf) at step 2 of 8 in epoch 1; its batch is the training samples "
        r"(\d+, ){7}\d+ \.\.\. \(32 in all\) with values in \[.+\]; lower --lr \(it is 1e"
    )
    with pytest.raises(ToolError, match=message):
        finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=32, lr=1e30, warmup_epochs=0))


def test_a_loss_that_was_not_looked_at_at_once_still_names_its_batch(
    untrained: TorchModel, few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    original = training_module.train_step

    def poisoned(loop: Loop, batch: TrainBatch, *progress: float) -> torch.Tensor:
        batches.append(batch.positions.tolist())
        loss = original(loop, batch, *progress)
        return loss * float("nan") if len(batches) == 5 else loss

    monkeypatch.setattr(training_module, "train_step", poisoned)
    monkeypatch.setattr(training_module, "CPU_STEPS_UNCHECKED", 3)  # as a GPU's are
    with pytest.raises(ToolError, match="became nan at step 5 of 8 in epoch 1") as raised:
        finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=32))
    assert len(batches) == 6
    named = ", ".join(map(str, batches[4][:8]))
    assert f"its batch is the training samples {named} ... (32 in all); lower" in str(raised.value)


def test_weights_that_the_last_update_spoiled_are_not_kept(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_module.train_step

    def poisoned(loop: Loop, batch: TrainBatch, share: float, number: int) -> torch.Tensor:
        loss = original(loop, batch, share, number)
        if number == 8:
            next(loop.module.parameters()).detach()[0] = float("inf")
        return loss

    monkeypatch.setattr(training_module, "train_step", poisoned)
    message = r"the weights became inf in 0\.weight at the last step of epoch 1; lower --lr \(it is 0\.\d+\)"
    with pytest.raises(ToolError, match=message):
        finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=32), workspace=tmp_path)
    assert not list(tmp_path.glob("state-*"))


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


@pytest.mark.parametrize("steps", [2, 3])
def test_accumulation_changes_memory_not_the_result(tiny: str, few_digits: Data, steps: int) -> None:
    model = load_torch_model(f"{tiny}:plain", few_digits)  # batch norm would see the parts
    whole, in_parts = (losses(model, few_digits, accumulation_steps=one) for one in (1, steps))
    assert in_parts == pytest.approx(whole, rel=1e-4)


def test_clipping_shortens_the_steps(untrained: TorchModel, few_digits: Data) -> None:
    def moved(clip: float) -> float:
        config = FinetuneConfig(epochs=1, batch_size=64, clip_grad_norm=clip, weight_decay=0)
        module = finetune(untrained, few_digits, config).model.module
        pairs = zip(module.parameters(), untrained.module.parameters(), strict=True)
        return sum(float((one - other).detach().square().sum()) for one, other in pairs)

    assert moved(0.01) < 0.01 * moved(0)


def test_an_average_of_the_weights_is_what_is_kept(untrained: TorchModel, few_digits: Data) -> None:
    settings = {"epochs": 1, "batch_size": 32, "lr": 0.05, "schedule": "constant"}
    plain, averaged = (
        finetune(untrained, few_digits, FinetuneConfig(**settings, ema_decay=decay)).model for decay in (0.0, 0.9)
    )
    assert not same_weights(plain, averaged)

    def distance(model: TorchModel) -> float:
        return float((model.module[0].weight - untrained.module[0].weight).norm())

    assert 0 < distance(averaged) < distance(plain)


def test_a_slow_average_does_not_spoil_a_short_run(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=4, batch_size=32, lr=0.1, ema_decay=0.999)
    report = finetune(untrained, few_digits, config).report
    assert report.validation_accuracy > report.initial_accuracy + 20


def test_patience_ends_a_run_that_no_longer_improves(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=30, batch_size=32, lr=0.1, schedule="constant", patience=2)
    report = finetune(untrained, few_digits, config).report
    assert report.epochs == len(report.metrics) < 30
    accuracies = [entry["validation_accuracy"] for entry in report.metrics]
    assert max(accuracies[-2:]) <= max(accuracies[:-2])


def test_a_plateau_is_no_improvement(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=9, batch_size=64, lr=1e-12, patience=3, freeze=("1", "3"))  # with their batch norm
    report = finetune(untrained, few_digits, config).report
    assert len({entry["validation_accuracy"] for entry in report.metrics}) == 1
    assert report.epochs == 4


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_each_loss_improves_the_model(loss: str, untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=4, batch_size=32, lr=0.3 if loss != "cross-entropy" else 0.1, loss=loss)
    report = finetune(untrained, few_digits, config).report
    assert report.validation_accuracy > report.initial_accuracy + 20


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_a_model_learns_from_mixed_samples(settings: dict[str, float], untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=4, batch_size=32, lr=0.1, **settings)
    report = finetune(untrained, few_digits, config).report
    assert report.validation_accuracy > report.initial_accuracy + 20


def test_augmentations_are_taken_in_turn(untrained: TorchModel, few_digits: Data) -> None:
    settings = {"epochs": 4, "lr": 1e-12, "crop_padding": 2, "flip": True, "batch_size": 256}
    fresh, in_turn = (losses(untrained, few_digits, **settings, augmentations=number) for number in (0, 2))
    assert len({round(loss, 5) for loss in fresh}) == 4
    assert in_turn[2:] == pytest.approx(in_turn[:2], rel=1e-5)


def test_a_short_run_takes_the_plain_way(untrained: TorchModel, few_digits: Data) -> None:
    report = finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64)).report
    assert (report.precision, report.channels_last, report.compile) == ("float32", True, False)
    assert len(report.speed_trial) == 1


def test_without_augmentation_there_is_one_variant(untrained: TorchModel, few_digits: Data) -> None:
    assert variant_of(TrainConfig(), 3) == 0
    assert variant_of(TrainConfig(flip=True), 3) == 3
    assert variant_of(TrainConfig(resized_crop=0.5, augmentations=2), 3) == 1


def test_parts_hold_two_samples_at_least(tiny: str, few_digits: Data) -> None:
    three = dataclasses.replace(few_digits, train=few_digits.train.take(torch.arange(3)))
    model = load_torch_model(f"{tiny}:cnn", few_digits)
    assert np.isfinite(losses(model, three, accumulation_steps=4)).all()


def test_parts_of_several_processes_hold_two_samples_at_least(
    few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "a batch of 4 over 2 processes in 2 accumulation steps leaves less than 2 samples a step"
    with pytest.raises(ToolError, match=message):
        _check_shareable(few_digits.split("train"), TrainConfig(batch_size=4, accumulation_steps=2), 2)


def test_a_run_that_ends_below_where_it_began_says_so(trained, few_digits, caplog: pytest.LogCaptureFixture) -> None:
    config = FinetuneConfig(epochs=1, batch_size=64, lr=1e3, precision="float32", compile=False)
    with caplog.at_level("WARNING"):
        report = finetune(trained, few_digits, config).report
    assert report.validation_accuracy < report.initial_accuracy
    assert "below the" in caplog.text
    assert "lower --lr (it is 1000)" in caplog.text


class Watch(nn.Conv2d):
    """Notes what it puts out in training: its type; and whether its weights' channels are last."""

    seen: ClassVar[set[tuple[torch.dtype, bool]]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        if self.training:
            self.seen.add((found.dtype, self.weight.is_contiguous(memory_format=torch.channels_last)))
        return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_student_runs_as_was_chosen(
    untrained: TorchModel, few_digits: Data, precision: Literal["float32", "bfloat16"], channels_last: bool
) -> None:
    layers = nn.Conv2d(1, 8, 3), Watch(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    model = dataclasses.replace(untrained, module=nn.Sequential(*layers))
    Watch.seen.clear()
    config = FinetuneConfig(epochs=1, batch_size=64, precision=precision, channels_last=channels_last, compile=False)
    report = finetune(model, few_digits, config).report
    assert (report.precision, report.channels_last) == (precision, channels_last)
    assert Watch.seen == {(getattr(torch, precision), channels_last)}
