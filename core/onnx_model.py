"""The second carrier: an .onnx file whose metadata explains it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import BaseModel, TypeAdapter, ValidationError

from core.errors import ToolError
from core.history import History, Step
from core.input_spec import InputSpec
from core.preprocessing import Preprocessing
from core.references import file_sha256, missing_path

KEY_PREFIX = "onnxpress."


class TensorSpec(BaseModel, frozen=True):
    """An input or output of the graph.

    Attributes:
        name: Its name.
        shape: Sizes; a dynamic axis is its symbol's name.
        dtype: Element type, as design.md spells dtypes.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An .onnx file and what it says of itself; the last four are None or empty for files this tool did not make.

    `declared` is what may be made up for its inputs, as the torch model that it comes from took them.
    """

    name: str
    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    is_quantized: bool
    declared: tuple[InputSpec, ...] = ()
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    history: History

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.path.stat().st_size


def open_onnx(path: Path, name: str | None = None) -> OnnxModel:
    """Read an .onnx file's graph and metadata.

    Args:
        path: The file.
        name: What to call it, when it has not taken its place yet.

    Raises:
        ToolError: The file is missing, damaged, or has metadata under this tool's names that cannot be read.
    """
    proto = read_proto(path)
    metadata = {
        entry.key.removeprefix(KEY_PREFIX): entry.value
        for entry in proto.metadata_props
        if entry.key.startswith(KEY_PREFIX)
    }
    weights = {initializer.name for initializer in proto.graph.initializer}
    try:
        preprocessing = _json(metadata, "preprocessing")
        return OnnxModel(
            name=name or str(path),
            path=path,
            sha256=file_sha256(path),
            inputs=tuple(_tensor_spec(value) for value in proto.graph.input if value.name not in weights),
            outputs=tuple(_tensor_spec(value) for value in proto.graph.output),
            opset=_opset(proto, path),
            is_quantized=any(node.op_type in _QUANTIZED_OPERATORS for node in proto.graph.node),
            declared=TypeAdapter(tuple[InputSpec, ...]).validate_python(_declared(metadata)),
            preprocessing=Preprocessing.model_validate(preprocessing) if preprocessing else None,
            labels=TypeAdapter(tuple[str, ...]).validate_python(_json(metadata, "labels") or ()),
            history=TypeAdapter(tuple[Step, ...]).validate_python(_json(metadata, "history") or ()),
        )
    except (ValidationError, json.JSONDecodeError) as error:
        raise ToolError(f"{path} has damaged onnxpress metadata: {error}") from error


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an .onnx file.

    Raises:
        ToolError: The file is missing, damaged or cut short.
    """
    if not path.exists():
        raise missing_path(path)
    try:
        proto = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ToolError(f"cannot read {path}: {error}; the file is damaged, cut short or not ONNX") from error
    if not proto.graph.node or not proto.graph.output or not proto.opset_import:
        raise ToolError(f"{path} holds no graph; the file is damaged, cut short or not ONNX")
    return proto


def explain(
    proto: onnx.ModelProto,
    *,
    history: History,
    inputs: tuple[InputSpec, ...],
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...],
) -> None:
    """Write this tool's metadata into a model, in place; other entries stay."""
    entries = {entry.key: entry.value for entry in proto.metadata_props if not entry.key.startswith(KEY_PREFIX)}
    entries[KEY_PREFIX + "history"] = json.dumps([step.model_dump() for step in history])
    entries[KEY_PREFIX + "inputs"] = json.dumps([asdict(spec) for spec in inputs])
    if preprocessing is not None:
        entries[KEY_PREFIX + "preprocessing"] = preprocessing.model_dump_json()
    entries[KEY_PREFIX + "labels"] = json.dumps(labels)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, entries)


_QUANTIZED_OPERATORS = {
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
}


def _opset(proto: onnx.ModelProto, path: Path) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ToolError(f"{path} names no version of the ONNX operator set; the file is damaged or cut short")
    return versions[0]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.tensor_type.elem_type:
        raise ToolError(f"{value.name!r} is not a tensor, which every input and output must be")
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)


def _declared(metadata: dict[str, str]) -> list[Any]:
    """Return what the file says of its inputs; int8 files said what the graph says until 0.1, which is of no use."""
    specs: list[Any] = _json(metadata, "inputs") or []
    return [] if any(isinstance(size, str) for spec in specs for size in spec.get("shape", ())) else specs


def _json(metadata: dict[str, str], key: str) -> Any:
    return json.loads(metadata[key]) if key in metadata else None
