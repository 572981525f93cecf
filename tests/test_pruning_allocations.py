"""perf/pruning_allocations.py takes from its folder only what was made of the same, and checks that speeds agree."""

import dataclasses
import importlib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compress.pruning.prune import PruneConfig
from core.data import Data
from core.machine import this_machine
from core.measuring import Measuring, Timed
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, num_params

PERF = str(Path(__file__).parents[1] / "perf")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, by a clock that goes by parameters."""

    @contextmanager
    def measuring(*_: object) -> Iterator[Measuring]:
        def models(first: TorchModel, second: TorchModel) -> Timed:
            before, after = num_params(first.module), num_params(second.module)
            return Timed(before, after, before / after)

        yield Measuring(models, layers=lambda shapes: [])

    monkeypatch.syspath_prepend(PERF)
    module = importlib.import_module("pruning_allocations")
    monkeypatch.setattr(module, "measuring", measuring)
    return module


def test_only_what_was_pruned_from_the_same_by_the_same_is_taken_from_the_folder(
    script: ModuleType,
    trained: TorchModel,
    tiny: str,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = tmp_path / "pruned" / "report.json"

    def pruned(model: TorchModel, target: float) -> tuple[int, float]:
        found, told = script._pruned(model, digits, PruneConfig(speedup=target, allocation="uniform"), report.parent)
        assert told["params"][0] == num_params(model.module)
        assert found.history[-1].config["speedup"] == target
        return report.stat().st_mtime_ns, told["measured_speedup"]

    first = pruned(trained, 1.5)
    assert pruned(trained, 1.5) == first
    assert pruned(trained, 2.0) != first
    again = pruned(trained, 1.5)
    other = load_torch_model(f"{tiny}:cnn", digits, seed=1)
    assert pruned(dataclasses.replace(trained, module=other.module), 1.5) != again
    for name, changed in (
        ("trees", "other code"),
        ("this_machine", this_machine().model_copy(update={"cpu": "other"})),
    ):
        before = pruned(trained, 1.5)
        monkeypatch.setattr(script, name, lambda *_, changed=changed: changed)
        assert pruned(trained, 1.5) != before


def test_a_recipe_is_pruned_to_any_width_and_to_multiples_and_the_more_accurate_is_taken(
    script: ModuleType, trained: TorchModel, digits: Data, tmp_path: Path
) -> None:
    found = script._at_once(trained, digits, 1.5, "uniform", tmp_path)
    assert [one["round_to"] for one in found["tried"]] == [1, 8]
    best = max(found["tried"], key=lambda one: one["accuracy_at_once"])
    assert (found["round_to"], found["accuracy_at_once"]) == (best["round_to"], best["accuracy_at_once"])
    assert num_params(found["model"].module) == found["params"]


def test_what_is_out_of_reach_is_said_and_not_searched_for_again(
    script: ModuleType, trained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = script._at_once(trained, digits, 1e6, "uniform", tmp_path)
    assert found.keys() == {"missed"}
    monkeypatch.setattr(script, "prune", None)  # what would fail if it were called
    assert script._at_once(trained, digits, 1e6, "uniform", tmp_path) == found
    row = {"target": 1e6, "asked": 1e6, "allocation": "uniform", "key": "", "measured_at": "here", **found}
    given = Namespace(speedups="1e6", epochs=1, seeds=[0], teacher_file=None)
    result = script._result([row], [1e6], given)
    assert "is out of reach" in script._markdown(result)
    assert not any(bar["ok"] for bar in result["bars"])


def test_a_row_that_is_published_is_not_made_again_nor_one_that_is_not_wanted(
    script: ModuleType, trained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _given(tmp_path, only=["global"])
    key = script._row_key(trained, digits, 2.0, "global", given)
    row = {"target": 2.0, "allocation": "global", "key": key, "measured_speedup": 2.0, "test_accuracy": 90.0}
    row |= {"round_to": 8, "tried": [{"round_to": 8, "measured_speedup": 2.0}]}
    row |= {"where": script.digest_of(script._where())}
    monkeypatch.setattr(script, "published", lambda _: {"rows": [row]})
    assert script._rows(trained, digits, 2.0, given) == [row]
    monkeypatch.setattr(script, "trees", lambda *_: "other code")
    assert script._rows(trained, digits, 2.0, Namespace(**vars(given) | {"only": ["none"]})) == [row]
    bars = script._result([row], [2.0], Namespace(**vars(given), speedups="2"))["bars"]
    assert (bars[-1]["name"], bars[-1]["value"], bars[-1]["ok"]) == ("allocations listed", 1, False)


@pytest.mark.parametrize(("uniform", "then"), [(2.196, [("latency", 2.2)]), (2.03, [])])
def test_ours_is_asked_for_their_fastests_speed_where_that_jumps_over_the_target(
    script: ModuleType,
    trained: TorchModel,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uniform: float,
    then: list[tuple[str, float]],
) -> None:
    speeds = {"latency": 2.01, "global": 2.02, "uniform": uniform, "isomorphic": 2.0}
    asked: list[tuple[str, float]] = []

    def at_once(_model: TorchModel, _data: Data, speed: float, allocation: str, _folder: Path) -> dict[str, Any]:
        asked.append((allocation, speed))
        tried = [{"round_to": 1, "measured_speedup": 2.5}, {"round_to": 8, "measured_speedup": speeds[allocation]}]
        return {"model": trained, "round_to": 8, "tried": tried}

    monkeypatch.setattr(script, "_at_once", at_once)
    monkeypatch.setattr(script, "published", lambda _: {})
    given = _given(tmp_path, only=["latency"], prune_only=True)
    assert script._rows(trained, digits, 2.0, given) == []
    assert asked == [*((name, 2.0) for name in script.ALLOCATIONS), *then]


@pytest.mark.parametrize(("speed", "is_kept"), [(1.97, True), (1.95, False)])
def test_accuracies_are_compared_at_the_same_speed(script: ModuleType, speed: float, is_kept: bool) -> None:
    measured = (("latency", 93.0, 1.9), ("global", 90.0, 2.0), ("uniform", 91.0, 1.9), ("latency", 92.0, speed))
    rows = [
        {"allocation": name, "test_accuracy": accuracy, "measured_speedup": speedup}
        for name, accuracy, speedup in measured
    ]
    slowest, accuracy, fast = script._bars(2.0, rows)
    assert (slowest["value"], slowest["ok"]) == (pytest.approx(0.95), True)
    assert (accuracy["value"], accuracy["ok"]) == (1.0, True)
    assert fast["value"] == pytest.approx(speed / 2.0)
    assert fast["ok"] is is_kept
    assert not script._bars(2.01, rows)[0]["ok"]


def _given(folder: Path, *, only: list[str], prune_only: bool = False) -> Namespace:
    weights = folder / "weights"
    weights.write_text("w")
    told = {"epochs": 1, "seeds": [0], "teacher_file": None, "weights": str(weights), "runs": folder}
    return Namespace(**told, only=only, prune_only=prune_only, train_only=False)
