"""What a file does beside the network: makes its input from uint8 images, and probabilities or top-k of its logits.

The nodes stand around the network's own, and their names begin with `core.onnx_model.BAKED`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from core.answers import LOGITS, PROBABILITIES, top_k
from core.errors import ToolError
from core.input_spec import InputSpec
from core.onnx_graph import add_initializer
from core.onnx_model import BAKED
from core.preprocessing import InputForm, Preprocessing
from core.torch_model import TorchModel

IMAGES, CLASSES = "images", "classes"


def check_bakeable(model: TorchModel, outputs: Sequence[str], num_classes: int, takes: InputForm, returns: str) -> None:
    """Check that a model's file can take and return this.

    Raises:
        ToolError: The samples are no images, there are fewer than k classes, or more outputs than the logits.
    """
    if takes == "uint8" and model.preprocessing.image_size is None:
        raise ToolError(
            f"{model.name} takes samples of shape {model.inputs[0].shape} that are not images, and uint8 input is for "
            "images; export it with --input float32"
        )
    if returns != LOGITS and len(outputs) > 1:
        raise ToolError(
            f"{model.name} has {len(outputs)} outputs ({', '.join(outputs)}), and {returns} are made of one that has "
            "logits alone; export it with --returns logits"
        )
    k = top_k(returns)
    if k is not None and k > num_classes:
        raise ToolError(f"{model.name} has {num_classes} classes and cannot return the {returns}; ask for fewer")


def bake_preprocessing(proto: onnx.ModelProto, preprocessing: Preprocessing) -> InputSpec:
    """Let a graph take images (N, H, W, C) uint8 in place of what they are normalised to, in place.

    Returns:
        The new input.
    """
    graph = proto.graph
    taken = graph.input[0]
    batch, channels, height, width = taken.type.tensor_type.shape.dim
    steps: list[tuple[str, list[str]]] = [("Transpose", []), ("Cast", [])]
    std = np.asarray(preprocessing.std or (1.0,)).reshape(-1, 1, 1)
    factor, offset = preprocessing.scale / std, -np.asarray(preprocessing.mean or (0.0,)).reshape(-1, 1, 1) / std
    if (factor != 1).any():
        steps.append(("Mul", [_constant(graph, "factor", factor)]))
    if (offset != 0).any():
        steps.append(("Add", [_constant(graph, "offset", offset)]))
    names = [IMAGES, *(BAKED + operator.lower() for operator, _ in steps[:-1]), taken.name]
    attributes: dict[str, dict[str, Any]] = {"Transpose": {"perm": (0, 3, 1, 2)}, "Cast": {"to": TensorProto.FLOAT}}
    for index, (operator, constants) in enumerate(steps):
        node = helper.make_node(
            operator,
            [names[index], *constants],
            [names[index + 1]],
            name=BAKED + operator.lower(),
            **attributes.get(operator, {}),
        )
        graph.node.insert(index, node)
    sizes = [one.dim_value for one in (height, width, channels)]
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch.dim_param or batch.dim_value, *sizes])
    taken.CopyFrom(images)
    return InputSpec(name=IMAGES, shape=tuple(sizes), dtype="uint8")


def bake_answer(proto: onnx.ModelProto, returns: str, num_classes: int) -> None:
    """Let a graph that returns logits (N, K) return probabilities (N, K), or the k highest and their classes, in place.

    The outputs of top-k are ``probabilities`` (N, k) float32, highest first, and ``classes`` (N, k) int64.
    """
    if returns == LOGITS:
        return
    graph, k = proto.graph, top_k(returns)
    _make_way(graph, (PROBABILITIES, CLASSES))
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    sizes = [batch.dim_param or batch.dim_value, k or num_classes]
    softened = PROBABILITIES if k is None else f"{BAKED}{PROBABILITIES}"
    graph.node.append(helper.make_node("Softmax", [graph.output[0].name], [softened], name=f"{BAKED}softmax", axis=1))
    outputs = [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, sizes)]
    if k is not None:
        inputs = [softened, add_initializer(graph, f"{BAKED}k", np.array([k], np.int64))]
        graph.node.append(helper.make_node("TopK", inputs, [PROBABILITIES, CLASSES], name=f"{BAKED}top_k", axis=1))
        outputs.append(helper.make_tensor_value_info(CLASSES, TensorProto.INT64, sizes))
    del graph.output[:]
    graph.output.extend(outputs)


def _make_way(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Rename what goes by one of the names already, such as an output that the module calls so."""
    renamed = {name: f"{BAKED}{name}_given" for name in names}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)


def _constant(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    return add_initializer(graph, f"{BAKED}{name}", values.astype(np.float32))
