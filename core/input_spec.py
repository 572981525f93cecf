"""What a model takes: name, shape and element type of each input, and the values that may be made up for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.errors import ToolError

SEQUENCE = "sequence"
"""The name of the axis that runs along a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One model input; the batch axis, which is dynamic, is not among its sizes.

    Attributes:
        name: The input's name in the ONNX file.
        shape: Shape of one sample; of a dynamic axis, the size that made-up samples have.
        dtype: ``float32``; ``int64`` for numbers of tokens, masks and the like; or ``uint8`` for pixels.
        symbols: Names of the dynamic axes among `shape`, with an empty one where a size is fixed; empty where all are.
        below: What values of an int64 input stay below, from 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "uint8"] = "float32"
    symbols: tuple[str, ...] = ()
    below: int = 2

    @property
    def axes(self) -> tuple[int | str, ...]:
        """The sizes of one sample; a dynamic axis is its name."""
        symbols = self.symbols or ("",) * len(self.shape)
        return tuple(symbol or size for symbol, size in zip(symbols, self.shape, strict=True))


def parse_input_spec(text: str) -> InputSpec:
    """Parse ``C,H,W`` of a float32 input, or ``int64:SIZES[,below=N]``; the name is for the model to give.

    Raises:
        ValueError: It is written otherwise.
    """
    dtype, colon, rest = text.rpartition(":")
    sizes, below = rest.split(","), 2
    if colon and sizes[-1].startswith("below="):
        below = int(sizes.pop().removeprefix("below="))
    shape = tuple(int(size) for size in sizes)
    if (colon and dtype != "int64") or min(*shape, below) < 1:
        raise ValueError(text)
    return InputSpec(name="", shape=shape, dtype="int64" if colon else "float32", below=below)


def at_length(specs: Sequence[InputSpec], length: int, whose: str) -> tuple[InputSpec, ...]:
    """Return inputs whose made-up sequences have this length.

    Args:
        specs: The inputs of a model.
        length: In tokens.
        whose: The model's name.

    Raises:
        ToolError: None of them has a sequence axis, or it cannot be that long.
    """
    sizes = [pair for spec in specs for pair in zip(spec.shape, spec.axes, strict=True)]
    longest = max((size for size, axis in sizes if axis == SEQUENCE), default=0)
    if not longest:
        raise ToolError(f"{whose} takes no sequences, so there is no sequence length to choose")
    if not 1 <= length <= longest:
        raise ToolError(f"the sequence length is {length}; {whose} takes 1 to {longest} tokens")
    shapes = [
        tuple(length if axis == SEQUENCE else size for size, axis in zip(spec.shape, spec.axes, strict=True))
        for spec in specs
    ]
    return tuple(replace(spec, shape=shape) for spec, shape in zip(specs, shapes, strict=True))
