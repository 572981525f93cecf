"""What an int8 file computes on x86 processors without VNNI, whose multiply of uint8 by int8 saturates.

Their instruction, vpmaddubsw, adds two neighbouring products in 16 bits. ONNX Runtime's convolutions and matrix
products use it, and two weights of the same sign that both exceed half of int8's range can overflow it. What each such
pair loses is subtracted in a float graph, which then answers as those processors do.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from core.onnx_graph import add_initializer, attribute_values, initializer_arrays, producers, replace_nodes

MOST = 255  # the highest code of an activation
LOWEST, HIGHEST = -(2**15), 2**15 - 1
THE_REST = np.iinfo(np.int64).max  # the end of a slice that has no end

Constants = Mapping[str, NDArray[Any]]
Add = Callable[..., str]
"""Adds a node: a suffix of its name, its operator, its inputs and attributes -> the tensor it makes."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A node that multiplies codes, and the pairs of neighbouring weights in it that can saturate.

    Attributes:
        node: The node.
        codes: The tensor of its input's codes.
        offset: Added to those codes where they are signed: the instruction takes unsigned ones.
        zero_point: Of those codes.
        scale: Of the input times that of each output channel's weight, (O,).
        weight: Codes of a convolution's weight, (O, I, *kernel), or of a matrix, (O, K).
        groups: Of a convolution.
        sizes: Of the input's axes beyond the channels, 0 where one is not known; empty for a matrix.
        pairs: Weights of each pair, (2, P).
        output: Which output channel each pair adds to, (P,).
        first: Place of each pair's first weight in the sum, (P,), ascending; the second is the next.
    """

    node: onnx.NodeProto
    codes: str
    offset: int
    zero_point: int
    scale: NDArray[np.float32]
    weight: NDArray[np.int8]
    groups: int
    sizes: tuple[int, ...]
    pairs: NDArray[np.float32]
    output: NDArray[np.int64]
    first: NDArray[np.int64]


def saturating(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the float graph that computes what a file computes on those processors, or None where no pair saturates.

    Args:
        proto: A quantized file, in the QDQ form or dynamic.
    """
    saturated = deepcopy(proto)
    graph = saturated.graph
    constants = initializer_arrays(graph)
    maker = producers(graph)
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    sizes = _sizes(proto)
    products = [_product(node, maker, constants, rounded, sizes) for node in graph.node]
    if not any(products):
        return None
    nodes: list[onnx.NodeProto] = []
    for node, product in zip(graph.node, products, strict=True):
        nodes += [node] if product is None else _saturating_nodes(product, maker, constants, graph)
    replace_nodes(graph, nodes)
    return saturated


def _saturating_nodes(
    product: _Product, maker: Mapping[str, onnx.NodeProto], constants: Constants, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Return the nodes that make what a product is on those processors, under its name and type."""
    node, answer = product.node, product.node.output[0]
    exact, excess = _exact(node, maker, constants, graph), _excess(product, answer, graph)
    parts = [exact[-1].output[0], excess[-1].output[0]]
    if node.op_type != "MatMulInteger":
        return [*exact, *excess, helper.make_node("Add", parts, [answer])]
    total = helper.make_node("Add", parts, [f"{answer}/saturated"])
    return [*exact, *excess, total, helper.make_node("Cast", [total.output[0]], [answer], to=TensorProto.INT32)]


def _sizes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the sizes of every tensor's axes beyond the first two, 0 where one is not known."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    tensors = [*graph.input, *graph.value_info]
    return {tensor.name: tuple(axis.dim_value for axis in tensor.type.tensor_type.shape.dim[2:]) for tensor in tensors}


def _product(
    node: onnx.NodeProto,
    maker: Mapping[str, onnx.NodeProto],
    constants: Constants,
    rounded: set[str],
    sizes: Mapping[str, tuple[int, ...]],
) -> _Product | None:
    """Return the product of a node, or None where it does not become an integer kernel that can saturate."""
    if node.op_type == "MatMulInteger":
        matrix = constants.get(node.input[1])
        return None if matrix is None else _paired(node, node.input[0], np.uint8(0), np.ones(1, np.float32), matrix.T)
    if node.op_type not in ("Conv", "Gemm", "MatMul") or (node.op_type == "Conv" and node.output[0] not in rounded):
        return None
    given, weights = (maker.get(tensor) for tensor in node.input[:2])
    if not (given and weights and given.op_type == weights.op_type == "DequantizeLinear"):
        return None
    weight = constants.get(weights.input[0])
    if weight is None or given.input[0] in constants:
        return None
    attributes = attribute_values(node)
    zero_point = constants[given.input[2]]
    scale = constants[given.input[1]] * constants[weights.input[1]]
    if node.op_type != "Conv":
        return _paired(node, given.input[0], zero_point, scale, weight if attributes.get("transB") else weight.T)
    groups = attributes.get("group", 1)
    if weight.shape[1] == 1 and groups == len(weight):  # depthwise kernels have 32 bits
        return None
    ordered = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)  # position by position, channels last
    product = _paired(node, given.input[0], zero_point, scale, ordered)
    return product and replace(product, weight=weight, groups=groups, sizes=sizes.get(node.input[0], ()))


def _paired(
    node: onnx.NodeProto,
    codes: str,
    zero_point: NDArray[Any] | np.generic,
    scale: NDArray[np.float32],
    weight: NDArray[Any],
) -> _Product | None:
    """Return a product whose weight is in the order of its sum, (O, K), or None where no pair in it can saturate."""
    if weight.dtype != np.int8 or weight.ndim != 2:  # uint8 by uint8 has 32 bits
        return None
    pairs = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2))).astype(np.float32).reshape(len(weight), -1, 2)
    above, below = MOST * pairs.clip(min=0).sum(2), MOST * pairs.clip(max=0).sum(2)
    place, output = np.nonzero(((above > HIGHEST) | (below < LOWEST)).T)
    if not len(place):
        return None
    return _Product(
        node=node,
        codes=codes,
        offset=128 if zero_point.dtype == np.int8 else 0,
        zero_point=int(zero_point),
        scale=np.broadcast_to(scale, len(weight)),
        weight=weight,
        groups=1,
        sizes=(),
        pairs=pairs[output, place].T,
        output=output,
        first=2 * place,
    )


def _exact(
    node: onnx.NodeProto, maker: Mapping[str, onnx.NodeProto], constants: Constants, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Return the nodes that make a product in float, the last of them its result; this processor may saturate too."""
    answer = node.output[0]
    nodes: list[onnx.NodeProto] = []
    add = partial(_add, nodes, graph, f"{answer}/exact")
    if node.op_type == "MatMulInteger":
        codes = add("float", "Cast", [node.input[0]], to=TensorProto.FLOAT)
        if len(node.input) > 2:  # A, B and their zero points
            codes = add("centred", "Sub", [codes, add("zero", "Cast", [node.input[2]], to=TensorProto.FLOAT)])
        add("product", "MatMul", [codes, _centred(*(constants[tensor] for tensor in (node.input[1], *node.input[3:])))])
        return nodes
    weights = maker[node.input[1]]
    rounded, scale, *zero = (constants[tensor] for tensor in weights.input)
    axis = attribute_values(weights).get("axis", 1)
    along = [-1 if number == axis else 1 for number in range(rounded.ndim)] if scale.ndim else []
    weight = _centred(rounded, *(point.reshape(along) for point in zero)) * scale.reshape(along)
    add("product", node.op_type, [node.input[0], weight, *node.input[2:]], **attribute_values(node))
    return nodes


def _centred(codes: NDArray[Any], *zero: NDArray[Any]) -> NDArray[np.float32]:
    """Return codes less their zero point, where they have one."""
    return codes.astype(np.float32) - sum(point.astype(np.float32) for point in zero)


def _excess(product: _Product, name: str, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that make what saturation adds to a product, the last of them the result."""
    nodes: list[onnx.NodeProto] = []
    add = partial(_add, nodes, graph, name)
    codes = add("float", "Cast", [product.codes], to=TensorProto.FLOAT)
    if product.offset:
        codes = add("unsigned", "Add", [codes, np.float32(product.offset)])
    is_convolution = product.node.op_type == "Conv"
    taken = (_taken_by_convolution if is_convolution else _taken_by_matrix)(product, codes, add)
    per_pair = (-1,) + (1,) * (product.weight.ndim - 2) if is_convolution else (-1,)
    parts = [
        add(f"part{index}", "Mul", [tensor, weights.reshape(per_pair)])
        for index, (tensor, weights) in enumerate(zip(taken, product.pairs, strict=True))
    ]
    exact = add("whole", "Add", parts)
    clipped = add("kept", "Clip", [exact, np.float32(LOWEST), np.float32(HIGHEST)])
    excess = add("excess", "Sub", [clipped, exact])
    into = np.zeros((len(product.weight), len(product.output)), np.float32)
    into[product.output, np.arange(len(product.output))] = product.scale[product.output]
    if is_convolution:
        add("sum", "Conv", [excess, into.reshape(*into.shape, *[1] * (product.weight.ndim - 2))])
    else:
        add("sum", "MatMul", [excess, np.ascontiguousarray(into.T)])
    return nodes


def _taken_by_matrix(product: _Product, codes: str, add: Add) -> tuple[str, str]:
    """Return the codes that the first and the second weight of each pair are multiplied by, (..., P) each."""
    last = product.weight.shape[1] - 1
    first, second = product.first, np.minimum(product.first + 1, last)
    return add("first", "Gather", [codes, first], axis=-1), add("second", "Gather", [codes, second], axis=-1)


def _taken_by_convolution(product: _Product, codes: str, add: Add) -> tuple[str, str]:
    """Return the codes that the first and the second weight of each pair are multiplied by, (N, P, ...) each."""
    attributes = attribute_values(product.node)
    channels, *kernel = product.weight.shape[1:]
    rank = len(kernel)
    strides, dilations = (np.array(attributes.get(name) or [1] * rank) for name in ("strides", "dilations"))
    reach = (np.array(kernel) - 1) * dilations
    pads = _pads(attributes, product.sizes, reach)
    if any(pads):
        around = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]])
        codes = add("padded", "Pad", [codes, around, np.float32(product.zero_point + product.offset)])
    group = product.output // (len(product.weight) // product.groups)
    axes = np.arange(2, 2 + rank)
    taken = []
    for side in (0, 1):
        place = np.minimum(product.first + side, channels * int(np.prod(kernel)) - 1)
        parts = []
        for number, position in enumerate(itertools.product(*map(range, kernel))):
            here = place // channels == number
            if not here.any():
                continue
            start = np.array(position) * dilations
            after = reach - start  # values that the window still reads behind this position
            end = np.where(after == 0, THE_REST, -after)
            name = f"side{side}-{number}"
            seen = add(f"{name}/seen", "Slice", [codes, start, end, axes, strides])
            chosen = group[here] * channels + place[here] % channels
            parts.append(add(name, "Gather", [seen, chosen], axis=1))
        taken.append(add(f"side{side}", "Concat", parts, axis=1))
    return taken[0], taken[1]


def _pads(attributes: Mapping[str, Any], sizes: Sequence[int], reach: NDArray[np.int64]) -> list[int]:
    """Return the padding of a convolution, before and then after each axis.

    Args:
        attributes: Its own.
        sizes: Of its input's axes, 0 where one is not known.
        reach: Distance from the first to the last value that one output reads, along each axis.
    """
    rank = len(reach)
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        return list(attributes.get("pads") or [0] * (2 * rank))
    strides = attributes.get("strides") or [1] * rank
    pairs = []
    for size, stride, far in zip(sizes, strides, reach.tolist(), strict=True):
        total = far if stride == 1 else max((-(-size // stride) - 1) * stride + far + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if mode == b"SAME_UPPER" else (more, less))
    return [before for before, _ in pairs] + [after for _, after in pairs]


def _add(
    nodes: list[onnx.NodeProto],
    graph: onnx.GraphProto,
    name: str,
    suffix: str,
    operator: str,
    inputs: Sequence[str | NDArray[Any] | np.generic],
    **attributes: Any,
) -> str:
    """Append a node, and an initializer for each input that is an array; return the tensor that the node makes."""
    tensors = [
        given if isinstance(given, str) else add_initializer(graph, f"{name}/{suffix}/{index}", given)
        for index, given in enumerate(inputs)
    ]
    nodes.append(helper.make_node(operator, tensors, [f"{name}/{suffix}"], f"{name}/{suffix}", **attributes))
    return nodes[-1].output[0]
