"""An interrupted run goes on to the weights it would have had; what is damaged or another's is not taken."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import StopHereError, same_weights, stop_in_epoch

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.state import partial_folder
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel


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
        untrained, few_digits, config, workspace=workspace, progress=lambda *told: epochs_seen.add(told[-1])
    )
    assert epochs_seen == {"steps, epoch 3/4", "steps, epoch 4/4"}
    assert same_weights(resumed.model, finetune(untrained, few_digits, config).model)


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw", "lr": 0.01}, {"optimizer": "nadam", "lr": 0.01}, {"mixup": 0.4}, {"cutmix": 1.0}],
    ids=lambda settings: next(iter(settings.values())) if "optimizer" in settings else next(iter(settings)),
)
def test_optimizers_and_random_draws_go_on_where_they_were(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = FinetuneConfig(epochs=3, batch_size=64, **settings)
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial", progress=stop_in_epoch(3))
    resumed = finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial").model
    assert same_weights(resumed, finetune(untrained, few_digits, config).model)


def test_the_adapters_of_hints_go_on_where_they_were(
    untrained: TorchModel, few_digits: Data, tiny: str, tmp_path: Path
) -> None:
    teacher = load_torch_model(f"{tiny}:cnn,width=24", few_digits)
    config = DistillConfig(epochs=3, batch_size=64, hints=("fitnet:3=3,weight=1",), lr=0.01)
    with pytest.raises(StopHereError):
        distill(untrained, teacher, few_digits, config, workspace=tmp_path / "out.partial", progress=stop_in_epoch(3))
    resumed = distill(untrained, teacher, few_digits, config, workspace=tmp_path / "out.partial").model
    assert same_weights(resumed, distill(untrained, teacher, few_digits, config).model)


def test_two_runs_into_one_output_do_not_meet(
    untrained: TorchModel,
    few_digits: Data,
    tmp_path: Path,
    working_in: Callable[[str], AbstractContextManager[None]],
) -> None:
    """The first is killed, after which nothing is in the way."""
    config, workspace = FinetuneConfig(epochs=1, batch_size=64), partial_folder(tmp_path / "out")
    with working_in("out.partial"), pytest.raises(ToolError, match=r"another process works in .*out\.partial; wait"):
        finetune(untrained, few_digits, config, workspace=workspace)
    assert finetune(untrained, few_digits, config, workspace=workspace).report.epochs == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_disk_come_in_the_same_order_after_an_interruption(workers: int, tiny: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "val"), "ab", range(24)):
        path = tmp_path / "photos" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    data = load_data(str(tmp_path / "photos"))
    train = dataclasses.replace(data.train, samples=dataclasses.replace(data.train.samples, num_workers=workers))
    data = dataclasses.replace(data, train=train)
    model = load_torch_model(f"{tiny}:cnn", data)
    config, workspace = FinetuneConfig(epochs=3, batch_size=16), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(model, data, config, workspace=workspace, progress=stop_in_epoch(3))
    resumed = finetune(model, data, config, workspace=workspace).model
    assert same_weights(resumed, finetune(model, data, config).model)


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
    resumed = finetune(untrained, few_digits, config, workspace=workspace, progress=lambda *told: seen.append(told[-1]))
    assert seen[0] == f"steps, epoch {first_epoch}/3"
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


def test_settings_of_another_unfinished_run_are_mentioned(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, workspace = FinetuneConfig(epochs=3, batch_size=64), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(2))
    finetune(untrained, few_digits, dataclasses.replace(config, lr=0.01), workspace=workspace)
    assert "had other settings; starting anew in its place" in caplog.text


def test_the_average_survives_an_interruption(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=3, batch_size=64, ema_decay=0.9)
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial", progress=stop_in_epoch(3))
    resumed = finetune(untrained, few_digits, config, workspace=tmp_path / "out.partial").model
    assert same_weights(resumed, finetune(untrained, few_digits, config).model)


def test_a_run_that_goes_on_keeps_its_choice_of_speed(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace = FinetuneConfig(epochs=2, batch_size=64), tmp_path / "out.partial"
    with pytest.raises(StopHereError):
        finetune(untrained, few_digits, config, workspace=workspace, progress=stop_in_epoch(2))
    noted = json.loads((workspace / "execution.json").read_text())
    noted["execution"]["channels_last"] = False  # as if the trial had found so
    (workspace / "execution.json").write_text(json.dumps(noted))
    assert not finetune(untrained, few_digits, config, workspace=workspace).report.channels_last
    assert finetune(untrained, few_digits, dataclasses.replace(config, lr=0.01)).report.channels_last


def test_a_damaged_note_of_the_speed_is_written_anew(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    workspace = tmp_path / "out.partial"
    workspace.mkdir()
    (workspace / "execution.json").write_text("")
    finetune(untrained, few_digits, FinetuneConfig(epochs=1, batch_size=64), workspace=workspace)
    assert json.loads((workspace / "execution.json").read_text())["execution"]["precision"] == "float32"
