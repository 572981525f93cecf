"""The second carrier: an .onnx file whose metadata explains it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import BaseModel, TypeAdapter, ValidationError

from core.answers import LOGITS, is_known
from core.errors import ToolError
from core.external_data import data_files
from core.history import History, Step, digest_of
from core.input_spec import InputSpec
from core.preprocessing import Preprocessing
from core.references import file_sha256, missing_path

KEY_PREFIX = "onnxpress."
BAKED = "onnxpress/"  # begins the names of the nodes that `export` puts around the network; they stay in float


class TensorSpec(BaseModel, frozen=True):
    """An input or output of the graph.

    Attributes:
        name: Its name.
        shape: Sizes; a dynamic axis is its symbol's name.
        dtype: Element type, as NumPy spells it, ``bfloat16`` too.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An .onnx file and what it says of itself; what only files that this tool made say is None or empty for others.

    `precision` is the least of what it computes in: ``int4``, ``int8``, ``bfloat16``, ``float16`` or ``float32``;
    `declared` is what may be made up for its inputs, as the torch model that it comes from took them; `returns` is
    ``logits``, ``probabilities`` or ``top-5``, see `core.answers`; `data_files` are those beside it that hold its
    weights, and `sha256` covers them.
    """

    name: str
    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    precision: str
    declared: tuple[InputSpec, ...] = ()
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    history: History
    returns: str = LOGITS
    data_files: tuple[Path, ...] = ()

    @property
    def sample_shape(self) -> tuple[int | str, ...]:
        """Shape of one sample as torch has it: (C, H, W) for images, however the file takes them."""
        shape = self.inputs[0].shape[1:]
        is_pixels = self.preprocessing is not None and self.preprocessing.input == "uint8"
        return (shape[-1], *shape[:-1]) if is_pixels else shape

    @property
    def fixed_batch(self) -> int | None:
        """The one number of samples that it takes; None where that is free."""
        first = self.inputs[0].shape[:1]
        return first[0] if first and isinstance(first[0], int) else None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those beside it that hold its weights."""
        return self.path, *self.data_files

    @property
    def size_bytes(self) -> int:
        """The file's size, with the weights beside it."""
        return sum(file.stat().st_size for file in self.files)


def open_onnx(path: Path, name: str | None = None) -> OnnxModel:
    """Read an .onnx file's graph and metadata.

    Args:
        path: The file.
        name: What to call it, when it has not taken its place yet.

    Raises:
        ToolError: The file is missing, damaged, or has metadata under this tool's names that cannot be read.
    """
    proto = read_proto(path, weights=False)
    beside = data_files(proto, path)
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
            sha256=_sha256(path, beside),
            inputs=tuple(_tensor_spec(value) for value in proto.graph.input if value.name not in weights),
            outputs=tuple(_tensor_spec(value) for value in proto.graph.output),
            opset=_opset(proto, path),
            precision=_precision(proto.graph),
            declared=TypeAdapter(tuple[InputSpec, ...]).validate_python(_json(metadata, "inputs") or ()),
            preprocessing=Preprocessing.model_validate(preprocessing) if preprocessing else None,
            labels=TypeAdapter(tuple[str, ...]).validate_python(_json(metadata, "labels") or ()),
            history=TypeAdapter(tuple[Step, ...]).validate_python(_json(metadata, "history") or ()),
            returns=_returns(metadata),
            data_files=beside,
        )
    except (ValidationError, ValueError) as error:
        raise ToolError(f"{path} has damaged onnxpress metadata: {error}") from error


def read_proto(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Parse an .onnx file.

    Args:
        path: The file.
        weights: Read what lies beside it too.

    Raises:
        ToolError: The file is missing, damaged or cut short.
    """
    if not path.exists():
        raise missing_path(path)
    try:
        proto = onnx.load(path, load_external_data=weights)
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
    returns: str = LOGITS,
) -> None:
    """Write this tool's metadata into a model, in place; other entries stay."""
    entries = {entry.key: entry.value for entry in proto.metadata_props if not entry.key.startswith(KEY_PREFIX)}
    entries[KEY_PREFIX + "history"] = json.dumps([step.model_dump() for step in history])
    entries[KEY_PREFIX + "inputs"] = json.dumps([asdict(spec) for spec in inputs])
    if preprocessing is not None:
        entries[KEY_PREFIX + "preprocessing"] = preprocessing.model_dump_json()
    entries[KEY_PREFIX + "labels"] = json.dumps(labels)
    entries[KEY_PREFIX + "returns"] = returns
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, entries)


_QUANTIZED_OPERATORS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "ConvInteger",
    "QGemm",
    "QAttention",
}


def _precision(graph: onnx.GraphProto) -> str:
    operators = {node.op_type for node in graph.node}
    kept = {initializer.data_type for initializer in graph.initializer}
    found = {
        "int4": "MatMulNBits" in operators,
        "int8": any(one in _QUANTIZED_OPERATORS or one.startswith("QLinear") for one in operators),
        "bfloat16": onnx.TensorProto.BFLOAT16 in kept,
        "float16": onnx.TensorProto.FLOAT16 in kept,
    }
    return next((name for name, holds in found.items() if holds), "float32")


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


def _sha256(path: Path, beside: tuple[Path, ...]) -> str:
    if not beside:
        return file_sha256(path)
    return digest_of([file_sha256(file) for file in (path, *beside)])


def _returns(metadata: dict[str, str]) -> str:
    returns = metadata.get("returns", LOGITS)
    if not is_known(returns):
        raise ValueError(f"returns is {returns!r}")
    return returns


def _json(metadata: dict[str, str], key: str) -> Any:
    return json.loads(metadata[key]) if key in metadata else None
