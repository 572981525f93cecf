"""How long single layers take on ONNX Runtime: what a search asks before it has a model to time.

Layers stand side by side in one file, or in as few as memory allows, that run under the profiler: each is timed with
caches as cold as in a model, in the kernels that ONNX Runtime chooses there. What was timed is kept, for this
machine and these versions.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter

from bench.profile import profile
from core.errors import ToolError
from core.external_data import write_onnx
from core.history import digest_of
from core.layer_shape import LayerShape
from core.machine import package_versions, this_machine
from core.onnx_model import open_onnx
from core.whole_output import scratch_folder, whole_file

logger = logging.getLogger(__name__)

OPSET = 20
MOST_BYTES = 512_000_000  # in a file: ONNX Runtime holds weights several times over, and protobuf 2 GB at most
SCALE = 0.05  # of every quantized tensor: no time depends on it


_TABLE = TypeAdapter(dict[str, float])  # layer -> milliseconds


def layer_latencies(
    layers: Sequence[LayerShape],
    *,
    provider: str,
    threads: int,
    batch_size: int,
    types: tuple[str, str] | None = None,
    cache: Path | None = None,
) -> list[float]:
    """Return the milliseconds that each layer takes.

    Args:
        layers: What to time; equal ones are timed once.
        provider: Where.
        threads: Threads inside an operator; 0 takes the cores this process may use.
        batch_size: Samples a run.
        types: Of activations and weights, ``uint8`` or ``int8``, as a QDQ file has them; None for float32.
        cache: Folder that keeps what was timed; None takes the user's cache folder.

    Raises:
        ToolError: The provider cannot be used.
    """
    where = [provider, threads, batch_size, types, this_machine().model_dump(), package_versions()]
    path = (cache or cache_folder()) / f"layers-{digest_of(where)[:16]}.json"
    known = _read(path)
    missing = {_key(layer): layer for layer in layers if _key(layer) not in known}
    if missing:
        for layers_of_file in _parts(list(missing.values()), types, batch_size):
            times = _timed(layers_of_file, provider, threads, batch_size, types)
            known |= zip(map(_key, layers_of_file), times, strict=True)
        _keep(known, path)
    return [known[_key(layer)] for layer in layers]


def cache_folder() -> Path:
    """Return where tables are kept: ``$ONNXPRESS_CACHE``, else ``onnxpress`` in the user's cache folder."""
    named = os.environ.get("ONNXPRESS_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxpress"


def _parts(layers: Sequence[LayerShape], types: tuple[str, str] | None, batch_size: int) -> list[list[LayerShape]]:
    """Return the layers in parts of about equal bytes: a few layers alone would find their caches warm."""
    sizes = [_num_bytes(layer, types, batch_size) for layer in layers]
    parts: list[list[LayerShape]] = [[] for _ in range(math.ceil(sum(sizes) / MOST_BYTES))]
    filled = [0] * len(parts)
    for size, layer in sorted(zip(sizes, layers, strict=True), key=lambda one: -one[0]):
        emptiest = filled.index(min(filled))
        parts[emptiest].append(layer)
        filled[emptiest] += size
    return [part for part in parts if part]


def _num_bytes(layer: LayerShape, types: tuple[str, str] | None, batch_size: int) -> int:
    """Return what a layer's weights, input and output take in a session, where all of them are alive at once."""
    is_float = types is None or layer.kind in ("lstm", "gru")
    return _num_weights(layer) * (4 if is_float else 1) + 4 * batch_size * _num_activations(layer)


def _num_activations(layer: LayerShape) -> int:
    """Return how many numbers a sample's input and output are; that of a convolution as its stride leaves it."""
    num_places = math.prod(layer.size)
    return num_places * layer.in_channels + num_places * layer.out_channels // math.prod(layer.stride)


def _num_weights(layer: LayerShape) -> int:
    if layer.kind in ("lstm", "gru"):
        hidden = layer.out_channels // layer.directions
        read = layer.in_channels + (layer.depth - 1) * layer.out_channels + layer.depth * hidden
        return (4 if layer.kind == "lstm" else 3) * layer.out_channels * read
    return layer.out_channels * (layer.in_channels // layer.groups) * math.prod(layer.kernel)


def _timed(
    layers: Sequence[LayerShape], provider: str, threads: int, batch_size: int, types: tuple[str, str] | None
) -> list[float]:
    """Return the milliseconds that each layer takes in a file with the others."""
    with scratch_folder() as scratch:
        file = scratch / "layers.onnx"
        write_onnx(_side_by_side(layers, batch_size, types), file)
        nodes = profile(open_onnx(file), provider, threads, batch_size)
    times: dict[str, float] = defaultdict(float)
    for node in nodes:
        if node.name.startswith("layer"):
            times[node.name.split("_")[0]] += node.ms
    return [times[f"layer{index}"] for index in range(len(layers))]


def _read(path: Path) -> dict[str, float]:
    try:
        return _TABLE.validate_json(path.read_bytes())
    except (OSError, ValueError):  # not there yet, or damaged: it is timed anew
        return {}


def _keep(known: dict[str, float], path: Path) -> None:
    """Write a table, or warn that it is not kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_bytes(_TABLE.dump_json(known))
    except (OSError, ToolError) as error:
        logger.warning(
            "what layers take cannot be kept in %s (%s): it is timed anew each time; name a folder in $ONNXPRESS_CACHE",
            path.parent,
            error,
        )


def _key(layer: LayerShape) -> str:
    return layer.model_dump_json()


def _side_by_side(layers: Sequence[LayerShape], batch_size: int, types: tuple[str, str] | None) -> onnx.ModelProto:
    """Return a file of one input and one output for each layer, of node ``layer0``, ``layer1``, ..."""
    parts: list[Any] = [[], [], [], []]
    for index, layer in enumerate(layers):
        for whole, part in zip(parts, _alone(f"layer{index}", layer, batch_size, types), strict=True):
            whole += part
    nodes, inputs, outputs, constants = parts
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _alone(name: str, layer: LayerShape, batch_size: int, types: tuple[str, str] | None) -> Sequence[Any]:
    """Return a layer's nodes, inputs, outputs and constants."""
    if layer.kind in ("lstm", "gru"):
        return _recurrent(name, layer)
    is_conv = layer.kind == "conv"
    shape = (batch_size, layer.in_channels, *layer.size) if is_conv else (batch_size, *layer.size, layer.in_channels)
    weight_shape = (
        (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        if is_conv
        else (layer.in_channels, layer.out_channels)
    )
    random = np.random.default_rng(0)
    bias = np.zeros(layer.out_channels, np.float32)
    attributes: dict[str, Any] = {}
    if is_conv:
        attributes = {
            "kernel_shape": layer.kernel,
            "strides": layer.stride,
            "pads": list(layer.padding),
            "dilations": layer.dilation,
            "group": layer.groups,
        }
    inputs = [helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, ["batch", *shape[1:]])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
    is_gemm = not is_conv and not layer.size
    operator = "Conv" if is_conv else "Gemm" if is_gemm else "MatMul"
    if types is None:
        constants = [numpy_helper.from_array(random.standard_normal(weight_shape, dtype=np.float32), f"{name}_w")]
        operands = [f"{name}_in", f"{name}_w"]
        if operator != "MatMul":
            constants.append(numpy_helper.from_array(bias, f"{name}_b"))
            operands.append(f"{name}_b")
        return [helper.make_node(operator, operands, [name], name=name, **attributes)], inputs, outputs, constants
    return _quantized(name, operator, attributes, weight_shape, types, inputs, outputs)


def _recurrent(name: str, layer: LayerShape) -> Sequence[Any]:
    """Return a recurrent layer, a node for each of its depth, in float32 whatever is asked: none is quantized."""
    gates = 4 if layer.kind == "lstm" else 3
    hidden = layer.out_channels // layer.directions
    parts: list[list[Any]] = [[], [], [], []]
    random = np.random.default_rng(0)
    for level in range(layer.depth):
        own, width = f"{name}_{level}", layer.out_channels if level else layer.in_channels
        operands = {
            "w": random.standard_normal((layer.directions, gates * hidden, width), dtype=np.float32),
            "r": random.standard_normal((layer.directions, gates * hidden, hidden), dtype=np.float32),
            "b": np.zeros((layer.directions, 2 * gates * hidden), np.float32),
        }
        as_torch: dict[str, Any] = {"linear_before_reset": 1} if layer.kind == "gru" else {}
        steps_first = helper.make_node("Transpose", [f"{own}_in"], [f"{own}_steps"], perm=[1, 0, 2])
        node = helper.make_node(
            layer.kind.upper(),
            [f"{own}_steps", *(f"{own}_{key}" for key in operands)],
            [own],
            name=own,
            hidden_size=hidden,
            direction="bidirectional" if layer.directions == 2 else "forward",
            **as_torch,
        )
        parts[0] += [steps_first, node]
        parts[1].append(helper.make_tensor_value_info(f"{own}_in", TensorProto.FLOAT, ["batch", *layer.size, width]))
        parts[2].append(helper.make_tensor_value_info(own, TensorProto.FLOAT, None))
        parts[3] += [numpy_helper.from_array(array, f"{own}_{key}") for key, array in operands.items()]
    return parts


def _quantized(
    name: str,
    operator: str,
    attributes: dict[str, Any],
    weight_shape: tuple[int, ...],
    types: tuple[str, str],
    inputs: list[Any],
    outputs: list[Any],
) -> tuple[Any, ...]:
    """Return the layer between the pairs of QuantizeLinear and DequantizeLinear that ONNX Runtime fuses with it."""
    activation, weight = (np.dtype(one).type for one in types)
    random = np.random.default_rng(0)
    num_out = weight_shape[0] if operator == "Conv" else weight_shape[1]
    arrays = {
        "w": random.integers(-100, 100, weight_shape).astype(weight),
        "w_zero": np.zeros((), weight),
        "b": np.zeros(num_out, np.int32),
        "b_zero": np.zeros((), np.int32),
        "zero": np.array(128 if activation is np.uint8 else 0, activation),
        "scale": np.array(SCALE, np.float32),
        "b_scale": np.array(SCALE * SCALE, np.float32),
    }
    constants = [numpy_helper.from_array(array, f"{name}_{key}") for key, array in arrays.items()]
    activation_range = [f"{name}_scale", f"{name}_zero"]

    def node(kind: str, operands: list[str], output: str, **more: Any) -> Any:
        return helper.make_node(kind, operands, [output], name=output, **more)

    nodes = [
        node("QuantizeLinear", [f"{name}_in", *activation_range], f"q{name}_in"),
        node("DequantizeLinear", [f"q{name}_in", *activation_range], f"d{name}_in"),
        node("DequantizeLinear", [f"{name}_w", f"{name}_scale", f"{name}_w_zero"], f"d{name}_w"),
    ]
    operands = [f"d{name}_in", f"d{name}_w"]
    if operator != "MatMul":
        nodes.append(node("DequantizeLinear", [f"{name}_b", f"{name}_b_scale", f"{name}_b_zero"], f"d{name}_b"))
        operands.append(f"d{name}_b")
    nodes += [
        helper.make_node(operator, operands, [f"{name}_float"], name=name, **attributes),
        node("QuantizeLinear", [f"{name}_float", *activation_range], f"q{name}_out"),
        helper.make_node("DequantizeLinear", [f"q{name}_out", *activation_range], [name], name=f"d{name}_out"),
    ]
    return nodes, inputs, outputs, constants
