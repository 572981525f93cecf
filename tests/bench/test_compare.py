"""The bench table: rows in order, the first the baseline, accuracy from the file itself."""

import pytest
import torch

from bench.compare import BenchConfig, bench
from core.data import Data
from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict

QUICK = BenchConfig(iterations=20, rounds=2, warmup=1, threads=1)


def test_rows_keep_their_order_and_the_first_is_the_baseline(
    exported: OnnxModel, quantized: OnnxModel, digits: Data
) -> None:
    report = bench([exported, quantized], QUICK, digits)
    assert [row.name for row in report.rows] == [exported.name, quantized.name]
    assert report.rows[0].speedup == 1.0
    assert report.rows[1].speedup == report.rows[0].latency.p50_ms / report.rows[1].latency.p50_ms
    assert [row.size_bytes for row in report.rows] == [exported.path.stat().st_size, quantized.path.stat().st_size]
    assert report.rows[0].throughput == pytest.approx(1000 / report.rows[0].latency.p50_ms)


def test_accuracy_is_the_files_on_the_test_split(exported: OnnxModel, digits: Data) -> None:
    row = bench([exported], QUICK, digits).rows[0]
    assert row.accuracy == accuracy(*predict(exported, digits, "test"))
    assert row.samples == len(digits.split("test"))


def test_without_data_there_is_no_accuracy(exported: OnnxModel) -> None:
    assert bench([exported], QUICK).rows[0].accuracy is None


def test_the_report_names_machine_and_versions(exported: OnnxModel) -> None:
    report = bench([exported], QUICK)
    assert report.machine.cores >= 1
    assert report.machine.cpu
    assert report.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the provider can be used")
def test_cuda_without_a_gpu_is_an_error_that_says_why(exported: OnnxModel) -> None:
    with pytest.raises(ToolError, match=r"'cuda'.*(no NVIDIA GPU|has no CUDAExecutionProvider)"):
        bench([exported], BenchConfig(provider="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_computes_what_the_cpu_computes(exported: OnnxModel, digits: Data) -> None:
    on_gpu = bench([exported], BenchConfig(provider="cuda", iterations=20, rounds=2), digits).rows[0]
    assert on_gpu.accuracy == pytest.approx(bench([exported], QUICK, digits).rows[0].accuracy, abs=0.3)


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"iterations": 0}, {"rounds": 0}, {"split": "tset"}])
def test_values_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        BenchConfig(**values)
