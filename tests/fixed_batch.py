"""A file that takes one number of samples only."""

from pathlib import Path

import onnx

from core.onnx_model import OnnxModel, open_onnx


def with_fixed_batch(model: OnnxModel, folder: Path, batch_size: int) -> OnnxModel:
    """Return a file's copy in a folder, of the same name, that takes so many samples."""
    proto = onnx.load(model.path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch_size
    del proto.graph.value_info[:]
    onnx.save(proto, folder / model.path.name)
    return open_onnx(folder / model.path.name)
