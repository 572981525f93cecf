"""A float32 file and the samples that calibrate it: what every smaller form is written from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch

from compress.quantization.bias_correction import Means, channel_means, corrected
from compress.quantization.calibration import Method, Ranges, Seen, masking_nodes, observe, ranges_of
from compress.quantization.equalize import equalized
from compress.quantization.int8_file import name_nodes, prepare, rounds_when_it_runs, write_dynamic, write_static
from compress.quantization.int8_sensitivity import LayerDamage, int8_sensitivity
from compress.quantization.int8_trial import Form, Treatment
from compress.quantization.saturation import saturating
from core.batches import batches
from core.compatibility import check_reads, preprocessing_of
from core.data import Data, spread
from core.errors import ToolError, did_you_mean
from core.external_data import PROTOBUF_LIMIT_BYTES, fits_one_file
from core.onnx_model import OnnxModel, explain, open_onnx, read_proto
from core.preprocessing import Preprocessing
from core.progress import Progress
from core.sessions import Array, open_session, run_session
from core.whole_output import scratch_folder

CALIBRATION_BATCH = 32
SENSITIVITY_SAMPLES = 64
TRIED_SAMPLES = 16  # read to run one of them first: unreadable ones may be skipped


class QuantizeSource:
    """The file; its samples are run once for minmax, once for all other methods and once for means of channels.

    Attributes:
        prepared: The file with the types of all its tensors inferred.
        folder: Where files may be put while it is open.
    """

    def __init__(
        self, prepared: Path, calibration: "Batches", few: "Batches", excluded: Sequence[str], progress: Progress
    ) -> None:
        self.folder = prepared.parent
        self.prepared = prepared
        self._calibration = calibration
        self._few = few
        self._excluded = excluded
        self._progress = progress
        self._seen: dict[tuple[bool, bool], dict[str, Seen]] = {}
        self._means: dict[Path, Means] = {}

    @cached_property
    def treatments(self) -> tuple[Treatment, ...]:
        """Return what can be done to this file before it is rounded."""
        return ("equalized", "bias corrected") if self._equalized else ("bias corrected",)

    def write(self, form: Form, to: Path) -> None:
        """Write the file in a form of int8; what masks by minus infinity stays in float."""
        treated, in_float = self._treated(form), self._in_float(form)
        if form.layout.form == "dynamic":
            write_dynamic(treated, to, form.layout, in_float)
        else:
            write_static(treated, to, self._ranges_in(form), form.layout, in_float)

    def saturated(self, form: Form) -> OnnxModel | None:
        """Return a file that computes what a form does on x86 processors without VNNI, or None where it is the same."""
        exact = self.folder / "exact.onnx"
        shown = "dynamic" if form.layout.form == "dynamic" else "qdq"
        self.write(replace(form, layout=form.layout.model_copy(update={"form": shown})), exact)
        proto = saturating(onnx.load(exact))
        if proto is None:
            return None
        onnx.save(proto, self.folder / "saturated.onnx")
        return open_onnx(self.folder / "saturated.onnx")

    def sensitivity(self, form: Form) -> Sequence[LayerDamage]:
        """Return what each layer loses in a form."""
        return int8_sensitivity(
            onnx.load(self._treated(form)),
            self._ranges_in(form),
            form.layout,
            list(self._few),
            lambda done, total: self._progress("sensitivity", done, total, "layers"),
            self._in_float(form),
        )

    def extremes(self) -> Ranges:
        """Return the least and the greatest value that each tensor takes over the calibration samples."""
        seen = self._observed("minmax", equalized=False)
        return {tensor: (values.low, values.high) for tensor, values in seen.items()}

    def _in_float(self, form: Form) -> tuple[str, ...]:
        """Return the names of the nodes that a form leaves in float, asked for or not."""
        asked = (*self._excluded, *form.in_float)
        graph = onnx.load(self._graph(equalized=_is_equalized(form))).graph
        if form.layout.form == "dynamic":
            return (*asked, *(node.name for node in graph.node if not rounds_when_it_runs(node, graph)))
        return (*asked, *masking_nodes(graph, self._observed(form.method, equalized=_is_equalized(form))))

    def _ranges_in(self, form: Form) -> Ranges:
        return ranges_of(self._observed(form.method, equalized=_is_equalized(form)), form.method)

    def _observed(self, method: Method, *, equalized: bool) -> dict[str, Seen]:
        """Return what is known of each tensor's values over the calibration samples, as far as a method needs it."""
        histograms = method != "minmax"
        if (histograms, equalized) not in self._seen:
            self._seen[histograms, equalized] = observe(
                onnx.load(self._graph(equalized=equalized)),
                self._calibration,
                lambda done: self._progress("calibrate", done, len(self._calibration), "batches"),
                histograms=histograms,
            )
        return self._seen[histograms, equalized]

    @cached_property
    def _equalized(self) -> Path | None:
        proto = equalized(onnx.load(self.prepared))
        if proto is None:
            return None
        onnx.save(proto, self.folder / "float32-equalized.onnx")
        return self.folder / "float32-equalized.onnx"

    def _graph(self, *, equalized: bool) -> Path:
        return self._equalized if equalized and self._equalized else self.prepared

    def _treated(self, form: Form) -> Path:
        """Return the float32 file that a form is written from."""
        graph = self._graph(equalized=_is_equalized(form))
        if "bias corrected" not in form.treatments:
            return graph
        proto = onnx.load(graph)
        if graph not in self._means:
            self._means[graph] = channel_means(proto, self._calibration)
        proto = corrected(proto, self._means[graph], form.layout, self._in_float(form))
        onnx.save(proto, self.folder / "float32-corrected.onnx")
        return self.folder / "float32-corrected.onnx"


def _is_equalized(form: Form) -> bool:
    return "equalized" in form.treatments


@contextmanager
def quantize_source(
    model: OnnxModel, data: Data, num_samples: int, excluded: Sequence[str], progress: Progress
) -> Iterator[QuantizeSource]:
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
    if model.precision != "float32":
        raise ToolError(f"{model.path} is {model.precision} already; give the float32 file it was made from")
    proto = read_proto(model.path)
    if not fits_one_file(proto):
        raise ToolError(
            f"{model.path} has more weights than the {PROTOBUF_LIMIT_BYTES / 1e9:g} GB that an int8 file can be "
            "made of; quantize a smaller model"
        )
    name_nodes(proto.graph)
    # what is tried is opened by itself, and must say what this model was told of its input
    explain(
        proto,
        history=model.history,
        inputs=model.declared,
        preprocessing=model.preprocessing,
        labels=model.labels,
        returns=model.returns,
    )
    _check_nodes(proto, excluded)
    check_reads(model, data)
    preprocessing = preprocessing_of(model, data)
    _check_runs(model, data, preprocessing)
    calibration, few = (Batches(model, data, preprocessing, count) for count in (num_samples, SENSITIVITY_SAMPLES))
    with scratch_folder() as scratch:
        yield QuantizeSource(prepare(proto, scratch), calibration, few, excluded, progress)


class Batches:
    """Samples of the train split as the model takes them, read anew in every iteration."""

    def __init__(self, model: OnnxModel, data: Data, preprocessing: Preprocessing, num_samples: int) -> None:
        self._is_fixed = model.fixed_batch is not None
        self._batch_size = model.fixed_batch or CALIBRATION_BATCH
        split = data.split("train")
        self._split = split.take(spread(len(split), num_samples))
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        first: tuple[Array, ...] | None = None
        for inputs, _ in batches(self._split, self._preprocessing, self._batch_size):
            arrays = tuple(tensor.numpy() for tensor in inputs)
            first = first or arrays
            if self._is_fixed:
                arrays = tuple(_filled_up(*pair, self._batch_size) for pair in zip(arrays, first, strict=True))
            yield arrays


def _filled_up(samples: Array, others: Array, count: int) -> Array:
    """Return `count` samples (N, ...): these, then others where they have the same shape, then both again."""
    if others.shape[1:] == samples.shape[1:] and len(samples) < count:
        samples = np.concatenate([samples, others])
    return np.resize(samples, (count, *samples.shape[1:]))


def _check_nodes(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    known = [node.name for node in proto.graph.node]
    for name in names:
        if name not in known:
            raise ToolError(f"there is no node {name!r} to exclude.{did_you_mean(name, known)}")


def _check_runs(model: OnnxModel, data: Data, preprocessing: Preprocessing) -> None:
    """Run one sample first, so that data of the wrong shape fails here with a clear message."""
    train = data.split("train")
    few = train.take(torch.arange(min(len(train), TRIED_SAMPLES)))
    inputs, _ = next(batches(few, preprocessing, TRIED_SAMPLES))
    first = tuple(samples[:1].numpy() for samples in inputs)
    run_session(open_session(model.path), *(_filled_up(array, array, model.fixed_batch or 1) for array in first))
