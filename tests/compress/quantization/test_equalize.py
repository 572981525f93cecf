"""Equalized channels answer as before and reach equally far; corrected biases leave no error on average."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.bias_correction import channel_means, corrected
from compress.quantization.equalize import equalized
from compress.quantization.int8_layouts import fast_layout
from compress.quantization.int8_rounding import rounded_weight
from core.sessions import open_session

Arrays = dict[str, NDArray[np.float32]]


def chain(nodes: list[onnx.NodeProto], weights: Arrays, shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(proto: onnx.ModelProto, inputs: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    onnx.save(proto, folder / "model.onnx")
    return open_session(folder / "model.onnx").run(None, {"x": inputs})[0]


def weight(proto: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    return next(numpy_helper.to_array(one) for one in proto.graph.initializer if one.name == name)


def uneven(*shape: int) -> NDArray[np.float32]:
    """Values whose first axis differs in reach by three orders of magnitude."""
    random = np.random.default_rng(sum(shape))
    scales = np.logspace(-1.5, 1.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (random.standard_normal(shape) * scales).astype(np.float32)


def convolutions() -> onnx.ModelProto:
    """A convolution, a depthwise one and a strided one, with what a channel's factor passes through between them."""
    return chain(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["c"], "depthwise", group=8, pads=[1, 1, 1, 1]),
            helper.make_node("LeakyRelu", ["c"], ["d"]),
            helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2]),
            helper.make_node("Conv", ["e", "w3", "b3"], ["y"], "last", strides=[2, 2]),
        ],
        {
            "w1": uneven(8, 3, 3, 3),
            "b1": uneven(8),
            "w2": uneven(8, 1, 3, 3)[::-1],
            "w3": uneven(5, 8, 3, 3),
            "b3": uneven(5),
        },
        (3, 10, 10),
    )


def matrices() -> onnx.ModelProto:
    return chain(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], "first", transB=1),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "w2", "b2"], ["y"], "last"),
        ],
        {"w1": uneven(8, 6), "b1": uneven(8), "w2": uneven(8, 4)[::-1], "b2": uneven(4)},
        (6,),
    )


@pytest.mark.parametrize("make", [convolutions, matrices])
def test_equalized_graphs_answer_alike(make, tmp_path: Path) -> None:
    proto = make()
    shape = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    inputs = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    made = equalized(proto)
    np.testing.assert_allclose(answers(made, inputs, tmp_path), answers(proto, inputs, tmp_path), rtol=1e-3, atol=1e-3)


def test_shared_channels_reach_equally_far() -> None:
    made = equalized(matrices())
    first, last = np.abs(weight(made, "w1")).max(1), np.abs(weight(made, "w2")).max(1)
    np.testing.assert_allclose(first, last, rtol=0.01)


@pytest.mark.parametrize("between", ["Sigmoid", "Softplus"])
def test_what_no_factor_passes_through_is_left(between: str) -> None:
    proto = matrices()
    proto.graph.node[1].op_type = between
    assert equalized(proto) is None


def test_a_weight_that_two_layers_share_is_left() -> None:
    proto = chain(
        [
            helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "w"], ["y"], "last"),
        ],
        {"w": uneven(6, 6)},
        (6,),
    )
    assert equalized(proto) is None


def test_a_dead_channel_is_left_as_it_is(tmp_path: Path) -> None:
    proto = matrices()
    dead = weight(proto, "w1").copy()
    dead[3] = 0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(dead, "w1"))
    made = equalized(proto)
    assert np.isfinite(weight(made, "w2")).all()
    np.testing.assert_array_equal(weight(made, "w1")[3], 0)


@pytest.mark.parametrize("make", [convolutions, matrices])
@pytest.mark.parametrize("shared", [True, False], ids=["per channel", "per tensor"])
def test_a_corrected_bias_takes_off_what_rounding_adds(make, shared: bool, tmp_path: Path) -> None:
    """A single layer, so that nothing is rounded before it, whose inputs are far from zero on average."""
    proto = make()
    first = proto.graph.node[0]
    del proto.graph.node[1:], proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    for attribute in list(first.attribute):
        if attribute.name == "pads":
            first.attribute.remove(attribute)
    shape = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    inputs = np.random.default_rng(0).uniform(0, 5, (64, *shape)).astype(np.float32)
    layout = fast_layout().model_copy(update={"per_channel": shared})

    def rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
        made = onnx.ModelProto.FromString(graph.SerializeToString())
        constant = next(one for one in made.graph.initializer if one.name == "w1")
        values = rounded_weight(numpy_helper.to_array(constant), made.graph.node[0], layout)
        constant.CopyFrom(numpy_helper.from_array(values, "w1"))
        return made

    def bias(graph: onnx.ModelProto) -> float:
        error = answers(rounded(graph), inputs, tmp_path) - answers(proto, inputs, tmp_path)
        return float(np.abs(error.mean(axis=(0, *range(2, error.ndim)))).max())

    means = channel_means(proto, [(inputs[:32],), (inputs[32:],)])
    assert bias(corrected(proto, means, layout)) < 0.1 * bias(proto)
