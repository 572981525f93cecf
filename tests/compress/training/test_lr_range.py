"""The learning-rate range test: what it suggests trains, and its plot opens offline."""

import copy
import dataclasses

import pytest
import torch

from compress.training.finetune import FinetuneConfig, finetune
from compress.training.lr_range_test import _is_broken, _report, lr_range_plot, lr_range_test
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


def test_chance_at_the_first_steps_is_no_break() -> None:
    already_good = [0.002, 0.0021, 0.0019]
    assert not _is_broken(0.03, already_good)
    quiet = [*already_good, *[0.002, 0.009] * 5]
    assert not _is_broken(0.0085, quiet)
    assert _is_broken(0.01, quiet)
    assert _is_broken(float("nan"), already_good)


@pytest.mark.parametrize(
    ("losses", "broken_lr", "said"),
    [
        ([0.1, *[0.2] * 30], 1.0, "the loss fell at no rate: the model has learned this data already, or cannot"),
        ([3.0 - index / 20 for index in range(30)], None, "the loss still fell at 0.03, the highest rate tried"),
        ([3.0] * 11 + [2.0, 9.0], 0.5, ""),
    ],
)
def test_a_suggestion_that_means_little_is_told(
    losses: list[float], broken_lr: float | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lrs = [(index + 1) / 1000 for index in range(len(losses))]
    _report(FinetuneConfig(), lrs, losses, broken_lr)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


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


def test_a_loss_that_is_not_finite_from_the_start_suggests_nothing(untrained: TorchModel, few_digits: Data) -> None:
    module = copy.deepcopy(untrained.module)
    torch.nn.init.constant_(module[-1].bias, float("nan"))
    model = dataclasses.replace(untrained, module=module)
    message = "the loss was not finite at the very first step; look at the data and the model's weights"
    with pytest.raises(ToolError, match=message):
        lr_range_test(model, few_digits, FinetuneConfig(batch_size=32))
