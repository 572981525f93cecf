"""What the key of a stage follows: everything that its result rests on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import run_folder
from core.data import Data
from core.machine import determining_versions
from core.progress import no_progress
from recipe import Recipe, load_recipe
from run_folder import RunFolder

RECIPE = """
data = "digits"
[[stage]]
kind = "export"
model = "{tiny}:cnn"
[[stage]]
kind = "verify"
model = "export"
reference = "{tiny}:cnn"
"""


@pytest.fixture
def recipe(tiny: str, tmp_path: Path) -> Recipe:
    (tmp_path / "job.toml").write_text(RECIPE.format(tiny=tiny))
    return load_recipe(tmp_path / "job.toml")


@pytest.fixture
def keys(digits: Data, tmp_path: Path) -> Callable[[Recipe], list[str]]:
    """The keys of a recipe's stages."""

    def of(recipe: Recipe) -> list[str]:
        current = RunFolder(recipe, digits, tmp_path / "run", no_progress)
        return [current.key(stage) for stage in recipe.stages]

    return of


def changed(before: list[str], after: list[str]) -> list[bool]:
    return [first != second for first, second in zip(before, after, strict=True)]


def test_a_key_stays_where_nothing_changes(recipe: Recipe, keys: Callable[[Recipe], list[str]]) -> None:
    assert keys(recipe) == keys(recipe)


def test_keys_follow_how_many_samples_may_be_bad(recipe: Recipe, keys: Callable[[Recipe], list[str]]) -> None:
    assert changed(keys(recipe), keys(dataclasses.replace(recipe, skip_bad=3))) == [True, True]


@pytest.mark.parametrize(("name", "value"), [("code_digest", "other"), ("determining_versions", {"numpy": "1.0"})])
def test_keys_follow_the_code_and_what_it_stands_on(
    recipe: Recipe,
    keys: Callable[[Recipe], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
) -> None:
    before = keys(recipe)
    monkeypatch.setattr(run_folder, name, lambda: value)
    assert changed(before, keys(recipe)) == [True, True]


def test_what_is_verified_is_so_on_one_machine(
    recipe: Recipe, keys: Callable[[Recipe], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(recipe)
    other = run_folder.this_machine().model_copy(update={"cpu": "another"})
    monkeypatch.setattr(run_folder, "this_machine", lambda: other)
    assert changed(before, keys(recipe)) == [False, True]


def test_what_reads_samples_and_builds_models_is_among_what_keys_follow() -> None:
    assert {"numpy", "pillow", "torchmetrics", "torch", "timm"} <= set(determining_versions())
