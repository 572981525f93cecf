"""The ranges that a graph's tensors take over calibration samples, in memory that does not grow with their number.

Every tensor keeps its extremes and, where the method needs more, a histogram. When a value lies beyond its range, the
range doubles and its bins merge in pairs.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from core.errors import ToolError
from core.onnx_graph import watch
from core.sessions import open_graph, run_session

Method = Literal["minmax", "entropy", "percentile", "mse"]
Ranges = dict[str, tuple[float, float]]
"""Tensor -> the ends of its quantization range."""

BINS = 8192
LEVELS = 256
CANDIDATES = 128  # thresholds that entropy and mse choose among
KEPT = 0.9999  # share of the values that percentile keeps
CHUNK = 2**23  # values counted at once: torch counts in float32
MASKING = 1e30  # Larger magnitudes stand for minus infinity in attention masks.


@dataclass(slots=True)
class Seen:
    """What is known of the values that a tensor took.

    Attributes:
        low: The least.
        high: The greatest.
        reach: The histogram covers -reach to reach; a power of two, or 0 while there were only zeros.
        counts: Of values in each bin, (BINS,).
    """

    low: float = np.inf
    high: float = -np.inf
    reach: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def masks(self) -> bool:
        """Whether some of the values stand for minus infinity, which int8 cannot represent."""
        return max(-self.low, self.high) > MASKING

    def extend(self, low: float, high: float) -> None:
        """Note extremes."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, values: NDArray[np.float32]) -> None:
        """Count values, (...), after their extremes were noted."""
        most = max(abs(self.low), abs(self.high))
        if most == 0:  # zeros alone do not say how far later values will reach
            self.counts[BINS // 2] += values.size
            return
        needed = float(2.0 ** np.ceil(np.log2(most)))
        if self.reach == 0:
            self.reach = needed
        while self.reach < needed:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(pairs, BINS // 4)
            self.reach *= 2
        flat = torch.from_numpy(np.ascontiguousarray(values)).flatten()
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK]
            self.counts += torch.histc(chunk, BINS, -self.reach, self.reach).numpy().astype(np.int64)

    def centres(self) -> NDArray[np.float64]:
        """Return the middle of each bin, (BINS,)."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach, np.float64)


def observe(
    proto: onnx.ModelProto,
    batches: Iterable[tuple[NDArray[Any], ...]],
    progress: Callable[[int], None],
    *,
    histograms: bool = True,
) -> dict[str, Seen]:
    """Run a graph over samples and return what each float tensor in it was.

    Args:
        proto: With the types of its tensors inferred.
        batches: What it reads, an array (N, ...) for each input.
        progress: Told of the number of batches done.
        histograms: Count values, as every method but minmax needs; extremes alone are found several times faster.

    Raises:
        ToolError: A tensor is not finite.
    """
    seen = {tensor: Seen() for tensor in _float_tensors(proto)}
    watched = deepcopy(proto)
    tensor_of = (_put_out_values if histograms else _put_out_extremes)(watched.graph, list(seen))
    session = open_graph(watched)
    for done, batch in enumerate(batches, start=1):
        for answer, values in run_session(session, *batch).items():
            tensor = tensor_of[answer]
            _note(tensor, seen[tensor], values, histogram=histograms)
        progress(done)
    return seen


def ranges_of(seen: Mapping[str, Seen], method: Method) -> Ranges:
    """Return the range of every tensor; each holds zero, which a quantized tensor must represent exactly.

    Args:
        seen: With histograms, unless the method is minmax.
        method: ``minmax`` keeps everything; ``percentile`` all but 0.01 % of the values; ``entropy`` what loses the
            least information (Migacz 2017, 8-bit inference with TensorRT) and ``mse`` what makes the least squared
            error in 256 levels.
    """
    return {
        tensor: _with_zero(RANGE_OF[method](values))
        for tensor, values in seen.items()
        if values.low <= values.high and not values.masks
    }


def masking_nodes(graph: onnx.GraphProto, seen: Mapping[str, Seen]) -> list[str]:
    """Return the names of the nodes that read or make values that stand for minus infinity: they must stay in float."""
    masks = {tensor for tensor, values in seen.items() if values.masks}
    return [node.name for node in graph.node if masks & {*node.input, *node.output}]


def minmax(seen: Seen) -> tuple[float, float]:
    """Return the extremes."""
    return seen.low, seen.high


def percentile(seen: Seen) -> tuple[float, float]:
    """Return the range in which the central `KEPT` of the values lie."""
    total = np.cumsum(seen.counts) / seen.counts.sum()
    edges = np.arange(BINS + 1) * (2 * seen.reach / BINS) - seen.reach
    outside = (1 - KEPT) / 2
    low, high = edges[np.searchsorted(total, outside)], edges[np.searchsorted(total, 1 - outside) + 1]
    return max(seen.low, float(low)), min(seen.high, float(high))


def entropy(seen: Seen) -> tuple[float, float]:
    """Return the range whose 256 levels lose the least information, by Kullback-Leibler divergence."""
    return _best(seen, _divergence)


def mse(seen: Seen) -> tuple[float, float]:
    """Return the range whose 256 levels make the least squared error."""
    return _best(seen, _squared_error)


RANGE_OF: dict[str, Callable[[Seen], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}

LOW, HIGH = "/onnxpress/low", "/onnxpress/high"


def _best(seen: Seen, cost: Callable[[Seen, float, float], float]) -> tuple[float, float]:
    most = max(abs(seen.low), abs(seen.high))
    if most == 0:
        return 0.0, 0.0
    thresholds = most * np.arange(1, CANDIDATES + 1) / CANDIDATES
    candidates = [(max(seen.low, -threshold), min(seen.high, threshold)) for threshold in thresholds.tolist()]
    return min(candidates, key=lambda ends: cost(seen, *_with_zero(ends)))


def _squared_error(seen: Seen, low: float, high: float) -> float:
    centres = seen.centres()
    scale = max(high - low, 1e-30) / (LEVELS - 1)
    zero = np.round(-low / scale)
    kept = (np.clip(np.round(centres / scale) + zero, 0, LEVELS - 1) - zero) * scale
    return float((seen.counts * (centres - kept) ** 2).sum())


def _divergence(seen: Seen, low: float, high: float) -> float:
    """Return the divergence of the values, clipped to a range, from 256 even levels of those inside it."""
    centres = seen.centres()
    inside = (centres >= low) & (centres <= high)
    if inside.sum() <= LEVELS:
        return np.inf
    counts = seen.counts[inside].astype(np.float64)
    level = np.linspace(0, LEVELS, len(counts), endpoint=False).astype(np.int64)
    filled = counts > 0
    of_level = np.bincount(level, counts, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    spread = np.where(filled, of_level[level], 0.0)
    first = int(inside.argmax())
    clipped = counts.copy()
    clipped[0] += seen.counts[:first].sum()
    clipped[-1] += seen.counts[first + len(counts) :].sum()
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    present = p > 0
    return float((p[present] * np.log(p[present] / np.maximum(q[present], 1e-12))).sum())


def _with_zero(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    return min(low, 0.0), max(high, 0.0)


def _note(tensor: str, seen: Seen, values: NDArray[np.float32], *, histogram: bool) -> None:
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ToolError(f"the tensor {tensor!r} is not finite on a calibration sample; look for it with verify")
    seen.extend(low, high)
    if histogram and not seen.masks:
        seen.count(values)


def _float_tensors(proto: onnx.ModelProto) -> list[str]:
    """Return the float32 tensors that a graph computes or takes, constants excepted."""
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer} | {
        output for node in graph.node if node.op_type == "Constant" for output in node.output
    }
    known = [*graph.input, *graph.value_info, *graph.output]
    return list(
        dict.fromkeys(
            tensor.name
            for tensor in known
            if tensor.type.tensor_type.elem_type == TensorProto.FLOAT and tensor.name not in constants
        )
    )


def _put_out_values(graph: onnx.GraphProto, tensors: list[str]) -> dict[str, str]:
    """Let a graph put out tensors, in place; return which of them each output is."""
    return dict(zip(watch(graph, tensors), tensors, strict=True))


def _put_out_extremes(graph: onnx.GraphProto, tensors: list[str]) -> dict[str, str]:
    """Let a graph put out the least and the greatest value of tensors, in place; return which of them each is of."""
    tensor_of: dict[str, str] = {}
    for tensor in tensors:
        for suffix, operator in ((LOW, "ReduceMin"), (HIGH, "ReduceMax")):
            name = f"{tensor}{suffix}"
            graph.node.append(helper.make_node(operator, [tensor], [name], name=name, keepdims=0))
            tensor_of[name] = tensor
    watch(graph, list(tensor_of))
    return tensor_of
