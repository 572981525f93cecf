"""A graph says who makes and reads its tensors, and is rewritten in place without touching what was not meant."""

from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.onnx_graph import (
    add_initializer,
    attribute_values,
    consumers,
    initializer_arrays,
    producers,
    remove_unread,
    replace_nodes,
    watch,
)
from core.sessions import open_graph, run_session

X = np.array([[1.0, -2.0]], np.float32)
W = np.array([[3.0, 0.5]], np.float32)


def model(*nodes: onnx.NodeProto, answers: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in answers],
        [numpy_helper.from_array(W, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small() -> onnx.ModelProto:
    """y = relu(x * w) + relu(x * w)."""
    return model(
        helper.make_node("Mul", ["x", "w"], ["scaled"], "mul"),
        helper.make_node("Relu", ["scaled"], ["positive"], "relu"),
        helper.make_node("Add", ["positive", "positive"], ["y"], "add"),
    )


def branching() -> onnx.ModelProto:
    """y = scaled or x, chosen by an If whose bodies read the tensors of the graph around them."""

    def body(tensor: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"chosen_{tensor}", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", [tensor], [output.name])], tensor, [], [output])

    return model(
        helper.make_node("Constant", [], ["yes"], "yes", value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Mul", ["x", "w"], ["scaled"], "mul"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=body("scaled"), else_branch=body("x")),
    )


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return run_session(open_graph(proto), X)


def test_each_tensor_has_the_node_that_makes_it() -> None:
    assert {tensor: node.name for tensor, node in producers(small().graph).items()} == {
        "scaled": "mul",
        "positive": "relu",
        "y": "add",
    }


def test_outputs_and_inputs_that_are_left_out_have_no_name() -> None:
    proto = model(
        helper.make_node("Dropout", ["x", "", ""], ["kept", ""]), helper.make_node("Clip", ["kept", "", "w"], ["y"])
    )
    assert list(producers(proto.graph)) == ["kept", "y"]
    assert list(consumers(proto.graph)) == ["x", "kept", "w"]


def test_a_node_counts_as_often_as_it_reads() -> None:
    reading = consumers(small().graph)
    assert {tensor: [node.name for node in nodes] for tensor, nodes in reading.items()} == {
        "x": ["mul"],
        "w": ["mul"],
        "scaled": ["relu"],
        "positive": ["add", "add"],
    }


def test_what_the_body_of_an_if_reads_is_read_by_the_if() -> None:
    reading = consumers(branching().graph)
    assert [node.name for node in reading["scaled"]] == ["if"]
    assert [node.name for node in reading["x"]] == ["mul", "if"]


def test_attributes_are_python_values_and_defaults_are_absent() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1], auto_pad="NOTSET")
    assert attribute_values(node) == {"group": 2, "pads": [1, 1], "auto_pad": b"NOTSET"}
    assert attribute_values(helper.make_node("Relu", ["x"], ["y"])) == {}


@pytest.mark.parametrize("values", [np.eye(3, dtype=np.float32), np.int64(7), np.zeros((2, 0), np.int8)])
def test_what_is_added_is_read_again(values: np.ndarray) -> None:
    graph = small().graph
    assert add_initializer(graph, "new", values) == "new"
    arrays = initializer_arrays(graph)
    np.testing.assert_array_equal(arrays["w"], W)
    np.testing.assert_array_equal(arrays["new"], values)
    assert arrays["new"].dtype == values.dtype
    assert arrays["new"].shape == values.shape


def test_a_graph_may_be_rebuilt_of_its_own_nodes_and_of_new_ones() -> None:
    proto = small()
    mul, relu, add = proto.graph.node
    negated = helper.make_node("Neg", ["scaled"], ["negated"])
    relu.input[0] = "negated"
    replace_nodes(proto.graph, [mul, negated, relu, add])
    assert operators(proto) == ["Mul", "Neg", "Relu", "Add"]
    np.testing.assert_array_equal(run(proto)["y"], 2 * np.maximum(-X * W, 0))


def test_what_nothing_reads_goes_and_then_what_it_alone_read() -> None:
    proto = small()
    proto.graph.node.append(helper.make_node("Relu", ["scaled"], ["a"]))
    proto.graph.node.append(helper.make_node("Relu", ["a"], ["b"]))
    remove_unread(proto.graph, lambda node: node.op_type == "Relu")
    assert proto == small()


def test_what_may_not_go_and_all_it_reads_stays() -> None:
    proto = small()
    proto.graph.node.append(helper.make_node("Relu", ["scaled"], ["a"]))
    proto.graph.node.append(helper.make_node("Neg", ["a"], ["b"]))
    before = deepcopy(proto)
    remove_unread(proto.graph, lambda node: node.op_type == "Relu")
    assert proto == before


def test_a_node_of_which_one_output_is_read_stays() -> None:
    split = helper.make_node("Split", ["x"], ["first", "y"], axis=1, num_outputs=2)
    proto = model(split)
    remove_unread(proto.graph, lambda _: True)
    assert operators(proto) == ["Split"]


def test_what_only_the_body_of_an_if_reads_stays() -> None:
    proto = branching()
    remove_unread(proto.graph, lambda _: True)
    assert proto == branching()


def test_watched_tensors_are_put_out_in_their_order_and_nothing_else_is() -> None:
    proto = small()
    names = watch(proto.graph, ["positive", "scaled"])
    assert names == ["positive", "scaled"]
    values = run(proto)
    assert list(values) == names
    np.testing.assert_array_equal(values["scaled"], X * W)
    np.testing.assert_array_equal(values["positive"], np.maximum(X * W, 0))


def test_inputs_and_initializers_can_be_watched() -> None:
    proto = small()
    names = watch(proto.graph, ["x", "w", "y"])
    assert names[2] == "y"
    assert not {"x", "w"} & set(names)
    values = run(proto)
    assert list(values) == names
    for name, expected in zip(names, (X, W, 2 * np.maximum(X * W, 0)), strict=True):
        np.testing.assert_array_equal(values[name], expected)
