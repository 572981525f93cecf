"""The learning rate warms up and falls as its schedule says."""

import pytest

from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.torch_model import TorchModel


def test_the_learning_rate_warms_up_and_falls_to_zero(untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=4, batch_size=32, lr=0.1, warmup_epochs=1)
    rates = [entry["lr"] for entry in finetune(untrained, few_digits, config).report.metrics]
    assert max(rates) <= 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial"])
def test_the_rate_falls_from_where_the_warm_up_ended(schedule: str, untrained: TorchModel, few_digits: Data) -> None:
    config = FinetuneConfig(epochs=8, batch_size=32, lr=0.1, schedule=schedule, warmup_epochs=4)
    rates = [entry["lr"] for entry in finetune(untrained, few_digits, config).report.metrics]
    assert max(rates) > 0.09
    assert rates[5] == pytest.approx({"polynomial": 0.025}.get(schedule, 0.05), abs=0.006)
    assert rates[-1] < 0.005


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
