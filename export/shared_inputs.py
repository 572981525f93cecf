"""Inputs that two models share, and what each of them is fed of those: pixels, or what is made of them."""

from collections.abc import Callable, Iterator, Sequence

import torch

from core.batches import batches, loader, raised
from core.compatibility import preprocessing_of
from core.data import Data
from core.model import Model
from core.onnx_model import OnnxModel
from core.predict import in_whole_batches
from core.preprocessing import Preprocessing, Tensors, input_from_pixels
from core.sequence_length import sequence_length, with_sequence_length
from core.sessions import made_up_inputs
from core.torch_model import TorchModel, example_inputs

DATA_SAMPLES = 512
CHUNK = 64
WHOLE = "validation"
OTHER_LENGTH = 7  # tokens: shows that the length of texts is really dynamic

Feed = Callable[[Tensors], Tensors]
"""From the inputs that both models share to those that one of them takes."""


def shared_inputs(
    reference: Model, candidate: Model, batch_sizes: Sequence[int], seed: int, data: Data | None
) -> Iterator[tuple[str, list[Tensors]]]:
    """Yield named lists of batches; real samples where there are some, since made-up ones leave a calibrated range.

    Where one of them takes pixels, the batches are pixels. Where a file fixes its batch, that is the only size it can
    be compared at.
    """
    files = [model for model in (reference, candidate) if isinstance(model, OnnxModel)]
    fixing = next((file for file in files if file.fixed_batch), None)
    fixed = fixing.fixed_batch if fixing else None
    sizes = (fixed,) if fixed else batch_sizes
    giving = reference if pixels_of(reference) else candidate
    if data is None:
        for size in sizes:
            yield f"batch {size}", [_made_up(giving, size, seed)]
        if (sequence_length(giving) or 0) > OTHER_LENGTH:
            shorter = with_sequence_length(giving, OTHER_LENGTH)
            yield f"batch {sizes[-1]} of {OTHER_LENGTH} tokens", [_made_up(shorter, sizes[-1], seed)]
        return
    split, preprocessing = data.split("validation"), preprocessing_of(giving, data)
    limit = in_whole_batches(fixing or reference, data, "validation", DATA_SAMPLES)
    inputs = [batch for batch, _ in batches(split, preprocessing, fixed or CHUNK, limit=limit)]
    first = split.take(torch.arange(min(fixed or CHUNK, len(split))))
    readable = next(raised(loader(first, preprocessing, len(first)), split)).positions
    for size in sizes:
        yield f"batch {size}", [next(batches(split.take(readable[:size]), preprocessing, size))[0]]
    yield WHOLE, inputs


def pixels_of(model: Model) -> Preprocessing | None:
    """Return the preprocessing of a model that takes raw pixels, None for others."""
    preprocessing = model.preprocessing
    return preprocessing if preprocessing is not None and preprocessing.input == "uint8" else None


def feed_of(model: Model, pixels: Preprocessing | None) -> Feed:
    """Return the function from shared inputs, which are pixels where one model takes them, to this model's own."""
    if pixels is None or pixels_of(model):
        return lambda inputs: inputs
    own = model.preprocessing or pixels.model_copy(update={"input": "float32"})
    return lambda inputs: input_from_pixels(inputs, own)


def _made_up(model: Model, batch_size: int, seed: int) -> Tensors:
    if isinstance(model, TorchModel):
        return example_inputs(model, batch_size, seed)
    return tuple(torch.from_numpy(array) for array in made_up_inputs(model, batch_size, seed))
