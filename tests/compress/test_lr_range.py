"""The learning-rate range test: what it suggests trains, and its plot opens offline."""

import dataclasses

import pytest

from compress.finetune import FinetuneConfig, finetune
from compress.lr_range_test import lr_range_plot, lr_range_test
from core.data import Data
from core.errors import ToolError
from core.torch_model import TorchModel


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_suggested_rate_trains(optimizer: str, untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(optimizer=optimizer, epochs=3, batch_size=32)
    report = lr_range_test(untrained, few_digits, config)
    assert list(report.lrs) == sorted(report.lrs)
    assert report.broken_lr is None or report.suggested_lr < report.broken_lr
    trained = finetune(untrained, few_digits, dataclasses.replace(config, lr=report.suggested_lr)).report
    assert trained.validation_accuracy > trained.initial_accuracy + 20


def test_the_test_stops_where_the_loss_breaks(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(optimizer="sgd", batch_size=32, momentum=0.99)
    report = lr_range_test(untrained, few_digits, config)
    assert report.broken_lr is not None
    assert len(report.lrs) < 100


def test_an_optimizer_that_searches_its_steps_has_no_rate(untrained: TorchModel, few_digits: Data) -> None:
    with pytest.raises(ToolError, match="lbfgs searches the length of its steps itself; it has no learning rate"):
        lr_range_test(untrained, few_digits, FinetuneConfig(optimizer="lbfgs"))


def test_the_plot_shows_the_suggestion_and_loads_nothing(untrained: TorchModel, few_digits: Data) -> None:
    report = lr_range_test(untrained, few_digits, FinetuneConfig(batch_size=32))
    page = lr_range_plot(report)
    assert f"suggested: {report.suggested_lr:.2g}" in page
    assert 'src="http' not in page


def test_several_processes_cannot_share_the_test(
    untrained: TorchModel, few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ToolError, match="the learning-rate range test runs in one process"):
        lr_range_test(untrained, few_digits, FinetuneConfig())
