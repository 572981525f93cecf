"""A float32 file and the samples that calibrate it: what every form of int8 is written and judged from."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from compress.calibration import Method, Ranges, Seen, masking_nodes, observe, ranges_of
from compress.int8_choice import Form
from compress.int8_file import prepare, write_int8
from compress.int8_sensitivity import LayerDamage, int8_sensitivity
from core.data import Data, Split, spread
from core.errors import ToolError, did_you_mean
from core.onnx_model import OnnxModel, read_proto
from core.predict import check_reads, preprocessing_of
from core.preprocessing import Preprocessing, Tensors, normalise
from core.progress import Progress
from core.sessions import Array, open_session, run_session

CALIBRATION_BATCH = 32
SENSITIVITY_SAMPLES = 64


class Int8Source:
    """The file; its samples are run once for minmax, and once for all other methods.

    Attributes:
        folder: Where files may be put while it is open.
    """

    def __init__(
        self, prepared: Path, calibration: "Batches", few: "Batches", excluded: Sequence[str], progress: Progress
    ) -> None:
        self.folder = prepared.parent
        self._prepared = prepared
        self._calibration = calibration
        self._few = few
        self._excluded = excluded
        self._progress = progress
        self._seen: dict[bool, dict[str, Seen]] = {}

    def write(self, form: Form, to: Path) -> None:
        """Write the file in a form; what masks by minus infinity stays in float."""
        ranges = self._ranges(form.method)
        masking = masking_nodes(onnx.load(self._prepared).graph, self._seen[form.method != "minmax"])
        write_int8(self._prepared, to, ranges, form.layout, (*self._excluded, *form.in_float, *masking))

    def sensitivity(self, form: Form) -> Sequence[LayerDamage]:
        """Return what each layer loses in a form."""
        return int8_sensitivity(
            onnx.load(self._prepared),
            self._ranges(form.method),
            form.layout,
            list(self._few),
            lambda done, total: self._progress("sensitivity", done, total, "layers"),
        )

    def _ranges(self, method: Method) -> Ranges:
        histograms = method != "minmax"
        if histograms not in self._seen:
            self._seen[histograms] = observe(
                onnx.load(self._prepared),
                self._calibration,
                lambda done: self._progress("calibrate", done, len(self._calibration), "batches"),
                histograms=histograms,
            )
        return ranges_of(self._seen[histograms], method)


@contextmanager
def int8_source(
    model: OnnxModel, data: Data, num_samples: int, excluded: Sequence[str], progress: Progress
) -> Iterator[Int8Source]:
    """Check that a file can be quantized on these samples, and yield it.

    Args:
        model: A float32 file.
        data: Its train split calibrates.
        num_samples: How many samples do.
        excluded: Names of graph nodes that stay in float.
        progress: Told of calibration batches, and of layers looked at.

    Raises:
        ToolError: The file is quantized already, a node does not exist, or the data does not fit it.
    """
    if model.is_quantized:
        raise ToolError(f"{model.path} is quantized already; give the float32 file it was made from")
    proto = read_proto(model.path)
    _check_nodes(proto, excluded)
    check_reads(model, data)
    preprocessing = preprocessing_of(model, data)
    _check_runs(model, data, preprocessing)
    calibration, few = (Batches(model, data, preprocessing, count) for count in (num_samples, SENSITIVITY_SAMPLES))
    with tempfile.TemporaryDirectory() as scratch:
        yield Int8Source(prepare(proto, Path(scratch)), calibration, few, excluded, progress)


class Batches:
    """Samples of the train split as the model takes them, read as they are asked for."""

    def __init__(self, model: OnnxModel, data: Data, preprocessing: Preprocessing, num_samples: int) -> None:
        fixed = model.inputs[0].shape[0]
        self._batch_size = fixed if isinstance(fixed, int) else CALIBRATION_BATCH
        split = data.split("train")
        self._split = split.take(spread(len(split), num_samples))
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for first in range(0, len(self._split), self._batch_size):
            chosen = torch.arange(first, min(first + self._batch_size, len(self._split)))
            yield tuple(one.numpy() for one in _fetch(self._split.take(chosen), self._preprocessing))


def _check_nodes(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    known = [node.name for node in proto.graph.node]
    for name in names:
        if name not in known:
            raise ToolError(f"there is no node {name!r} to exclude.{did_you_mean(name, known)}")


def _fetch(split: Split, preprocessing: Preprocessing) -> Tensors:
    """Return all samples of a small split as inputs, (N, ...) each, in this process."""
    return normalise(split.samples.fetch(split.indices.tolist(), preprocessing), preprocessing)


def _check_runs(model: OnnxModel, data: Data, preprocessing: Preprocessing) -> None:
    """Run one sample first, so that data of the wrong shape fails here with a clear message."""
    inputs = _fetch(data.split("train").take(torch.arange(1)), preprocessing)
    batch_size = model.inputs[0].shape[0]
    repeats = batch_size if isinstance(batch_size, int) else 1
    run_session(open_session(model.path), *(one.repeat(repeats, *[1] * (one.ndim - 1)).numpy() for one in inputs))
