"""The training loop: it learns, keeps the best epoch, resumes, and says when it cannot."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress.distill import DistillConfig, distill
from compress.finetune import FinetuneConfig, finetune
from compress.train_config import TrainConfig
from compress.training_state import partial_folder
from compress.training_step import variant_of
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


def losses(model: TorchModel, data: Data, **settings: Any) -> list[float]:
    config = FinetuneConfig(**{"epochs": 2, "batch_size": 32, "lr": 0.05, **settings})
    return [entry["train_loss"] for entry in finetune(model, data, config).report.metrics]


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
        return sum(float((one - other).square().sum()) for one, other in pairs)

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


def test_the_average_survives_an_interruption(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=3, batch_size=64, ema_decay=0.9)
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial", progress=stop_in_epoch(3))
    resumed = finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial").model
    assert same_weights(resumed, finetune(untrained, few_digits, config).model)


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


def test_frozen_modules_stay_as_they_are(untrained: TorchModel, few_digits: Data) -> None:
    module = finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64, freeze=("0", "1"))).model.module
    before, after = untrained.module.state_dict(), module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("0.", "1.")) for name in changed)  # running statistics included
    assert any(name.startswith("3.") for name in changed)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("3.conv11",), r"there is no module '3.conv11' to freeze. Did you mean '3.conv\d'"),
        (("0", "1", "3", "6"), "freeze 0, 1, 3, 6 leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_said(
    freeze: tuple[str, ...], message: str, untrained: TorchModel, few_digits: Data
) -> None:
    with pytest.raises(ToolError, match=message):
        finetune(untrained, few_digits, FinetuneConfig(freeze=freeze))


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("cosine", 0.05, 0.0),
        ("linear", 0.05, 0.0),
        ("polynomial", 0.025, 0.0),
        ("step", 0.01, 0.001),
        ("constant", 0.1, 0.1),
    ],
)
def test_each_schedule_falls_as_it_says(
    schedule: str, middle: float, end: float, untrained: TorchModel, few_digits: Data
) -> None:
    config = FinetuneConfig(epochs=8, batch_size=32, lr=0.1, schedule=schedule, warmup_epochs=0)
    rates = [entry["lr"] for entry in finetune(untrained, few_digits, config).report.metrics]
    assert rates[3] == pytest.approx(middle, abs=0.004)
    assert rates[-1] == pytest.approx(end, abs=0.004)


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


def with_dropout(tiny: str, data: Data, tmp_path: Path) -> TorchModel:
    factory = tmp_path / "dropped.py"
    factory.write_text(
        "from timm.layers import DropPath\nfrom torch import nn\n"
        "def net(num_classes=10, in_chans=1):\n"
        "    drops = nn.Dropout(0.0), DropPath(0.0), DropPath(0.0)\n"
        "    return nn.Sequential(nn.Flatten(), *drops, nn.Linear(64, num_classes))\n"
    )
    return load_torch_model(f"{factory}:net", data)


@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_rates_of_dropping_are_set(name: str, tiny: str, few_digits: Data, tmp_path: Path) -> None:
    model = with_dropout(tiny, few_digits, tmp_path)
    without, with_it = losses(model, few_digits), losses(model, few_digits, **{name: 0.5})
    assert with_it[0] > without[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dropout", "the student has no dropout layer"),
        ("stochastic_depth", "no stochastic-depth layer .*drop_path_rate"),
    ],
)
def test_a_rate_without_its_layer_is_refused(name: str, message: str, untrained: TorchModel, few_digits: Data) -> None:
    with pytest.raises(ToolError, match=message):
        losses(untrained, few_digits, **{name: 0.5})


def test_another_activation_is_trained_and_remembered(tiny: str, few_digits: Data, tmp_path: Path) -> None:
    from core.checkpoint import load_checkpoint, save_checkpoint

    model = load_torch_model(f"{tiny}:plain", few_digits)
    trained = finetune(model, few_digits, FinetuneConfig(epochs=1, batch_size=64, activation="hardswish")).model
    assert isinstance(trained.module[1], nn.Hardswish)
    assert isinstance(model.module[1], nn.ReLU)
    save_checkpoint(trained, tmp_path / "out")
    assert isinstance(load_checkpoint(tmp_path / "out").module[1], nn.Hardswish)


@pytest.fixture
def photos(tmp_path: Path, digits: Data) -> Path:
    """Forty digits as files, of which three training images are cut short."""
    for index in range(40):
        folder = tmp_path / "photos" / "train" / str(int(digits.train.labels()[index]) % 2)
        folder.mkdir(parents=True, exist_ok=True)
        image = digits.train.samples.array[index, 0].numpy()
        Image.fromarray(np.kron(image, np.ones((8, 8), np.uint8))).save(folder / f"{index}.png")
    for path in sorted((tmp_path / "photos").rglob("*.png"))[:3]:
        path.write_bytes(path.read_bytes()[:-30])
    return tmp_path / "photos"


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_bad_samples_stop_with_the_name_of_one(allowed: int, photos: Path, tiny: str) -> None:
    data = load_data(str(photos), skip_bad=allowed)
    with pytest.raises(ToolError, match=r"cannot read the image .*\.png") as raised:
        load_torch_model(f"{tiny}:cnn", data)  # looks at them for its normalisation
    assert allowed == 0 or "3 samples cannot be read, --skip-bad allows 2" in str(raised.value)


def test_so_many_bad_samples_are_left_out(photos: Path, tiny: str) -> None:
    data = load_data(str(photos), skip_bad=3)
    model = load_torch_model(f"{tiny}:cnn", data)
    report = finetune(model, data, FinetuneConfig(epochs=2, batch_size=8)).report
    assert report.skipped_samples == 3
    assert distill(model, model, data, DistillConfig(epochs=1, batch_size=8)).report.skipped_samples == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr is 0; it must be above 0"),
        ({"patience": -1}, "patience is -1; it must not be negative"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must be in \[0, 1\)"),
        ({"resized_crop": 0.0}, r"resized_crop is 0.0; it must be in \(0, 1\]"),
        ({"optimizer": "cg", "resized_crop": 0.5}, "cg minimises one function of all samples, and resized_crop draws"),
        ({"rand_augment": 31}, "rand_augment is 31; a magnitude is at most 30"),
        ({"batch_size": 8, "accumulation_steps": 5}, "a batch of 8 in 5 accumulation steps leaves less than 2 samples"),
        ({"optimizer": "cg", "flip": True}, "cg minimises one function of all samples, and flip draws anew"),
        ({"optimizer": "lbfgs", "ema_decay": 0.9}, "ema_decay belongs to optimizers that go batch by batch"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        TrainConfig(**settings)


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


def test_a_short_run_takes_the_plain_way(untrained: TorchModel, few_digits: Data) -> None:
    report = finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64)).report
    assert (report.precision, report.channels_last, report.compile) == ("float32", True, False)
    assert len(report.speed_trial) == 1


def test_a_run_that_goes_on_keeps_its_choice_of_speed(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace = FinetuneConfig(epochs=2, batch_size=64), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(2))
    noted = json.loads((workspace / "speed.json").read_text())
    noted["speed"]["channels_last"] = False  # as if the trial had found so
    (workspace / "speed.json").write_text(json.dumps(noted))
    assert not finetune(untrained, few_digits, config, workspace=workspace).report.channels_last
    assert finetune(untrained, few_digits, dataclasses.replace(config, lr=0.01)).report.channels_last


def test_without_augmentation_there_is_one_variant(untrained: TorchModel, few_digits: Data) -> None:
    assert variant_of(TrainConfig(), 3) == 0
    assert variant_of(TrainConfig(flip=True), 3) == 3
    assert variant_of(TrainConfig(resized_crop=0.5, augmentations=2), 3) == 1


def test_weight_decay_holds_for_a_full_batch_optimizer(untrained: TorchModel, few_digits: Data) -> None:
    def size(weight_decay: float) -> float:
        config = FinetuneConfig(optimizer="lbfgs", epochs=8, weight_decay=weight_decay)
        return float(finetune(untrained, few_digits, config).model.module[-1].weight.norm())

    assert size(1.0) < 0.8 * size(0.0)


def test_parts_hold_two_samples_at_least(tiny: str, few_digits: Data) -> None:
    three = dataclasses.replace(few_digits, train=few_digits.train.take(torch.arange(3)))
    model = load_torch_model(f"{tiny}:cnn", few_digits)
    assert np.isfinite(losses(model, three, accumulation_steps=4)).all()


def test_settings_of_another_unfinished_run_are_mentioned(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, workspace = FinetuneConfig(epochs=3, batch_size=64), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(2))
    finetune(untrained, few_digits, dataclasses.replace(config, lr=0.01), workspace=workspace)
    assert "had other settings; starting anew in its place" in caplog.text


def test_a_damaged_note_of_the_speed_is_written_anew(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    workspace = tmp_path / "out.partial"
    workspace.mkdir()
    (workspace / "speed.json").write_text("")
    finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64), workspace=workspace)
    assert json.loads((workspace / "speed.json").read_text())["speed"]["precision"] == "float32"
