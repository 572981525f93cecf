"""What each layer loses in int8, its weights and its activations apart.

One float32 graph serves every look: behind each layer's weight and input, or both inputs where it multiplies two,
stands the rounding to int8, which a switch adds.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx
import plotly.graph_objects as go
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional

from compress.calibration import Ranges
from compress.damage import kl_divergence
from compress.int8_layouts import PRODUCTS, Layout
from compress.int8_rounding import rounded_weight
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
        """Both."""
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
        batches: What it is asked, an array (N, ...) for each input.
        progress: Told of looks done and looks in all.
        in_float: Names of nodes that stay in float whatever is found: they are not looked at.

    Returns:
        The layers in the order of the graph: mean Kullback-Leibler divergence from float32's answers.
    """
    switched, layers = _switched(proto, ranges, layout, in_float)
    answer = _logits(proto.graph)
    if answer not in [one.name for one in switched.graph.output]:
        switched.graph.output.append(helper.make_tensor_value_info(answer, TensorProto.FLOAT, None))
    session = open_graph(switched)

    def answers(weights: FloatArray, activations: FloatArray) -> Tensor:
        logits = [run_session(session, *batch, weights, activations)[answer] for batch in batches]
        return functional.log_softmax(torch.from_numpy(np.concatenate(logits)).double(), dim=1)

    off = np.zeros(len(layers), np.float32)
    whole = answers(off, off)
    found = []
    for index, node in enumerate(layers):
        alone = off.copy()
        alone[index] = 1
        damage = [kl_divergence(whole, answers(*pair)) for pair in ((alone, off), (off, alone))]
        found.append(LayerDamage(node=node.name, operator=node.op_type, weights=damage[0], activations=damage[1]))
        progress(index + 1, len(layers))
    return tuple(found)


def int8_sensitivity_plot(found: Sequence[LayerDamage]) -> str:
    """Return one HTML page with a bar for each layer, weights and activations apart; it opens offline."""
    names = [one.node for one in found]
    bars = [
        go.Bar(name=name, y=names, x=[getattr(one, name) for one in found], orientation="h")
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
    baked = [one for one in graph.node if one.name.startswith(BAKED) and one.op_type == "Softmax"]
    name: str = baked[0].input[0] if baked else graph.output[0].name
    return name


def _switched(
    proto: onnx.ModelProto, ranges: Ranges, layout: Layout, in_float: Collection[str]
) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    """Return the graph with a switch for each layer's weights and input, and the layers."""
    switched = onnx.ModelProto()
    switched.CopyFrom(proto)
    graph = switched.graph
    constants = {one.name: one for one in graph.initializer}
    layers: list[onnx.NodeProto] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        looked_at = node.op_type in PRODUCTS and node.name not in in_float
        if looked_at and all(one in ranges or one in constants for one in node.input[:2]):
            layers.append(node)
            for place, tensor in enumerate(node.input[:2]):
                kind = WEIGHTS if tensor in constants else ACTIVATIONS
                own = f"{node.name}{kind}/{place}"
                if tensor in constants:
                    weight = numpy_helper.to_array(constants[tensor])
                    rounded = rounded_weight(weight, node, layout)
                    graph.initializer.append(numpy_helper.from_array(rounded - weight, f"{own}/change"))
                else:
                    nodes += _rounding(own, tensor, ranges[tensor], graph)
                nodes += _added(own, tensor, f"{own}/change", kind, len(layers) - 1, graph)
                node.input[place] = own
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.input.extend(
        helper.make_tensor_value_info(one, TensorProto.FLOAT, [len(layers)]) for one in (WEIGHTS, ACTIVATIONS)
    )
    return switched, layers


def _added(name: str, tensor: str, change: str, switches: str, index: int, graph: onnx.GraphProto) -> list[Any]:
    """Return the nodes that make `name`: a tensor and, as far as a switch says, a change."""
    graph.initializer.append(numpy_helper.from_array(np.array(index), f"{name}/index"))
    return [
        helper.make_node("Gather", [switches, f"{name}/index"], [f"{name}/switch"]),
        helper.make_node("Mul", [change, f"{name}/switch"], [f"{name}/part"]),
        helper.make_node("Add", [tensor, f"{name}/part"], [name]),
    ]


def _rounding(name: str, tensor: str, kept: tuple[float, float], graph: onnx.GraphProto) -> list[Any]:
    """Return the nodes that make what rounding to uint8 in a range adds to a tensor."""
    scale = np.float32(max(kept[1] - kept[0], 1e-12) / 255)
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(round(-kept[0] / scale), np.uint8), f"{name}/zero"))
    coding = [f"{name}/scale", f"{name}/zero"]
    return [
        helper.make_node("QuantizeLinear", [tensor, *coding], [f"{name}/int8"]),
        helper.make_node("DequantizeLinear", [f"{name}/int8", *coding], [f"{name}/rounded"]),
        helper.make_node("Sub", [f"{name}/rounded", tensor], [f"{name}/change"]),
    ]
