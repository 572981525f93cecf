"""Settings out of their range, or that contradict one another, are refused."""

from typing import Any

import pytest

from compress.training.config import TrainConfig
from core.errors import ToolError


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
