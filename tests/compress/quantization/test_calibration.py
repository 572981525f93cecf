"""Ranges are those of all samples, in memory that does not grow with them; each method finds its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compress.quantization.calibration import BINS, RANGE_OF, Method, Seen, minmax, mse, observe, percentile, ranges_of
from core.errors import ToolError

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")


def graph(operator: str) -> onnx.ModelProto:
    shape = ["batch", 8]
    made = helper.make_graph(
        [helper.make_node(operator, ["x"], ["middle"]), helper.make_node("Identity", ["middle"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        value_info=[helper.make_tensor_value_info("middle", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def seen(values: NDArray[np.float32], parts: int = 1) -> Seen:
    found = Seen()
    for part in np.array_split(values, parts):
        found.extend(float(part.min()), float(part.max()))
        found.count(part)
    return found


def normal_with_outliers(outlier: float = 100.0) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return np.concatenate([random.standard_normal(100_000), [outlier]]).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_that_come_first_hide_nothing(method: Method) -> None:
    small = np.random.default_rng(0).uniform(0, 0.05, 10_000).astype(np.float32)
    zeros = np.zeros(10_000, np.float32)
    first, last = (RANGE_OF[method](seen(np.concatenate(parts), 2)) for parts in ((zeros, small), (small, zeros)))
    assert first == last
    assert first[1] > 0.04
    assert RANGE_OF[method](seen(zeros)) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_has_the_range_of_all_batches(method: Method) -> None:
    batches = [(np.full((2, 8), value, np.float32),) for value in (1.0, -3.0, 2.0)]
    told: list[int] = []
    ranges = ranges_of(observe(graph("Relu"), batches, told.append, histograms=method != "minmax"), method)
    assert told == [1, 2, 3]
    if method == "minmax":
        assert ranges == {"x": (-3.0, 2.0), "middle": (0.0, 2.0), "y": (0.0, 2.0)}
    assert ranges["x"][0] < 0 < ranges["x"][1]
    assert ranges["middle"][0] == 0


def test_zero_is_in_every_range() -> None:
    seen = observe(graph("Identity"), [(np.full((1, 8), 5, np.float32),)], lambda _: None)
    assert ranges_of(seen, "minmax")["x"] == (0.0, 5.0)


def test_a_histogram_that_grew_is_that_of_all_values() -> None:
    values = np.sort(normal_with_outliers(37.0))  # the greatest come last
    whole, grown = seen(values), seen(values, parts=50)
    assert whole.reach == grown.reach == 64
    assert whole.counts.sum() == grown.counts.sum() == len(values)
    moved = np.abs(np.cumsum(whole.counts) - np.cumsum(grown.counts))
    assert moved.max() <= 2  # a value on the edge of a bin


def test_more_values_than_float32_counts_are_counted() -> None:
    found = seen(np.zeros(2**24 + 5, np.float32))
    assert found.counts[BINS // 2] == 2**24 + 5


def test_each_method_finds_its_own_range() -> None:
    found = seen(normal_with_outliers())
    ranges = {method: RANGE_OF[method](found) for method in METHODS}
    assert len(set(ranges.values())) == len(METHODS)
    assert ranges["minmax"] == (found.low, found.high)
    assert all(3 < ranges[method][1] < 10 for method in ("percentile", "entropy"))
    assert ranges["entropy"][1] < ranges["mse"][1] < ranges["minmax"][1]


def test_percentile_keeps_its_share() -> None:
    values = normal_with_outliers()
    assert percentile(seen(values)) == pytest.approx(np.quantile(values, [0.00005, 0.99995]), abs=0.1)


def test_mse_errs_less_than_any_other() -> None:
    values = normal_with_outliers(20.0)
    found = seen(values)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        kept = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
        return float(((values - kept) ** 2).mean())

    errors = {method: error(*RANGE_OF[method](found)) for method in METHODS}
    assert min(errors, key=lambda method: errors[method]) == "mse"
    assert error(*mse(found)) < 0.9 * error(*minmax(found))


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range(method: Method) -> None:
    low, high = RANGE_OF[method](seen(np.zeros(10, np.float32)))
    assert (max(low, 0.0), min(high, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("histograms", [True, False])
def test_a_tensor_that_is_not_finite_is_named(histograms: bool) -> None:
    with pytest.raises(ToolError, match="the tensor 'middle' is not finite on a calibration sample"):
        observe(graph("Log"), [(np.full((1, 8), -1, np.float32),)], lambda _: None, histograms=histograms)


@pytest.mark.slow
@pytest.mark.parametrize("histograms", [True, False])
def test_memory_does_not_grow_with_the_samples(histograms: bool) -> None:
    few, many = (peak_bytes(histograms, samples) for samples in (512, 8192))
    assert many < 1.1 * few


def peak_bytes(histograms: bool, samples: int) -> int:
    """Calibrate a convolution in a process of its own, and return the most memory it held."""
    code = """
import resource, sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from compress.quantization.calibration import observe
histograms, samples = sys.argv[1] == "True", int(sys.argv[2])
weight = np.random.default_rng(0).standard_normal((32, 3, 3, 3)).astype(np.float32)
made = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32, 16, 16])],
    [numpy_helper.from_array(weight, "w")],
)
proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
random = np.random.default_rng(0)
batches = ((random.standard_normal((32, 3, 16, 16), dtype=np.float32),) for _ in range(samples // 32))
observe(proto, batches, lambda _: None, histograms=histograms)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(histograms), str(samples)]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
