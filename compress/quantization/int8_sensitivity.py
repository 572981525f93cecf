"""What each layer loses in int8, its weights and its activations apart.

One float32 graph serves every measurement: to each layer's weight and input, or to both inputs where it multiplies two,
a switch adds what rounding to int8 changes.
"""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy

import numpy as np
import onnx
import plotly.graph_objects as go
import torch
from onnx import TensorProto, helper
from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional

from compress.divergence import kl_divergence
from compress.quantization.calibration import Ranges
from compress.quantization.int8_layouts import PRODUCTS, Layout
from compress.quantization.int8_rounding import rounded_weight
from core.onnx_graph import add_initializer, initializer_arrays, replace_nodes, watch
from core.onnx_model import BAKED
from core.sessions import Array, FloatArray, open_graph, run_session

WEIGHTS, ACTIVATIONS = "/onnxpress/weights", "/onnxpress/activations"


class LayerDamage(BaseModel, frozen=True):
    """One layer.

    Attributes:
        node: Name of its node in the graph.
        operator: Its type.
        weights: Divergence of the answers with its weights in int8 and all else in float, in nats; 0 without weights.
        activations: The same of what it reads.
    """

    node: str
    operator: str
    weights: float
    activations: float

    @property
    def total(self) -> float:
        """The sum of both."""
        return self.weights + self.activations


def int8_sensitivity(
    proto: onnx.ModelProto,
    ranges: Ranges,
    layout: Layout,
    batches: Sequence[tuple[Array, ...]],
    progress: Callable[[int, int], None],
    in_float: Collection[str] = (),
) -> tuple[LayerDamage, ...]:
    """Quantize each layer alone, weights and activations apart, and measure how far the answers move.

    Args:
        proto: A float32 graph whose first output is logits (N, num_classes) or made of them by `export`.
        ranges: Of its tensors.
        layout: How weights are rounded.
        batches: What it reads, an array (N, ...) for each input.
        progress: Told how many layers are done, and of how many.
        in_float: Names of nodes that stay in float in any case: they are not measured.

    Returns:
        The layers in the order of the graph: mean Kullback-Leibler divergence from float32's answers.
    """
    switched, layers = _switched(proto, ranges, layout, in_float)
    [answer] = watch(switched.graph, [_logits(proto.graph)])
    session = open_graph(switched)

    def answers(weights: FloatArray, activations: FloatArray) -> Tensor:
        logits = [run_session(session, *batch, weights, activations)[answer] for batch in batches]
        return functional.log_softmax(torch.from_numpy(np.concatenate(logits)).double(), dim=1)

    off = np.zeros(len(layers), np.float32)
    in_float32 = answers(off, off)
    damages = []
    for index, node in enumerate(layers):
        alone = off.copy()
        alone[index] = 1
        weights, activations = (kl_divergence(in_float32, answers(*pair)) for pair in ((alone, off), (off, alone)))
        damages.append(LayerDamage(node=node.name, operator=node.op_type, weights=weights, activations=activations))
        progress(index + 1, len(layers))
    return tuple(damages)


def int8_sensitivity_plot(layers: Sequence[LayerDamage]) -> str:
    """Return one HTML page with a bar for each layer, weights and activations apart; it opens offline."""
    names = [layer.node for layer in layers]
    bars = [
        go.Bar(name=name, y=names, x=[getattr(layer, name) for layer in layers], orientation="h")
        for name in ("weights", "activations")
    ]
    figure = go.Figure(bars)
    figure.update_layout(
        title="Divergence of the answers with one layer in int8",
        barmode="stack",
        xaxis={"title": "nats", "side": "top"},
        yaxis={"autorange": "reversed", "automargin": True},
        height=160 + 22 * len(names),
        template="plotly_white",
    )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _logits(graph: onnx.GraphProto) -> str:
    """Return the tensor of the logits: what a baked softmax reads, else the first output."""
    baked = [node for node in graph.node if node.name.startswith(BAKED) and node.op_type == "Softmax"]
    name: str = baked[0].input[0] if baked else graph.output[0].name
    return name


def _switched(
    proto: onnx.ModelProto, ranges: Ranges, layout: Layout, in_float: Collection[str]
) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    """Return the graph with a switch for each layer's weights and input, and the layers."""
    switched = deepcopy(proto)
    graph = switched.graph
    constants = initializer_arrays(graph)
    layers: list[onnx.NodeProto] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        is_measured = node.op_type in PRODUCTS and node.name not in in_float
        if is_measured and all(tensor in ranges or tensor in constants for tensor in node.input[:2]):
            layers.append(node)
            for place, tensor in enumerate(node.input[:2]):
                kind = WEIGHTS if tensor in constants else ACTIVATIONS
                name = f"{node.name}{kind}/{place}"
                if tensor in constants:
                    weight = constants[tensor]
                    add_initializer(graph, f"{name}/change", rounded_weight(weight, node, layout) - weight)
                else:
                    nodes += _rounding(name, tensor, ranges[tensor], graph)
                nodes += _added(name, tensor, f"{name}/change", kind, len(layers) - 1, graph)
                node.input[place] = name
        nodes.append(node)
    replace_nodes(graph, nodes)
    graph.input.extend(
        helper.make_tensor_value_info(switches, TensorProto.FLOAT, [len(layers)]) for switches in (WEIGHTS, ACTIVATIONS)
    )
    return switched, layers


def _added(
    name: str, tensor: str, change: str, switches: str, index: int, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Return the nodes that make `name`: a tensor plus a change times the switch at an index."""
    place = add_initializer(graph, f"{name}/index", np.array(index))
    return [
        helper.make_node("Gather", [switches, place], [f"{name}/switch"]),
        helper.make_node("Mul", [change, f"{name}/switch"], [f"{name}/part"]),
        helper.make_node("Add", [tensor, f"{name}/part"], [name]),
    ]


def _rounding(name: str, tensor: str, ends: tuple[float, float], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that make the change that rounding to uint8 in a range makes to a tensor."""
    low, high = ends
    scale = np.float32(max(high - low, 1e-12) / 255)
    coding = [
        add_initializer(graph, f"{name}/scale", scale),
        add_initializer(graph, f"{name}/zero", np.uint8(round(-low / scale))),
    ]
    return [
        helper.make_node("QuantizeLinear", [tensor, *coding], [f"{name}/int8"]),
        helper.make_node("DequantizeLinear", [f"{name}/int8", *coding], [f"{name}/rounded"]),
        helper.make_node("Sub", [f"{name}/rounded", tensor], [f"{name}/change"]),
    ]
