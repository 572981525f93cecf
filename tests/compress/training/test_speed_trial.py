"""The choice of precision, layout and compilation: measured where a run is long enough, kept only where it gains."""

import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from compress.training import speed_trial
from compress.training.config import TrainConfig
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.speed_trial import Execution, TimedExecution, choose_execution
from core.data import Data
from core.errors import ToolError
from core.torch_model import TorchModel

LONG = 10**7


@pytest.fixture
def as_measured(monkeypatch: pytest.MonkeyPatch):
    """``as_measured({Execution(...): 10.0})`` stands for what a stopwatch reads, in ms; None fails."""

    def read(figures: dict[Execution, float | None]) -> None:
        def time(_: object, execution: Execution) -> TimedExecution:
            return TimedExecution(
                precision=execution.precision,
                channels_last=execution.channels_last,
                compile=execution.compile,
                step_ms=figures[execution],
            )

        monkeypatch.setattr(speed_trial._Stopwatch, "time", time)
        monkeypatch.setattr(speed_trial, "has_bfloat16", lambda: True)

    return read


def way(precision: str = "float32", *, last: bool = True, compiled: bool = False) -> Execution:
    return Execution(precision, last, compiled)


def test_everything_fixed_is_not_tried(untrained: TorchModel) -> None:
    config = TrainConfig(precision="bfloat16", channels_last=False, compile=False)
    assert choose_execution(untrained, config, LONG) == (way("bfloat16", last=False), ())


def test_the_fastest_is_taken(untrained: TorchModel, as_measured) -> None:
    as_measured(
        {
            way(): 100.0,
            way(last=False): 90.0,
            way("bfloat16"): 40.0,
            way("bfloat16", last=False): 50.0,
            way("bfloat16", compiled=True): 30.0,
            way("bfloat16", last=False, compiled=True): 20.0,
        }
    )
    assert choose_execution(untrained, TrainConfig(), LONG)[0] == way("bfloat16", last=False, compiled=True)
    chosen, tried = choose_execution(untrained, TrainConfig(compile=False), LONG)
    assert chosen == way("bfloat16")
    assert len(tried) == 4


def test_compiling_has_to_beat_the_best_without(untrained: TorchModel, as_measured) -> None:
    as_measured(
        {
            way(): 100.0,
            way(last=False): 90.0,
            way("bfloat16"): 60.0,
            way("bfloat16", last=False): 65.0,
            way("bfloat16", compiled=True): 59.0,
            way("bfloat16", last=False, compiled=True): 59.5,
        }
    )
    assert choose_execution(untrained, TrainConfig(), LONG)[0] == way("bfloat16")


@pytest.mark.parametrize(("num_steps", "num_tried", "last"), [(100, 1, True), (3000, 4, True), (LONG, 6, False)])
def test_where_compiling_is_asked_for_precision_and_layout_are_tried(
    untrained: TorchModel, as_measured, num_steps: int, num_tried: int, last: bool
) -> None:
    """Compiled ones only where the run is long: each takes a minute."""
    as_measured(
        {
            way(): 100.0,
            way(last=False): 90.0,
            way("bfloat16"): 60.0,
            way("bfloat16", last=False): 65.0,
            way("bfloat16", compiled=True): 55.0,
            way("bfloat16", last=False, compiled=True): 50.0,
        }
    )
    chosen, tried = choose_execution(untrained, TrainConfig(compile=True), num_steps)
    assert chosen == way("float32" if num_tried == 1 else "bfloat16", last=last, compiled=True)
    assert len(tried) == num_tried


def test_a_small_gain_is_not_worth_another_way(untrained: TorchModel, as_measured) -> None:
    as_measured({way(): 100.0, way(last=False): 97.0})
    assert choose_execution(untrained, TrainConfig(compile=False, precision="float32"), LONG)[0] == way()


def test_what_fails_is_passed_over(untrained: TorchModel, as_measured) -> None:
    as_measured({way(): 100.0, way(last=False): None})
    chosen, tried = choose_execution(untrained, TrainConfig(compile=False, precision="float32"), LONG)
    assert chosen == way()
    assert tried[1].step_ms is None


def test_a_short_run_neither_tries_nor_compiles(untrained: TorchModel, as_measured) -> None:
    as_measured({way(): 100.0})
    assert len(choose_execution(untrained, TrainConfig(), 500)[1]) == 1


def test_a_run_of_minutes_does_not_compile(untrained: TorchModel, as_measured) -> None:
    as_measured({way(): 100.0, way(last=False): 100.0, way("bfloat16"): 60.0, way("bfloat16", last=False): 70.0})
    assert choose_execution(untrained, TrainConfig(), 3000)[0] == way("bfloat16")


def test_a_processor_without_bfloat16_does_not_try_it(
    untrained: TorchModel, as_measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_measured({way(): 100.0, way(last=False): 100.0})
    monkeypatch.setattr(speed_trial, "has_bfloat16", lambda: False)
    if torch.cuda.is_available():
        pytest.skip("a GPU is asked for its own bfloat16")
    tried = choose_execution(untrained, TrainConfig(compile=False), LONG)[1]
    assert {one.precision for one in tried} == {"float32"}


def test_the_stopwatch_measures_and_leaves_the_student_alone(untrained: TorchModel) -> None:
    before = {name: tensor.clone() for name, tensor in untrained.module.state_dict().items()}
    random_state = torch.get_rng_state()
    _, tried = choose_execution(untrained, TrainConfig(batch_size=16, precision="float32", compile=False), LONG)
    assert [one.channels_last for one in tried] == [True, False]
    assert all(one.step_ms > 0 for one in tried)
    assert all(torch.equal(before[name], tensor) for name, tensor in untrained.module.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiling_is_tried_for_a_long_run(untrained: TorchModel) -> None:
    _, tried = choose_execution(untrained, TrainConfig(batch_size=16, precision="float32"), LONG)
    assert [one.compile for one in tried] == [False, False, True, True]
    assert all(one.step_ms is not None for one in tried)


def test_a_machine_that_cannot_compile_says_so(
    untrained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before needs no compiler
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    config = FinetuneConfig(epochs=1, compile=True, precision="float32", channels_last=False)
    with pytest.raises(ToolError, match=r"torch\.compile fails on this model or machine: .*; train with --no-compile"):
        finetune(untrained, digits, config)
