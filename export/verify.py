"""Does a candidate compute what its reference computes?"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from core.answers import LOGITS, in_like_terms
from core.data import Data
from core.errors import GateMissedError, ToolError, require
from core.model import Model
from core.onnx_model import OnnxModel
from core.predict import outputs_of
from core.preprocessing import Tensors
from core.result import Report
from core.sessions import Array
from core.torch_model import TorchModel
from export.comparison import ComparedOutput, Comparison, compare, difference_of
from export.limits import FLOAT_ATOL, FLOAT_RTOL, limits_of, misses_of_each
from export.locate import Divergence, first_divergence
from export.shared_inputs import Feed, feed_of, pixels_of, shared_inputs

LIMITS = ("atol", "rtol", "min_sqnr_db", "min_agreement")
LOCATED_SAMPLES = 8  # run with every tensor watched, which holds all of them at once


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
    precision = candidate.precision if isinstance(candidate, OnnxModel) else None
    limits = limits_of({name: getattr(config, name) for name in LIMITS}, precision)
    pixels = pixels_of(reference) or pixels_of(candidate)
    feeds = feed_of(reference, pixels), feed_of(candidate, pixels)
    compared = list(_compared(reference, candidate, feeds, config, data, rtol=limits.get("rtol", 0.0)))
    misses = misses_of_each(compared, limits)
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


def _compared(
    reference: Model,
    candidate: Model,
    feeds: tuple[Feed, Feed],
    config: VerifyConfig,
    data: Data | None,
    *,
    rtol: float,
) -> Iterator[ComparedOutput]:
    """Run both models and yield every output of theirs compared, input by input."""
    run_reference, run_candidate = (
        outputs_of(model, provider=config.provider, threads=config.threads, tf32=False)
        for model in (reference, candidate)
    )
    to_reference, to_candidate = feeds
    returns = _returns(reference), _returns(candidate)
    for inputs, given in shared_inputs(reference, candidate, config.batch_sizes, config.seed, data):
        pairs = [(run_reference(to_reference(batch)), run_candidate(to_candidate(batch))) for batch in given]
        for index, (name, expected, answered) in enumerate(_outputs(pairs)):
            is_first = index == 0
            left, right = in_like_terms(expected, answered, returns) if is_first else (expected, answered)
            comparison = compare(inputs, left, right, rtol=rtol, output=name, is_first=is_first)
            yield ComparedOutput(comparison, left, right, given)


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


def _returns(model: Model) -> str:
    return model.returns if isinstance(model, OnnxModel) else LOGITS


def _worst(batches: list[Tensors], reference: Array, candidate: Array) -> Tensors:
    """Return a batch that is small, else the sample whose answer is furthest off."""
    sizes = [len(batch[0]) for batch in batches]
    if len(batches) == 1 and sizes[0] <= LOCATED_SAMPLES:
        return batches[0]
    errors = difference_of(reference, candidate).reshape(len(reference), -1).max(1)  # NaN counts as the highest
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
    failing: ComparedOutput | None,
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
