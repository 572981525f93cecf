"""Verification passes what is equal, fails what is not, and says by how much."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixed_batch import with_fixed_batch
from onnx import helper, numpy_helper

from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel, open_onnx
from core.sessions import open_session
from core.torch_model import TorchModel
from export.comparison import compare
from export.verify import VerifyConfig, require_verified, verify

FLOAT = onnx.TensorProto.FLOAT


def corrupted(model: OnnxModel, path: Path, value: float = 3.0) -> OnnxModel:
    """Write a copy with one element of its first convolution changed."""
    proto = onnx.load(model.path)
    weight = next(one for one in proto.graph.initializer if len(one.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] += value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(proto, path)
    return open_onnx(path)


def test_a_model_matches_itself(exported: OnnxModel, digits: Data) -> None:
    report = require_verified(verify(exported, exported, VerifyConfig(), digits))
    assert [one.inputs for one in report.comparisons] == ["batch 1", "batch 2", "batch 7", "validation"]
    assert all(one.max_abs_err == 0 and math.isinf(one.sqnr_db) for one in report.comparisons)
    assert all(one.agreement == 100 for one in report.comparisons)


def test_products_are_not_rounded_on_a_gpu(exported: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As float32's limits of a thousandth suppose; without a GPU nothing but the asking can be seen."""
    asked: list[bool] = []

    def seen(*arguments: Any, tf32: bool = True, **named: Any) -> Any:
        asked.append(tf32)
        return open_session(*arguments, tf32=tf32, **named)

    monkeypatch.setattr("core.predict.open_session", seen)
    verify(exported, exported, VerifyConfig(batch_sizes=(1,)))
    assert asked == [False, False]


def test_a_torch_reference_and_its_file_match(trained: TorchModel, exported: OnnxModel) -> None:
    assert verify(trained, exported, VerifyConfig()).misses == ()


@pytest.mark.parametrize("value", [3.0, math.nan, math.inf])
def test_one_corrupted_weight_is_found(exported: OnnxModel, tmp_path: Path, value: float) -> None:
    report = verify(exported, corrupted(exported, tmp_path / "corrupted.onnx", value), VerifyConfig())
    with pytest.raises(GateMissedError, match=r"NaN or infinity|max_abs_err"):
        require_verified(report)


def test_corrupted_weights_of_an_int8_file_are_found(quantized: OnnxModel, digits: Data, tmp_path: Path) -> None:
    proto = onnx.load(quantized.path)
    weight = max(
        (one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.INT8),
        key=lambda one: len(one.raw_data),
    )
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(proto, tmp_path / "corrupted.onnx")
    report = verify(quantized, open_onnx(tmp_path / "corrupted.onnx"), VerifyConfig(), digits)
    with pytest.raises(GateMissedError, match=r"sqnr_db .* below 10"):
        require_verified(report)


def test_a_float_file_has_tight_limits_and_a_quantized_one_a_noise_limit(
    exported: OnnxModel, quantized: OnnxModel, digits: Data
) -> None:
    assert verify(exported, exported, VerifyConfig()).limits == {"atol": 1e-4, "rtol": 1e-3}
    report = verify(exported, quantized, VerifyConfig(), digits)
    assert report.limits == {"min_sqnr_db": 10.0}
    assert report.misses == ()


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        pytest.param({"atol": 1e-7}, r"max_abs_err .* beyond atol 1e-07 and rtol 0 \(atol .* would pass\)", id="atol"),
        pytest.param(
            {"min_sqnr_db": 90.0}, r"sqnr_db \d+\.\d on batch 1, below 90.* on validation, below 90", id="sqnr"
        ),
        pytest.param({"min_agreement": 100.0}, r"agreement \d+\.\d\d % on validation, below 100 %", id="agreement"),
    ],
)
def test_every_limit_can_be_missed(
    exported: OnnxModel, quantized: OnnxModel, digits: Data, tmp_path: Path, limits: dict[str, float], missed: str
) -> None:
    candidate = corrupted(exported, tmp_path / "c.onnx", 20.0) if "min_agreement" in limits else quantized
    with pytest.raises(GateMissedError, match=missed):
        require_verified(verify(exported, candidate, VerifyConfig(**limits), digits))


def line(path: Path, offset: float = 0.0, alone: float = 1.0) -> OnnxModel:
    """Write a file of one matrix that adds an offset, and multiplies the answer to a sample that comes alone."""
    constants = {
        "w": np.float32(np.eye(5)[:, :3]),
        "b": np.float32([offset] * 3),
        "first": np.int64(0),
        "one": np.int64(1),
        "alone": np.float32(alone),
        "together": np.float32(1.0),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["product"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["samples"]),
        helper.make_node("Equal", ["samples", "one"], ["is_alone"]),
        helper.make_node("Where", ["is_alone", "alone", "together"], ["factor"]),
        helper.make_node("Mul", ["product", "factor"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(*one) for one in (("x", FLOAT, ["n", 5]), ("y", FLOAT, ["n", 3])))
    initializers = [numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return open_onnx(path)


@pytest.fixture
def faint_at_first(tmp_path: Path) -> Data:
    values = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    values[:7] *= 1e-3
    targets = np.arange(60) % 3
    np.savez(tmp_path / "data.npz", x_train=values, y_train=targets, x_val=values, y_val=targets)
    return load_data(str(tmp_path / "data.npz"))


def test_noise_on_a_few_faint_answers_is_held_against_the_signal_of_all(tmp_path: Path, faint_at_first: Data) -> None:
    reference, candidate = line(tmp_path / "a.onnx"), line(tmp_path / "b.onnx", offset=0.01)
    report = verify(reference, candidate, VerifyConfig(min_sqnr_db=20.0), faint_at_first)
    assert [one.sqnr_db > 20 for one in report.comparisons] == [False, False, False, True]
    assert report.misses == ()
    assert verify(reference, candidate, VerifyConfig(min_sqnr_db=45.0), faint_at_first).misses


def test_equal_answers_that_are_all_zero_agree(tmp_path: Path) -> None:
    values = np.zeros((60, 5), np.float32)
    np.savez(tmp_path / "data.npz", x_train=values, y_train=np.arange(60) % 3, x_val=values, y_val=np.arange(60) % 3)
    same = line(tmp_path / "a.onnx"), line(tmp_path / "b.onnx")
    assert verify(*same, VerifyConfig(min_sqnr_db=10.0), load_data(str(tmp_path / "data.npz"))).misses == ()


def test_what_is_wrong_in_a_batch_of_one_alone_is_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    targets = np.arange(60) % 3
    np.savez(tmp_path / "data.npz", x_train=values, y_train=targets, x_val=values, y_val=targets)
    reference, candidate = line(tmp_path / "a.onnx"), line(tmp_path / "b.onnx", alone=-1.0)
    report = verify(reference, candidate, VerifyConfig(min_sqnr_db=10.0), load_data(str(tmp_path / "data.npz")))
    (missed,) = report.misses
    assert "on batch 1, below 10" in missed


def test_the_atol_that_would_pass_does_pass(exported: OnnxModel, quantized: OnnxModel, digits: Data) -> None:
    report = verify(exported, quantized, VerifyConfig(atol=0.0, rtol=0.01), digits)
    enough = max(one.excess for one in report.comparisons)
    assert verify(exported, quantized, VerifyConfig(atol=enough, rtol=0.01), digits).misses == ()


def test_compare_equals_the_definitions() -> None:
    reference, candidate = np.float32([[1, 2], [3, 4]]), np.float32([[1, 2.5], [3, 2]])
    found = compare("x", reference, candidate, rtol=0.1)
    assert found.max_abs_err == 2.0
    assert found.excess == pytest.approx(1.6)
    assert found.sqnr_db == pytest.approx(10 * math.log10(30 / 4.25))
    assert found.agreement == 50.0


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ToolError, match=r"returns \(2, 3\) where the reference returns \(2, 4\)"):
        compare("x", np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32), rtol=0)


def test_a_file_with_a_fixed_batch_is_compared_at_that_size(
    exported: OnnxModel, quantized: OnnxModel, digits: Data, tmp_path: Path
) -> None:
    fixed = [with_fixed_batch(model, tmp_path, 4) for model in (exported, quantized)]
    report = verify(*fixed, VerifyConfig(), digits)
    assert [one.inputs for one in report.comparisons] == ["batch 4", "validation"]
    assert report.misses == ()
    assert verify(exported, fixed[0], VerifyConfig()).comparisons[0].samples == 4


@pytest.mark.parametrize("batch_size", [144, 145])
def test_a_fixed_batch_is_at_most_the_whole_split(
    exported: OnnxModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr("export.shared_inputs.DATA_SAMPLES", 100)
    fixed = with_fixed_batch(exported, tmp_path, batch_size)
    if batch_size == 144:
        assert [one.samples for one in verify(exported, fixed, VerifyConfig(), digits).comparisons] == [144, 144]
        return
    with pytest.raises(ToolError, match="batch fixed at 145, more than the 144 samples of validation"):
        verify(exported, fixed, VerifyConfig(), digits)


def test_a_report_survives_json(exported: OnnxModel) -> None:
    report = verify(exported, exported, VerifyConfig())
    assert type(report).model_validate_json(report.model_dump_json()) == report
    assert "Infinity" in report.model_dump_json()


@pytest.mark.parametrize(
    "values", [{"atol": -1.0}, {"min_agreement": 101.0}, {"batch_sizes": ()}, {"batch_sizes": (0,)}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        dataclasses.replace(VerifyConfig(), **values)
