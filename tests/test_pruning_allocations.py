"""perf/pruning_allocations.py takes from its folder only what was made of the same, and checks that speeds agree."""

import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from core.data import Data
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


def test_only_what_was_pruned_from_the_same_is_taken_from_the_folder(
    script: ModuleType, trained: TorchModel, tiny: str, digits: Data, tmp_path: Path
) -> None:
    report = tmp_path / "pruned" / "report.json"

    def pruned(model: TorchModel, target: float) -> tuple[int, float]:
        found, told = script._pruned(model, digits, target, "uniform", report.parent)
        assert told["params"][0] == num_params(model.module)
        assert found.history[-1].config["speedup"] == target
        return report.stat().st_mtime_ns, told["measured_speedup"]

    first = pruned(trained, 1.5)
    assert pruned(trained, 1.5) == first
    assert pruned(trained, 2.0) != first
    again = pruned(trained, 1.5)
    other = load_torch_model(f"{tiny}:cnn", digits, seed=1)
    assert pruned(dataclasses.replace(trained, module=other.module), 1.5) != again


@pytest.mark.parametrize(("speed", "is_kept"), [(1.97, True), (1.95, False)])
def test_accuracies_are_compared_at_the_same_speed(script: ModuleType, speed: float, is_kept: bool) -> None:
    recipes = [{"test_accuracy": 90.0, "measured_speedup": 2.0}, {"test_accuracy": 91.0, "measured_speedup": 1.9}]
    accuracy, fast = script._bars(2.0, {"test_accuracy": 92.0, "measured_speedup": speed}, recipes)
    assert (accuracy["value"], accuracy["ok"]) == (1.0, True)
    assert fast["value"] == pytest.approx(speed / 2.0)
    assert fast["ok"] is is_kept
