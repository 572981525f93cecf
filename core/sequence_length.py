"""The length of the texts that a model is timed on: made-up ones, since latency asks for no others."""

from dataclasses import replace

from core.input_spec import SEQUENCE, at_length
from core.model import Model
from core.onnx_model import OnnxModel


def sequence_length(model: Model) -> int | None:
    """Return the length, in tokens, that a model's made-up texts have; None where it takes none."""
    specs = model.declared if isinstance(model, OnnxModel) else model.inputs
    sizes = [pair for spec in specs for pair in zip(spec.axes, spec.shape, strict=True)]
    return max((size for axis, size in sizes if axis == SEQUENCE), default=None)


def with_sequence_length(model: Model, length: int) -> Model:
    """Return the model as it is, for being timed on texts of this length.

    Raises:
        ToolError: It takes no texts, or none so long.
    """
    if isinstance(model, OnnxModel):
        return replace(model, declared=at_length(model.declared, length, model.name))
    return replace(model, inputs=at_length(model.inputs, length, model.name))
