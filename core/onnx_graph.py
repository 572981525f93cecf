"""Reading and rewriting the protobuf of an ONNX graph: what makes and reads its tensors, its constants, its nodes.

What the dependencies offer is used as it is: `copy.deepcopy` copies a proto, `onnx.helper` makes nodes. ONNX Runtime's
`ONNXModel` maps tensors to nodes too, but untyped and blind to the bodies of If and Loop; `onnx_ir` converts a graph to
its own classes and back, which notes shapes that rewriting falsifies.

Every function looks at the nodes of the graph itself; those in the bodies of If, Loop and Scan count as part of the
node that holds them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

WATCHED = "/onnxpress/watched"
"""Ends the name by which `watch` puts out a tensor that no node makes."""


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor; inputs and initializers have none."""
    return {tensor: node for node in graph.node for tensor in node.output if tensor}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, a node as often as it reads it; the graph's outputs do not count."""
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in _reads(node):
            nodes.setdefault(tensor, []).append(node)
    return nodes


def attribute_values(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes that a node states, as Python values; those it leaves to their default are absent."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def initializer_arrays(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Return the values of every initializer; the arrays may be read-only, so copy what is to be changed."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def add_initializer(graph: onnx.GraphProto, name: str, values: NDArray[Any] | np.generic) -> str:
    """Add an initializer with the values' own type and shape, in place; return its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Let a graph consist of copies of these nodes, in this order and in place; they may be some of its own."""
    before = len(graph.node)
    graph.node.extend(nodes)
    del graph.node[:before]


def remove_unread(graph: onnx.GraphProto, may_go: Callable[[onnx.NodeProto], bool]) -> None:
    """Remove the nodes that may go and whose outputs nothing reads, and then what only those read, in place."""
    while True:
        read = consumers(graph).keys() | {output.name for output in graph.output}
        unread = [
            index
            for index, node in enumerate(graph.node)
            if may_go(node) and read.isdisjoint(filter(None, node.output))
        ]
        if not unread:
            return
        for index in reversed(unread):
            del graph.node[index]


def watch(graph: onnx.GraphProto, tensors: Sequence[str]) -> list[str]:
    """Let a graph put out these tensors, in this order, in place of its outputs.

    Return the names they are put out by: their own, except of inputs and initializers, which an Identity hands on.
    Their types are left to ONNX Runtime to infer.
    """
    made = producers(graph)
    names = [tensor if tensor in made else f"{tensor}{WATCHED}" for tensor in tensors]
    graph.node.extend(
        helper.make_node("Identity", [tensor], [name], name=name)
        for tensor, name in zip(tensors, names, strict=True)
        if tensor != name
    )
    del graph.output[:]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return names


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those that the graphs inside it read included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (output.name for output in graph.output)
