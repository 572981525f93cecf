"""A recipe's table becomes a frozen config, or an error that names the table, the key and the reason."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from core.errors import ToolError, require
from core.typed_config import check_keys, field_names, typed_config


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    model: str
    epochs: int = 1
    importance: Literal["magnitude", "taylor"] = "magnitude"
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}; it must be at least 1")


def test_plain_values_become_a_config() -> None:
    made = typed_config(Config, {"model": "m", "epochs": 3, "ignore": ["a", "b"]}, "[[stage]] 1")
    assert made == Config(model="m", epochs=3, ignore=("a", "b"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"model": "m", "epoch": 3}, r"stage 2: unknown key 'epoch'\. Did you mean 'epochs'\?", id="typo"),
        pytest.param({"model": "m", "zzz": 3}, r"stage 2: unknown key 'zzz'\.$", id="unknown"),
        pytest.param({"model": "m", "epochs": "many"}, "stage 2: epochs: .*valid integer", id="wrong-type"),
        pytest.param({"model": "m", "epochs": 1.5}, "stage 2: epochs: .*integer", id="fraction"),
        pytest.param({"model": "m", "epochs": 0}, "^stage 2: epochs is 0; it must be at least 1$", id="out-of-range"),
        pytest.param({"model": "m", "importance": "tailor"}, "stage 2: importance: .*'taylor'", id="not-a-choice"),
        pytest.param({"model": "m", "ignore": [1]}, "stage 2: ignore.0: .*string", id="inside-a-list"),
        pytest.param({}, "stage 2: model: Field required", id="missing"),
    ],
)
def test_a_bad_value_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError, match=said) as caught:
        typed_config(Config, values, "stage 2")
    assert "\n" not in str(caught.value)


def test_check_keys_lets_known_keys_pass() -> None:
    check_keys({"epochs": 1}, {"epochs"}, "gate")


def test_field_names_are_all_of_them() -> None:
    assert field_names(Config) == {"model", "epochs", "importance", "ignore"}
