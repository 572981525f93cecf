"""What a user says of the images that an .onnx file of another tool takes: ``net.onnx,image_size=224,mean=...``."""

import math
from dataclasses import replace

from core.data import Data
from core.errors import ToolError, require
from core.history import digest_of
from core.input_spec import InputSpec
from core.onnx_model import OnnxModel
from core.preprocessing import Preprocessing
from core.references import Argument, Reference, check_arguments

ARGUMENTS = ("image_size", "crop_ratio", "interpolation", "scale", "mean", "std")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")  # those that torch has for arrays


def with_stated_input(model: OnnxModel, reference: Reference) -> OnnxModel:
    """Return a file with the preprocessing that its reference states; as it is where that states nothing.

    Its digest then covers that too: what follows from the file follows from both.

    The arguments are the fields of `Preprocessing`: ``image_size`` in pixels of a square, where the file leaves that
    open; ``scale``, 1/255 unless given; ``mean`` and ``std`` with a colon between the channels' numbers.

    Raises:
        ToolError: An argument is unknown or no such value, the file says itself what it takes, or takes no images.
    """
    check_arguments(reference, ARGUMENTS)
    stated = reference.arguments
    if not stated:
        return model
    if model.preprocessing is not None:
        raise ToolError(f"{model.path} says itself how its input is made; drop {', '.join(stated)}")
    taken = model.inputs[0]
    channels, *sides = taken.shape[1:] if len(taken.shape) == 4 else (None,)
    if len(model.inputs) > 1 or taken.dtype != "float32" or not isinstance(channels, int) or channels > 4:
        raise ToolError(
            f"{model.path} takes {taken.dtype} {taken.shape}; what can be said of an input is how images become one "
            "of float32 (N, C, H, W)"
        )
    height, width = _sides(sides, stated.get("image_size"), reference)
    read = Preprocessing(
        image_size=(height, width),
        channels=channels,
        crop_ratio=_number(stated, "crop_ratio", 1.0, reference),
        interpolation=_interpolation(stated, reference),
        scale=_number(stated, "scale", 1 / 255, reference),
        mean=_per_channel(stated, "mean", channels, reference),
        std=_per_channel(stated, "std", channels, reference),
    )
    require(0 < read.crop_ratio <= 1, f"{reference.text!r}: crop_ratio is {read.crop_ratio}; it must be in (0, 1]")
    numbers = (read.scale, *read.mean, *read.std)
    require(
        read.scale > 0 and all(math.isfinite(one) for one in numbers),
        f"{reference.text!r}: scale is above 0, and every number finite",
    )
    require(
        len(read.mean) == len(read.std) and all(one > 0 for one in read.std),
        f"{reference.text!r}: mean and std go together, and each std must be above 0",
    )
    return replace(
        model,
        sha256=digest_of([model.sha256, read.model_dump()]),
        preprocessing=read,
        declared=(InputSpec(name=taken.name, shape=(channels, height, width)),),
    )


def with_sizes_of(model: OnnxModel, data: Data) -> OnnxModel:
    """Return a file that leaves the sizes of its input open with those of the data's samples, for made-up inputs.

    Only samples that are an input already tell them; a file that says its own stays as it is.
    """
    taken, shape = model.inputs[0], data.sample_shape
    is_open = any(isinstance(size, str) for size in taken.shape[1:])
    if model.declared or not is_open or data.kind != "values" or shape is None or len(shape) != len(taken.shape) - 1:
        return model
    return replace(model, declared=(InputSpec(name=taken.name, shape=shape),))


def _sides(found: list[int | str], asked: Argument | None, reference: Reference) -> tuple[int, int]:
    """Return height and width in pixels: the file's, or where it leaves them open the side of the square asked for."""
    if asked is None:
        if any(isinstance(side, str) for side in found):
            raise ToolError(f"{reference.text!r}: the file leaves the images' size open; add image_size=PIXELS")
    elif isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ToolError(f"{reference.text!r}: image_size is {asked!r}; it is a number of pixels")
    elif any(isinstance(side, int) and side != asked for side in found):
        raise ToolError(
            f"{reference.text!r}: the file takes images of {found[0]}x{found[1]} (height and width), which image_size "
            "must agree with"
        )
    height, width = (side if isinstance(side, int) else asked for side in found)
    assert isinstance(height, int)
    assert isinstance(width, int)
    return height, width


def _number(stated: dict[str, Argument], name: str, default: float, reference: Reference) -> float:
    value = stated.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ToolError(f"{reference.text!r}: {name} is {value!r}; it is a number")
    return float(value)


def _interpolation(stated: dict[str, Argument], reference: Reference) -> str:
    value = stated.get("interpolation", "bilinear")
    if value not in INTERPOLATIONS:
        raise ToolError(f"{reference.text!r}: interpolation is {value!r}; it is one of {', '.join(INTERPOLATIONS)}")
    return str(value)


def _per_channel(stated: dict[str, Argument], name: str, channels: int, reference: Reference) -> tuple[float, ...]:
    """Return one number a channel; one number alone stands for all channels, none given for none."""
    if name not in stated:
        return ()
    try:
        numbers = tuple(float(part) for part in str(stated[name]).split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, channels):
        example = ":".join(["0.5"] * channels)
        raise ToolError(f"{reference.text!r}: {name} is {stated[name]!r}; it is a number a channel, like {example}")
    return numbers * channels if len(numbers) == 1 else numbers
