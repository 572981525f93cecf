"""What is measured beside speed and accuracy when asked to."""

import pytest

from bench.compare import BenchConfig
from bench.extras import ExtrasConfig, full_bench
from bench.table import extra_tables
from core.data import Data
from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel

QUICK = BenchConfig(iterations=10, rounds=1, max_rounds=1, threads=1)


def test_nothing_else_is_measured_unless_asked_for(exported: OnnxModel) -> None:
    report = full_bench([exported], [QUICK], ExtrasConfig())
    assert (report.corruptions, report.attack, report.service) == (None, None, ())
    assert extra_tables(report) == []


@pytest.mark.slow
def test_what_is_asked_for_is_in_the_report_and_tabled(
    trained: TorchModel, exported: OnnxModel, quantized: OnnxModel, digits: Data
) -> None:
    config = ExtrasConfig(corruptions=True, attack="fgsm", scenarios=("single-stream", "offline"), service_seconds=0.2)
    report = full_bench([exported, quantized], [QUICK], config, digits, trained)
    assert report.corruptions is not None
    assert report.attack is not None
    assert report.attack.source.name == trained.name
    assert [one.name for one in report.service] == [exported.name, quantized.name]
    corruptions, attack, service = extra_tables(report)
    assert corruptions.header == (
        "model",
        "clean",
        "noise",
        "blur",
        "brightness",
        "jpeg",
        "shift",
        "mean",
        "points lost",
    )
    assert [row[0] for row in attack.rows] == [trained.name, exported.name, quantized.name]
    assert service.title.startswith("MLPerf LoadGen")
    assert all(len(row) == len(table.header) for table in (corruptions, attack, service) for row in table.rows)


def test_the_first_torch_model_is_the_attacks_source(trained: TorchModel, exported: OnnxModel, digits: Data) -> None:
    report = full_bench([exported, trained], [QUICK], ExtrasConfig(attack="fgsm"), digits)
    assert report.attack is not None
    assert not report.attack.source.is_transfer


@pytest.mark.parametrize("config", [ExtrasConfig(corruptions=True), ExtrasConfig(attack="fgsm")])
def test_robustness_needs_data(exported: OnnxModel, config: ExtrasConfig) -> None:
    with pytest.raises(ToolError, match="measured on labelled images; give --data"):
        full_bench([exported], [QUICK], config)


def test_an_attack_needs_a_torch_model(exported: OnnxModel, digits: Data) -> None:
    with pytest.raises(ToolError, match="no gradients to attack along; name its torch model with --attack-source"):
        full_bench([exported], [QUICK], ExtrasConfig(attack="fgsm"), digits)


def test_the_server_needs_its_limit() -> None:
    with pytest.raises(ValueError, match="the server scenario needs slo_ms"):
        ExtrasConfig(scenarios=("server",))
