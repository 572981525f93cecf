"""Weights beside an .onnx file, in ``NAME.onnx.data``, where protobuf's limit of 2 GB keeps them out of the file."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from core.errors import ToolError
from core.whole_output import refuse_overwrite, require_name, whole_files

SUFFIX = ".data"
PROTOBUF_LIMIT_BYTES = 2_000_000_000  # 2 GiB less room for the graph itself
STAYS_BYTES = 1024  # a smaller tensor stays in the file, where shape inference can read it


def weights_bytes(proto: onnx.ModelProto) -> int:
    """Return the bytes of a graph's initializers."""
    return sum(
        math.prod(one.dims) * onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize
        for one in proto.graph.initializer
    )


def fits_one_file(proto: onnx.ModelProto) -> bool:
    """Tell whether protobuf can hold a graph with its weights."""
    return weights_bytes(proto) <= PROTOBUF_LIMIT_BYTES


def data_file(path: Path) -> Path:
    """Return where this tool puts the weights of the .onnx file at `path` that do not fit into it."""
    return path.with_name(path.name + SUFFIX)


def refuse_overwrite_onnx(path: Path, *, force: bool) -> None:
    """Raise `ToolError` when the file or its weights stand there and `force` does not allow replacing them."""
    require_name(path)
    for one in (path, data_file(path)):
        refuse_overwrite(one, force=force)


def refuse_replacing(files: Sequence[Path], path: Path) -> None:
    """Raise `ToolError` where an .onnx file at `path`, or its weights, would replace a file that it is made from."""
    for place in (path, data_file(path)):
        if place.exists() and any(place.samefile(file) for file in files):
            raise ToolError(f"{place} is a file of the model to read, which stays; choose another --output")


@contextmanager
def whole_onnx(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a path to write an .onnx file to, with `write_onnx`; both of its files take their names, or neither.

    Raises:
        ToolError: As `whole_output.whole_file`.
    """
    with whole_files(path, SUFFIX, force=force) as part:
        yield part


def write_onnx(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph, its weights beside it where they do not fit; the graph then no longer holds them."""
    if fits_one_file(proto):
        onnx.save(proto, path)
        return
    onnx.save(proto, path, save_as_external_data=True, location=data_file(path).name, size_threshold=STAYS_BYTES)


def copy_onnx(path: Path, data_files: tuple[Path, ...], to: Path) -> None:
    """Copy an .onnx file whose weights may lie beside it; they are named after the copy."""
    if data_files:
        write_onnx(onnx.load(path), to)
    else:
        shutil.copyfile(path, to)


def data_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Return the files beside `path` that hold weights of its graph, which was loaded without them.

    Raises:
        ToolError: One is missing or cut short.
    """
    ends: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            ends[info.location] = max(ends.get(info.location, 0), (info.offset or 0) + (info.length or 0))
    for location, end in ends.items():
        file = path.parent / location
        if not file.is_file():
            raise ToolError(f"cannot read {path}: its weights are in {location}, which is not beside it; put it there")
        if file.stat().st_size < end:
            raise ToolError(
                f"cannot read {path}: its weights in {location} should reach to byte {end}, and the file has "
                f"{file.stat().st_size}; it is damaged or cut short"
            )
    return tuple(path.parent / location for location in ends)
