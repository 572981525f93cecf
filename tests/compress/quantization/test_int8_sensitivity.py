"""Each layer is looked at alone, weights and activations apart, and the one that is hard on int8 stands out."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_layouts import fast_layout
from compress.quantization.int8_sensitivity import int8_sensitivity, int8_sensitivity_plot
from compress.quantization.quantize import quantization_sensitivity
from core.data import Data
from core.onnx_model import OnnxModel


def test_the_hard_layer_stands_out(hard: tuple[OnnxModel, Data]) -> None:
    report = quantization_sensitivity(*hard, QuantizeConfig())
    first, second = report.layers
    assert (first.node, second.node) == ("node_linear", "node_linear_1")
    assert second.activations > 100 * first.activations
    assert second.weights > 100 * first.weights


def test_a_better_range_does_less_damage(hard: tuple[OnnxModel, Data]) -> None:
    damage = {
        method: quantization_sensitivity(*hard, QuantizeConfig(calibration_method=method)).layers[1].activations
        for method in ("minmax", "entropy")
    }
    assert damage["minmax"] != damage["entropy"]


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_weights_and_activations_that_int8_tells_exactly_lose_nothing(operator: str) -> None:
    weight = np.eye(4, dtype=np.float32) * 127
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], name="layer")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batch = np.random.default_rng(0).integers(0, 256, (8, 4)).astype(np.float32)
    told: list[tuple[int, int]] = []
    (layer,) = int8_sensitivity(
        proto, {"x": (0.0, 255.0)}, fast_layout(), [(batch,)], lambda *progress: told.append(progress)
    )
    assert (layer.weights, layer.activations) == (0.0, 0.0)
    assert told == [(1, 1)]
    (coarse,) = int8_sensitivity(proto, {"x": (0.0, 25500.0)}, fast_layout(), [(batch,)], lambda *_: None)
    assert coarse.activations > 0.1
    assert coarse.weights == 0.0


def test_the_plot_names_every_layer(hard: tuple[OnnxModel, Data], tmp_path: Path) -> None:
    page = int8_sensitivity_plot(quantization_sensitivity(*hard, QuantizeConfig()).layers)
    assert "node_linear_1" in page
    assert "activations" in page
    assert "<script src" not in page
