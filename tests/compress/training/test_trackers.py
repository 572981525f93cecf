"""Metrics sent to experiment trackers arrive there."""

import importlib.util
from pathlib import Path

import pytest

from compress.training.finetune import FinetuneConfig, finetune
from compress.training.trackers import tracking
from core.data import Data
from core.errors import ToolError
from core.torch_model import TorchModel

SETTINGS = {"epochs": 2, "batch_size": 64, "lr": 0.05, "freeze": ("0",)}


def trained(model: TorchModel, data: Data, tracker: str, output: Path) -> list[float]:
    with tracking([tracker], output, SETTINGS) as on_epoch:
        report = finetune(model, data, FinetuneConfig(**SETTINGS), on_epoch=on_epoch).report
    return [entry["validation_accuracy"] for entry in report.metrics]


def test_tensorboard_has_a_value_an_epoch(untrained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accuracies = trained(untrained, few_digits, "tensorboard", tmp_path / "student")
    events = EventAccumulator(str(tmp_path / "runs" / "student")).Reload()
    written = events.Scalars("validation_accuracy")
    assert [event.step for event in written] == [1, 2]
    assert [event.value for event in written] == pytest.approx(accuracies)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: onnxpress[track]")
def test_mlflow_has_a_value_an_epoch(
    untrained: TorchModel, few_digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    accuracies = trained(untrained, few_digits, "mlflow", tmp_path / "student")
    (run,) = mlflow.search_runs(experiment_names=["onnxpress"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation_accuracy")
    assert [metric.value for metric in history] == pytest.approx(accuracies)
    assert run.data.params["lr"] == "0.05"


def test_without_trackers_nothing_is_told() -> None:
    with tracking([], Path("out"), SETTINGS) as on_epoch:
        assert on_epoch is None


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"--track mlflow needs the package mlflow; pip install -e '\.\[track\]' in the clone of onnxpress"
    with pytest.raises(ToolError, match=message), tracking(["mlflow"], Path("out"), SETTINGS):
        pass
