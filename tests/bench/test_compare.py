"""The bench table: rows in order, the first the baseline, accuracy from the file itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.compare import BenchConfig, bench, sweep
from bench.latency import Timings
from core.data import UNLABELLED, Data
from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.torch_model import TorchModel, torch_digest

QUICK = BenchConfig(iterations=20, rounds=2, max_rounds=2, threads=1)


def test_rows_keep_their_order_and_the_first_is_the_baseline(
    exported: OnnxModel, quantized: OnnxModel, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timings(
        rounds_ms=((np.full((2, 5), 2.0),) * 2, (np.full((2, 5), 1.0),) * 2), warmup_runs=(1, 1), sharp=True
    )
    monkeypatch.setattr("bench.compare.measure", lambda *_: timed)
    report = bench([exported, quantized], [QUICK], digits)
    assert [row.name for row in report.rows] == [exported.name, quantized.name]
    assert report.rows[0].speedup is None
    assert report.rows[1].speedup is not None
    assert report.rows[1].speedup.ratio == pytest.approx(2.0)
    assert [row.size_bytes for row in report.rows] == [exported.path.stat().st_size, quantized.path.stat().st_size]
    assert report.rows[0].throughput == pytest.approx(1000 / report.rows[0].latency.p50_ms)


def test_accuracy_is_the_files_on_the_test_split(exported: OnnxModel, digits: Data) -> None:
    row = bench([exported], [QUICK], digits).rows[0]
    assert row.quality is not None
    assert row.quality.accuracy == accuracy(*predict(exported, digits, "test"))
    assert row.quality.samples == len(digits.split("test"))


def test_data_without_labels_scores_nothing(exported: OnnxModel, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is told before anything is timed."""
    monkeypatch.setattr("bench.compare.measure", lambda *_: pytest.fail("it is timed"))
    test = replace(digits.split("test"), targets=torch.full_like(digits.split("test").targets, UNLABELLED))
    with pytest.raises(ToolError, match="the test split of digits has no labels to score models by; give it some, or"):
        bench([exported], [QUICK], replace(digits, test=test))


def test_without_data_there_is_no_accuracy(exported: OnnxModel) -> None:
    assert bench([exported], [QUICK]).rows[0].quality is None


def test_the_report_names_machine_and_versions(exported: OnnxModel) -> None:
    report = bench([exported], [QUICK])
    assert report.machine.cores >= 1
    assert report.machine.cpu
    assert report.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.slow
def test_a_sweep_measures_every_combination_against_its_own_baseline(exported: OnnxModel, quantized: OnnxModel) -> None:
    settings = sweep(QUICK, ["cpu"], [1, 4], [1, 2])
    report = bench([exported, quantized], settings)
    assert [row.setting for row in report.rows[::2]] == [("cpu", 1, 1), ("cpu", 2, 1), ("cpu", 1, 4), ("cpu", 2, 4)]
    assert [row.speedup is None for row in report.rows] == [True, False] * 4
    row = report.rows[5]
    assert row.throughput == pytest.approx(4000 / row.latency.p50_ms)


def test_the_torch_module_may_stand_in_the_table(trained: TorchModel, exported: OnnxModel, digits: Data) -> None:
    report = bench([trained, exported], [replace(QUICK, torch_modes=("eager",))], digits)
    assert [row.runtime for row in report.rows] == ["torch eager", "onnxruntime"]
    first, second = report.rows
    assert (first.sha256, first.cost, first.placement, first.nodes) == (torch_digest(trained), None, None, ())
    assert second.change is not None
    assert second.change.agreement > 99
    assert first.size_bytes == sum(one.nbytes for one in trained.module.state_dict().values())


def test_a_model_given_twice_is_told_apart(exported: OnnxModel) -> None:
    report = bench([exported, exported], [QUICK])
    assert [row.name for row in report.rows] == [exported.name, f"{exported.name} (2)"]


def test_the_models_history_is_in_the_report(quantized: OnnxModel) -> None:
    assert [step.stage for step in bench([quantized], [QUICK]).rows[0].history] == ["finetune", "export", "quantize"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: torch runs on it")
def test_a_torch_module_without_a_device_is_refused(trained: TorchModel) -> None:
    with pytest.raises(ToolError, match=r"torch sees no NVIDIA GPU|has no CUDAExecutionProvider"):
        bench([trained], [replace(QUICK, provider="cuda")])
    with pytest.raises(ToolError, match=r"torch has no device for provider 'Azure|unknown provider 'Azure"):
        bench([trained], [replace(QUICK, provider="AzureExecutionProvider")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the provider can be used")
def test_cuda_without_a_gpu_is_an_error_that_says_why(exported: OnnxModel) -> None:
    with pytest.raises(ToolError, match=r"'cuda'.*(no NVIDIA GPU|has no CUDAExecutionProvider)"):
        bench([exported], [BenchConfig(provider="cuda")])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_computes_what_the_cpu_computes(exported: OnnxModel, digits: Data) -> None:
    on_gpu = bench([exported], [BenchConfig(provider="cuda", iterations=20, rounds=2, max_rounds=2)], digits).rows[0]
    on_cpu = bench([exported], [QUICK], digits).rows[0]
    assert on_gpu.quality is not None
    assert on_cpu.quality is not None
    assert on_gpu.quality.accuracy == pytest.approx(on_cpu.quality.accuracy, abs=0.3)
    assert on_gpu.placement is not None
    assert on_gpu.placement.nodes["CUDAExecutionProvider"] > 0


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"threads": -1}, {"split": "tset"}])
def test_values_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        BenchConfig(**values)
