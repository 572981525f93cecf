"""Does a candidate compute what its reference computes?"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from core.answers import LOGITS, in_like_terms
from core.batches import batches
from core.compatibility import preprocessing_of
from core.data import Data
from core.errors import GateMissedError, ToolError, require
from core.model import Model
from core.onnx_model import OnnxModel
from core.predict import in_whole_batches, outputs_of
from core.preprocessing import Preprocessing, Tensors, input_from_pixels
from core.result import Report
from core.sequence_length import sequence_length, with_sequence_length
from core.sessions import Array, made_up_inputs
from core.torch_model import TorchModel, example_inputs
from export.locate import Divergence, first_divergence

DATA_SAMPLES = 512
CHUNK = 64
WHOLE = "validation"
LOCATED_SAMPLES = 8  # run with every tensor watched, which holds all of them at once
FLOAT_ATOL, FLOAT_RTOL = 1e-4, 1e-3
SQNR_DB = {"int4": 10.0, "int8": 10.0, "bfloat16": 20.0, "float16": 35.0}
OTHER_LENGTH = 7  # tokens: shows that the length of texts is really dynamic


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """How to compare and what must hold.

    Where no limit is given, a float32 candidate must be within atol 1e-4 and rtol 1e-3, a float16 one above 35 dB, a
    bfloat16 one above 20, and an int8 or int4 one above 10.

    Attributes:
        atol: Absolute tolerance: |candidate - reference| <= atol + rtol * |reference| for every element.
        rtol: Relative tolerance.
        min_sqnr_db: Least signal-to-quantization-noise ratio, in dB; with data, of the small batches too, against the
            signal of all samples.
        min_agreement: Least share of samples with the same top-1 class, in percent; with data, of all samples.
        batch_sizes: Batch sizes to compare at; more than one shows that the batch is really dynamic. Of texts, the last
            one is compared at another length too.
        provider: Where ONNX files run.
        threads: Threads of a session; 0 takes the cores this process may use.
        seed: Seeds the made-up inputs.
    """

    atol: float | None = None
    rtol: float | None = None
    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    batch_sizes: tuple[int, ...] = (1, 2, 7)
    provider: str = "cpu"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.atol is None or self.atol >= 0, f"atol is {self.atol}; it must not be negative")
        require(self.rtol is None or self.rtol >= 0, f"rtol is {self.rtol}; it must not be negative")
        require(
            self.min_agreement is None or 0 <= self.min_agreement <= 100,
            f"min_agreement is {self.min_agreement}; it is in percent, 0 to 100",
        )
        require(
            bool(self.batch_sizes) and min(self.batch_sizes) >= 1,
            f"batch_sizes is {self.batch_sizes}; each must be at least 1",
        )


class Comparison(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """Two outputs (N, ...) on the same inputs; log-probabilities where a model returns probabilities.

    Attributes:
        inputs: What went in: ``batch 7``, or a split's name.
        output: The output's name.
        samples: N.
        max_abs_err: Largest absolute difference of an element.
        excess: Largest |difference| - rtol * |reference|: the least atol that would pass.
        sqnr_db: 10 log10(sum reference^2 / sum difference^2), in dB; infinite when equal.
        agreement: Share of samples with the same highest element, in percent; None for all outputs but the logits.
    """

    inputs: str
    output: str
    samples: int
    max_abs_err: float
    excess: float
    sqnr_db: float
    agreement: float | None


class VerifyReport(Report, frozen=True):
    """The comparisons, the limits, which were missed, and where a float file first leaves the torch module."""

    reference: str
    candidate: str
    limits: dict[str, float]
    comparisons: tuple[Comparison, ...]
    misses: tuple[str, ...]
    located: Divergence | None = None


def verify(reference: Model, candidate: Model, config: VerifyConfig, data: Data | None = None) -> VerifyReport:
    """Run both models on the same inputs and compare their outputs, one by one in their order.

    On a GPU, products of float32 are computed as such, not rounded to TF32: what is compared is the files.

    Args:
        reference: What is right.
        candidate: What is to be shown right.
        config: How, and the limits.
        data: Samples of its validation split go in. Without it, made-up ones: standard normal values, whole numbers for
            inputs of int64, pixels for those of uint8.

    Raises:
        ToolError: They cannot be run on the same inputs, or differ in the number or shape of outputs.
    """
    limits = _limits(config, candidate)
    pixels = _pixels(reference) or _pixels(candidate)
    feeds = _feed(reference, pixels), _feed(candidate, pixels)
    compared = list(_compared(reference, candidate, feeds, config, data, rtol=limits.get("rtol", 0.0)))
    misses = _misses_of_each(compared, limits)
    failing = next((output for output, missed in zip(compared, misses, strict=True) if missed), None)
    return VerifyReport(
        stage="verify",
        reference=reference.name,
        candidate=candidate.name,
        limits=limits,
        comparisons=tuple(output.comparison for output in compared),
        misses=tuple(chain.from_iterable(misses)),
        located=_located(reference, candidate, feeds, failing, limits),
    )


def require_verified(report: VerifyReport) -> VerifyReport:
    """Return the report, or raise `GateMissedError` when it has a miss."""
    if report.misses:
        where = f"; {report.located.sentence}" if report.located else ""
        made_up = all(comparison.inputs.startswith("batch") for comparison in report.comparisons)
        if "min_sqnr_db" in report.limits and made_up:
            where += "; that is on made-up inputs, --data compares on real ones"
        raise GateMissedError(
            f"{report.candidate} does not match {report.reference}: {'; '.join(report.misses)}{where}"
        )
    return report


Feed = Callable[[Tensors], Tensors]
"""From the inputs that both models share to those that one of them takes."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """An output of both models, (N, ...) each and in like terms, and the batches that they made it from."""

    comparison: Comparison
    reference: Array
    candidate: Array
    batches: list[Tensors]


def _compared(
    reference: Model,
    candidate: Model,
    feeds: tuple[Feed, Feed],
    config: VerifyConfig,
    data: Data | None,
    *,
    rtol: float,
) -> Iterator[_Compared]:
    """Run both models and yield every output of theirs compared, input by input."""
    run_reference, run_candidate = (
        outputs_of(model, provider=config.provider, threads=config.threads, tf32=False)
        for model in (reference, candidate)
    )
    to_reference, to_candidate = feeds
    returns = _returns(reference), _returns(candidate)
    for inputs, given in _inputs(reference, candidate, config, data):
        pairs = [(run_reference(to_reference(batch)), run_candidate(to_candidate(batch))) for batch in given]
        for index, (name, expected, answered) in enumerate(_outputs(pairs)):
            is_first = index == 0
            left, right = in_like_terms(expected, answered, returns) if is_first else (expected, answered)
            comparison = compare(inputs, left, right, rtol=rtol, output=name, is_first=is_first)
            yield _Compared(comparison, left, right, given)


def _outputs(pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> Iterator[tuple[str, Array, Array]]:
    """Yield the name of each output, and what reference and candidate answer over all batches."""
    names, others = (list(outputs) for outputs in pairs[0])
    if len(names) != len(others):
        raise ToolError(
            f"the reference returns {len(names)} outputs ({', '.join(names)}), the candidate {len(others)} "
            f"({', '.join(others)}); they cannot be compared one by one"
        )
    for name, other in zip(names, others, strict=True):
        expected = _joined([outputs[name].numpy() for outputs, _ in pairs])
        yield name, expected, _joined([outputs[other].numpy() for _, outputs in pairs])


def _joined(arrays: list[Array]) -> Array:
    """Join batches (N, ...); where they differ in length, as texts do, their places are joined, (N * length, ...)."""
    is_alike = len({array.shape[1:] for array in arrays}) == 1
    return np.concatenate(arrays if is_alike else [array.reshape(-1, array.shape[-1]) for array in arrays])


def compare(
    inputs: str,
    reference: Array,
    candidate: Array,
    *,
    rtol: float,
    output: str = LOGITS,
    is_first: bool = True,
) -> Comparison:
    """Compare two outputs (N, ...) on the same inputs; the first ones, which are logits, also by their classes.

    Raises:
        ToolError: They differ in shape, or the first have no class axis.
    """
    if reference.shape != candidate.shape:
        raise ToolError(
            f"the candidate returns {candidate.shape} where the reference returns {reference.shape}, as {output!r}"
        )
    if is_first and reference.ndim < 2:
        raise ToolError(f"the models return {reference.shape}; outputs of at least two axes, (N, K), can be compared")
    reference = reference.astype(np.float64)
    difference = _difference(reference, candidate)
    noise, signal = float(np.square(difference).sum()), float(np.square(reference).sum())
    with np.errstate(invalid="ignore"):
        excess = float((difference - rtol * np.abs(reference)).max())
    return Comparison(
        inputs=inputs,
        output=output,
        samples=len(reference),
        max_abs_err=float(difference.max()),
        excess=excess,
        sqnr_db=_sqnr_db(signal, noise),
        agreement=_agreement(reference, candidate) if is_first else None,
    )


def _sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), in dB; infinite where there is no noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return math.inf if noise == 0 else float(10 * np.log10(signal / noise))


def _inputs(
    reference: Model, candidate: Model, config: VerifyConfig, data: Data | None
) -> Iterator[tuple[str, list[Tensors]]]:
    """Yield named lists of batches; real samples where there are some, since made-up ones leave a calibrated range.

    Where one of them takes pixels, the batches are pixels. Where a file fixes its batch, that is the only size it can
    be compared at.
    """
    files = [model for model in (reference, candidate) if isinstance(model, OnnxModel)]
    fixing = next((file for file in files if file.fixed_batch), None)
    fixed = fixing.fixed_batch if fixing else None
    sizes = (fixed,) if fixed else config.batch_sizes
    giving = reference if _pixels(reference) else candidate
    if data is None:
        for size in sizes:
            yield f"batch {size}", [_made_up(giving, size, config.seed)]
        if (sequence_length(giving) or 0) > OTHER_LENGTH:
            shorter = with_sequence_length(giving, OTHER_LENGTH)
            yield f"batch {sizes[-1]} of {OTHER_LENGTH} tokens", [_made_up(shorter, sizes[-1], config.seed)]
        return
    split, preprocessing = data.split("validation"), preprocessing_of(giving, data)
    limit = in_whole_batches(fixing or reference, data, "validation", DATA_SAMPLES)
    inputs = [batch for batch, _ in batches(split, preprocessing, fixed or CHUNK, limit=limit)]
    for size in sizes:
        yield f"batch {size}", [next(batches(split.take(torch.arange(min(size, len(split)))), preprocessing, size))[0]]
    yield WHOLE, inputs


def _pixels(model: Model) -> Preprocessing | None:
    """Return the preprocessing of a model that takes raw pixels, None for others."""
    preprocessing = model.preprocessing
    return preprocessing if preprocessing is not None and preprocessing.input == "uint8" else None


def _feed(model: Model, pixels: Preprocessing | None) -> Feed:
    """Return the function from shared inputs, which are pixels where one model takes them, to this model's own."""
    if pixels is None or _pixels(model):
        return lambda inputs: inputs
    own = model.preprocessing or pixels.model_copy(update={"input": "float32"})
    return lambda inputs: input_from_pixels(inputs, own)


def _returns(model: Model) -> str:
    return model.returns if isinstance(model, OnnxModel) else LOGITS


def _agreement(reference: Array, candidate: Array) -> float:
    """Return the share of equal classes, in percent: one division, so that a limit compares exactly."""
    same = reference.argmax(1) == candidate.argmax(1)
    return 100 * int(same.sum()) / int(same.size)


def _difference(reference: Array, candidate: Array) -> np.ndarray:
    """Return how far each element is off; NaN where both have the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.abs(candidate.astype(np.float64) - reference)


def _worst(batches: list[Tensors], reference: Array, candidate: Array) -> Tensors:
    """Return a batch that is small, else the sample whose answer is furthest off."""
    sizes = [len(batch[0]) for batch in batches]
    if len(batches) == 1 and sizes[0] <= LOCATED_SAMPLES:
        return batches[0]
    errors = _difference(reference, candidate).reshape(len(reference), -1).max(1)  # NaN counts as the highest
    worst = int(errors.argmax()) if len(errors) == sum(sizes) else 0  # else rows are places of texts
    for batch, size in zip(batches, sizes, strict=True):
        if worst < size:
            return tuple(tensor[worst : worst + 1] for tensor in batch)
        worst -= size
    return batches[0]


def _located(
    reference: Model,
    candidate: Model,
    feeds: tuple[Feed, Feed],
    failing: _Compared | None,
    limits: dict[str, float],
) -> Divergence | None:
    """Find where a float32 file leaves its torch module; in a smaller precision every tensor does."""
    if failing is None or not isinstance(reference, TorchModel) or not isinstance(candidate, OnnxModel):
        return None
    if candidate.precision != "float32":
        return None
    inputs = _worst(failing.batches, failing.reference, failing.candidate)
    to_reference, to_candidate = feeds
    return first_divergence(
        reference,
        candidate,
        to_reference(inputs),
        to_candidate(inputs),
        atol=limits.get("atol", FLOAT_ATOL),
        rtol=limits.get("rtol", FLOAT_RTOL),
    )


def _made_up(model: Model, batch_size: int, seed: int) -> Tensors:
    if isinstance(model, TorchModel):
        return example_inputs(model, batch_size, seed)
    return tuple(torch.from_numpy(array) for array in made_up_inputs(model, batch_size, seed))


def _limits(config: VerifyConfig, candidate: Model) -> dict[str, float]:
    named = asdict(config)
    limits = {name: named[name] for name in ("atol", "rtol", "min_sqnr_db", "min_agreement") if named[name] is not None}
    if "atol" in limits or "rtol" in limits:
        return {"atol": 0.0, "rtol": 0.0} | limits
    if limits:
        return limits
    if isinstance(candidate, OnnxModel) and candidate.precision in SQNR_DB:
        return {"min_sqnr_db": SQNR_DB[candidate.precision]}
    return {"atol": FLOAT_ATOL, "rtol": FLOAT_RTOL}


def _misses_of_each(compared: Sequence[_Compared], limits: dict[str, float]) -> list[list[str]]:
    """Return the limits that each comparison misses; those of a few samples are judged beside those of all, if any."""
    levels = {
        output.comparison.output: float(np.square(output.reference).mean())
        for output in compared
        if output.comparison.inputs == WHOLE
    }
    return [
        list(
            _misses(output.comparison, limits)
            if output.comparison.inputs == WHOLE or not levels
            else _misses_of_few(output, levels[output.comparison.output], limits)
        )
        for output in compared
    ]


def _misses_of_few(output: _Compared, level: float, limits: dict[str, float]) -> Iterator[str]:
    """Yield the limits that a few of the samples miss.

    Their own answers may be faint, or near a tie: their noise is compared with the mean square of all samples' answers.
    """
    noise = float(np.square(_difference(output.reference, output.candidate)).mean())
    without = {name: limit for name, limit in limits.items() if name != "min_agreement"}
    yield from _misses(output.comparison.model_copy(update={"sqnr_db": _sqnr_db(level, noise)}), without)


def _misses(comparison: Comparison, limits: dict[str, float]) -> Iterator[str]:
    is_first = comparison.agreement is not None
    where = f"on {comparison.inputs}" if is_first else f"in output {comparison.output!r} on {comparison.inputs}"
    if not np.isfinite(comparison.max_abs_err):
        yield f"NaN or infinity {where}"
        return
    if "atol" in limits and comparison.excess > limits["atol"]:
        yield (
            f"max_abs_err {comparison.max_abs_err:.3g} {where}, beyond atol {limits['atol']:g} and rtol "
            f"{limits['rtol']:g} (atol {comparison.excess:.2g} would pass)"
        )
    if "min_sqnr_db" in limits and comparison.sqnr_db < limits["min_sqnr_db"]:
        yield f"sqnr_db {comparison.sqnr_db:.1f} {where}, below {limits['min_sqnr_db']:g}"
    agreement = comparison.agreement
    if "min_agreement" in limits and agreement is not None and agreement < limits["min_agreement"]:
        yield f"agreement {agreement:.2f} % {where}, below {limits['min_agreement']:g} %"
