"""Does a candidate compute what its reference computes?"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from pydantic import BaseModel

from core.data import Data, batches
from core.errors import GateMissedError, ToolError, require
from core.onnx_model import OnnxModel
from core.outputs import LOGITS
from core.predict import Outputs, outputs_of, preprocessing_of
from core.preprocessing import Tensors
from core.result import Report
from core.sequence_length import sequence_length, with_sequence_length
from core.sessions import Array, made_up_inputs
from core.torch_model import TorchModel, example_inputs

DATA_SAMPLES = 512
CHUNK = 64
FLOAT_ATOL, FLOAT_RTOL = 1e-4, 1e-3
QUANTIZED_SQNR_DB = 10.0
OTHER_LENGTH = 7  # tokens: shows that the length of texts is really dynamic


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """How to compare and what must hold.

    Where no limit is given, a float candidate must be within atol 1e-4 and rtol 1e-3, a quantized one above 10 dB.

    Attributes:
        atol: Absolute tolerance: |candidate - reference| <= atol + rtol * |reference| for every element.
        rtol: Relative tolerance.
        min_sqnr_db: Least signal-to-quantization-noise ratio, in dB.
        min_agreement: Least share of samples with the same top-1 class, in percent.
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
    """Two outputs (N, ...) on the same inputs.

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
    """The comparisons, the limits and which were missed."""

    reference: str
    candidate: str
    limits: dict[str, float]
    comparisons: tuple[Comparison, ...]
    misses: tuple[str, ...]


def verify(
    reference: TorchModel | OnnxModel, candidate: TorchModel | OnnxModel, config: VerifyConfig, data: Data | None = None
) -> VerifyReport:
    """Run both models on the same inputs and compare their outputs, one by one in their order.

    Args:
        reference: What is right.
        candidate: What is to be shown right.
        config: How, and the limits.
        data: Samples of its validation split go in; standard normal values without it.

    Raises:
        ToolError: They cannot be run on the same inputs, or differ in the number or shape of outputs.
    """
    run_reference = outputs_of(reference, provider=config.provider, threads=config.threads)
    run_candidate = outputs_of(candidate, provider=config.provider, threads=config.threads)
    limits = _limits(config, candidate)
    comparisons = tuple(
        comparison
        for inputs, found in _inputs(reference, candidate, config, data)
        for comparison in _compared(inputs, found, run_reference, run_candidate, limits.get("rtol", 0.0))
    )
    return VerifyReport(
        stage="verify",
        reference=reference.name,
        candidate=candidate.name,
        limits=limits,
        comparisons=comparisons,
        misses=tuple(miss for comparison in comparisons for miss in _misses(comparison, limits)),
    )


def require_verified(report: VerifyReport) -> VerifyReport:
    """Return the report, or raise `GateMissedError` when it has a miss."""
    if report.misses:
        raise GateMissedError(f"{report.candidate} does not match {report.reference}: {'; '.join(report.misses)}")
    return report


def _compared(
    inputs: str, batches: list[Tensors], run_reference: Outputs, run_candidate: Outputs, rtol: float
) -> Iterator[Comparison]:
    """Run both models over some batches and compare each output over all of them."""
    pairs = [(run_reference(batch), run_candidate(batch)) for batch in batches]
    names, others = (list(one) for one in pairs[0])
    if len(names) != len(others):
        raise ToolError(
            f"the reference returns {len(names)} outputs ({', '.join(names)}), the candidate {len(others)} "
            f"({', '.join(others)}); they cannot be compared one by one"
        )
    for index, (name, other) in enumerate(zip(names, others, strict=True)):
        reference = [one[name].numpy() for one, _ in pairs]
        candidate = [one[other].numpy() for _, one in pairs]
        yield compare(inputs, _joined(reference), _joined(candidate), rtol=rtol, output=name, is_first=index == 0)


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
    difference = np.abs(candidate.astype(np.float64) - reference)
    noise, signal = float(np.square(difference).sum()), float(np.square(reference).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        sqnr_db = float("inf") if noise == 0 else float(10 * np.log10(signal / noise))
    return Comparison(
        inputs=inputs,
        output=output,
        samples=len(reference),
        max_abs_err=float(difference.max()),
        excess=float((difference - rtol * np.abs(reference)).max()),
        sqnr_db=sqnr_db,
        agreement=float(100 * (reference.argmax(1) == candidate.argmax(1)).mean()) if is_first else None,
    )


def _inputs(
    reference: TorchModel | OnnxModel, candidate: TorchModel | OnnxModel, config: VerifyConfig, data: Data | None
) -> Iterator[tuple[str, list[Tensors]]]:
    """Yield named lists of batches; real samples where there are some, since made-up ones leave a calibrated range.

    Where a file fixes its batch, that is the only size it can be compared at.
    """
    fixed = _fixed_batch(reference) or _fixed_batch(candidate)
    sizes = (fixed,) if fixed else config.batch_sizes
    if data is None:
        for size in sizes:
            yield f"batch {size}", [_made_up(candidate, size, config.seed)]
        if (sequence_length(candidate) or 0) > OTHER_LENGTH:
            shorter = with_sequence_length(candidate, OTHER_LENGTH)
            yield f"batch {sizes[-1]} of {OTHER_LENGTH} tokens", [_made_up(shorter, sizes[-1], config.seed)]
        return
    split, preprocessing = data.split("validation"), preprocessing_of(candidate, data)
    found = batches(split, preprocessing, fixed or CHUNK, limit=DATA_SAMPLES)
    inputs = [batch for batch, _ in found if not fixed or len(batch[0]) == fixed]
    for size in sizes:
        yield f"batch {size}", [next(batches(split.take(torch.arange(min(size, len(split)))), preprocessing, size))[0]]
    yield "validation", inputs


def _fixed_batch(model: TorchModel | OnnxModel) -> int | None:
    first = model.inputs[0].shape[:1] if isinstance(model, OnnxModel) else ()
    return first[0] if first and isinstance(first[0], int) else None


def _made_up(model: TorchModel | OnnxModel, batch_size: int, seed: int) -> Tensors:
    if isinstance(model, TorchModel):
        return example_inputs(model, batch_size, seed)
    return tuple(torch.from_numpy(array) for array in made_up_inputs(model, batch_size, seed))


def _limits(config: VerifyConfig, candidate: TorchModel | OnnxModel) -> dict[str, float]:
    named = asdict(config)
    limits = {name: named[name] for name in ("atol", "rtol", "min_sqnr_db", "min_agreement") if named[name] is not None}
    if "atol" in limits or "rtol" in limits:
        return {"atol": 0.0, "rtol": 0.0} | limits
    if limits:
        return limits
    if isinstance(candidate, OnnxModel) and candidate.is_quantized:
        return {"min_sqnr_db": QUANTIZED_SQNR_DB}
    return {"atol": FLOAT_ATOL, "rtol": FLOAT_RTOL}


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
