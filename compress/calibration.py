"""The ranges that a graph's tensors take over calibration samples, in memory that does not grow with their number.

Every tensor keeps its extremes and, where the method asks for more, a histogram whose range doubles, and whose bins
merge in pairs, when a value lies beyond it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from core.errors import ToolError
from core.sessions import open_graph, run_session

Method = Literal["minmax", "entropy", "percentile", "mse"]
Ranges = dict[str, tuple[float, float]]
"""Tensor -> the ends of its quantization range."""

BINS = 8192
LEVELS = 256
CANDIDATES = 128  # thresholds that entropy and mse choose among
KEPT = 0.9999  # of the values lie inside what percentile keeps
CHUNK = 2**23  # values counted at once: torch counts in float32
MASKING = 1e30  # beyond any value that is meant as one: it stands for minus infinity, in the mask of an attention


@dataclass(slots=True)
class Seen:
    """What a tensor's values were.

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
        """Whether there are values among it that stand for minus infinity, which no level of int8 can tell."""
        return max(-self.low, self.high) > MASKING

    def extend(self, low: float, high: float) -> None:
        """Note extremes."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, values: NDArray[np.float32]) -> None:
        """Count values, (...), after their extremes were noted."""
        most = max(abs(self.low), abs(self.high))
        if most == 0:  # which says nothing of how far the others will reach
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
        histograms: Count values, which every method but minmax asks for; extremes alone are found several times faster.

    Raises:
        ToolError: A tensor is not finite.
    """
    seen = {name: Seen() for name in _float_tensors(proto)}
    watched = _watching(proto, list(seen), whole=histograms)
    session = open_graph(watched)
    for done, batch in enumerate(batches, start=1):
        for answer, values in run_session(session, *batch).items():
            name = answer.removesuffix(LOW).removesuffix(HIGH)
            _note(name, seen[name], values, whole=histograms)
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
    told = {name: one for name, one in seen.items() if one.low <= one.high and not one.masks}
    return {name: _with_zero(RANGE_OF[method](one)) for name, one in told.items()}


def masking_nodes(graph: onnx.GraphProto, seen: Mapping[str, Seen]) -> list[str]:
    """Return the names of the nodes that read or make values that stand for minus infinity: they must stay in float."""
    masks = {name for name, one in seen.items() if one.masks}
    return [node.name for node in graph.node if masks & {*node.input, *node.output}]


def minmax(seen: Seen) -> tuple[float, float]:
    """Return the extremes."""
    return seen.low, seen.high


def percentile(seen: Seen) -> tuple[float, float]:
    """Return what the central `KEPT` of the values lie in."""
    total = np.cumsum(seen.counts) / seen.counts.sum()
    edges = np.arange(BINS + 1) * (2 * seen.reach / BINS) - seen.reach
    outside = (1 - KEPT) / 2
    low, high = edges[np.searchsorted(total, outside)], edges[np.searchsorted(total, 1 - outside) + 1]
    return max(seen.low, float(low)), min(seen.high, float(high))


def entropy(seen: Seen) -> tuple[float, float]:
    """Return the range whose 256 levels lose the least information, the Kullback-Leibler divergence of what is left."""
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
    tried = [(max(seen.low, -one), min(seen.high, one)) for one in thresholds.tolist()]
    return min(tried, key=lambda one: cost(seen, *_with_zero(one)))


def _squared_error(seen: Seen, low: float, high: float) -> float:
    centres = seen.centres()
    scale = max(high - low, 1e-30) / (LEVELS - 1)
    zero = np.round(-low / scale)
    kept = (np.clip(np.round(centres / scale) + zero, 0, LEVELS - 1) - zero) * scale
    return float((seen.counts * (centres - kept) ** 2).sum())


def _divergence(seen: Seen, low: float, high: float) -> float:
    """Return the divergence of the values, those outside counted at the ends, from 256 even levels of those inside."""
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


def _with_zero(kept: tuple[float, float]) -> tuple[float, float]:
    return min(kept[0], 0.0), max(kept[1], 0.0)


def _note(name: str, seen: Seen, values: NDArray[np.float32], *, whole: bool) -> None:
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ToolError(f"the tensor {name!r} is not finite on a calibration sample; look for it with verify")
    seen.extend(low, high)
    if whole and not seen.masks:
        seen.count(values)


def _float_tensors(proto: onnx.ModelProto) -> list[str]:
    """Return the float32 tensors that a graph computes or is given, constants aside."""
    graph = proto.graph
    constants = {one.name for one in graph.initializer} | {
        output for node in graph.node if node.op_type == "Constant" for output in node.output
    }
    known = [*graph.input, *graph.value_info, *graph.output]
    return list(
        dict.fromkeys(
            one.name
            for one in known
            if one.type.tensor_type.elem_type == TensorProto.FLOAT and one.name not in constants
        )
    )


def _watching(proto: onnx.ModelProto, names: list[str], *, whole: bool) -> onnx.ModelProto:
    """Return the graph as it answers with tensors, or with their extremes alone."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    graph = watched.graph
    del graph.output[:]
    given = {one.name for one in graph.input}
    answers: list[str] = []
    for name in names:
        if whole and name not in given:
            answers.append(name)
            continue
        operators = {LOW: "Identity"} if whole else {LOW: "ReduceMin", HIGH: "ReduceMax"}  # no input is an output
        for suffix, operator in operators.items():
            answers.append(f"{name}{suffix}")
            node = helper.make_node(operator, [name], [answers[-1]], name=answers[-1])
            if operator != "Identity":
                node.attribute.append(helper.make_attribute("keepdims", 0))
            graph.node.append(node)
    graph.output.extend(helper.make_tensor_value_info(one, TensorProto.FLOAT, None) for one in answers)
    return watched
