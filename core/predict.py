"""One way to get outputs out of either carrier, and what share of them is right."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from core.answers import LOGITS, as_logits
from core.batches import batches
from core.compatibility import check_reads, preprocessing_of
from core.data import Data
from core.errors import ToolError
from core.model import Model
from core.onnx_model import OnnxModel
from core.outputs import named_outputs
from core.preprocessing import Tensors
from core.sessions import Array, FloatArray, open_session, run_session
from core.torch_model import TorchModel, channels_last

Outputs = Callable[[Tensors], dict[str, Tensor]]
"""Model inputs (N, ...), on any device -> outputs by name on the same device; those of floats are float32."""

Logits = Callable[[Tensors], Tensor]
"""Model inputs (N, ...), on any device -> logits (N, num_classes) float32 on the same device."""


def logits_of(
    model: Model,
    *,
    device: str = "cpu",
    provider: str = "cpu",
    threads: int = 0,
    spinning: bool = False,
) -> Logits:
    """Return the function that runs a model as it is now, for its first output alone; arguments as of `outputs_of`."""
    run = outputs_of(model, device=device, provider=provider, threads=threads, spinning=spinning)
    return lambda inputs: next(iter(run(inputs).values()))


def outputs_of(
    model: Model,
    *,
    device: str = "cpu",
    provider: str = "cpu",
    threads: int = 0,
    spinning: bool = False,
    tf32: bool = True,
) -> Outputs:
    """Return the function that runs a model as it is now; a torch module is copied.

    What a file of probabilities returns is read as logits, see `core.answers`.

    Args:
        model: Either carrier.
        device: Where a torch module runs.
        provider: Where an ONNX file runs.
        threads: Threads of an ONNX session; 0 takes the cores this process may use.
        spinning: Let an ONNX session's idle threads wait busily: faster where torch's threads do not compute beside it.
        tf32: As of `core.sessions.open_session`.
    """
    if isinstance(model, OnnxModel):
        session = open_session(model.path, provider, threads, spinning=spinning, tf32=tf32)

        def run_onnx(inputs: Tensors) -> dict[str, Tensor]:
            taken = zip(inputs, model.inputs, strict=True)
            found = run_session(session, *(_of_type(one.cpu().numpy(), spec.dtype) for one, spec in taken))
            if model.returns != LOGITS:
                found = {LOGITS: as_logits(list(found.values()), model.returns, len(model.labels))}
            return _as_float32({name: torch.from_numpy(array).to(inputs[0].device) for name, array in found.items()})

        return run_onnx
    module = frozen_copy(model, device)

    def run_torch(inputs: Tensors) -> dict[str, Tensor]:
        with torch.no_grad():
            return _as_float32(named_outputs(module(*inputs), model.name))

    return run_torch


def _of_type(array: Array, dtype: str) -> Array:
    """Return floats as the floats that a file takes, whole numbers as its whole numbers; anything else as it is."""
    wanted = np.dtype(dtype)
    return array.astype(wanted, copy=False) if array.dtype.kind == wanted.kind else array


def _as_float32(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.float() if one.is_floating_point() else one for name, one in outputs.items()}


def frozen_copy(model: TorchModel, device: str) -> nn.Module:
    """Return a copy of a model's module on a device, in evaluation mode, for being run only."""
    return channels_last(copy.deepcopy(model.module).to(device)).eval().requires_grad_(False)


def predict(
    model: Model,
    data: Data,
    split: str,
    *,
    batch_size: int = 256,
    limit: int | None = None,
    device: str = "cpu",
    provider: str = "cpu",
    threads: int = 0,
) -> tuple[FloatArray, np.ndarray]:
    """Run a model over a split: logits (N, num_classes) float32, targets (N,) int64.

    Texts are padded to the longest of their batch, as in training. The batches of a file whose batch is fixed must
    make up the split, or the `limit`.

    Raises:
        ToolError: The model cannot read this data.
    """
    check_reads(model, data)
    preprocessing = preprocessing_of(model, data)
    run = logits_of(model, device=device, provider=provider, threads=threads, spinning=True)
    if fixed := fixed_batch_of(model):
        batch_size = fixed
        num_samples = len(data.split(split)) if limit is None else min(len(data.split(split)), limit)
        if num_samples % batch_size:
            raise ToolError(
                f"{model.name} has its batch fixed at {batch_size}, which does not divide the {num_samples} samples of "
                f"{split}; export it with a dynamic batch"
            )
    logits, targets = [], []
    with _one_torch_thread() if isinstance(model, OnnxModel) else nullcontext():
        for inputs, classes in batches(data.split(split), preprocessing, batch_size, limit=limit):
            logits.append(run(tuple(one.to(device) for one in inputs)).cpu().numpy())
            _check_classes(logits[-1], model, data)
            targets.append(classes.numpy())
    return np.concatenate(logits), np.concatenate(targets)


def _check_classes(logits: FloatArray, model: Model, data: Data) -> None:
    """Check what one batch returned: one number a class."""
    if logits.ndim != 2 or (data.labels and logits.shape[1] != len(data.labels)):
        holds = f"{data.reference} has {len(data.labels)} classes" if data.labels else "accuracy is of classes"
        raise ToolError(
            f"{model.name} returns outputs of shape {logits.shape[1:]} for a sample; {holds}, and a classifier returns "
            "one number for each"
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's threads, which wait busily after every operation, from the cores that the session runs on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accuracy(logits: FloatArray, targets: np.ndarray) -> float:
    """Return the percentage of samples whose highest logit is the target's: one division, so limits hold exactly."""
    return 100 * num_right(logits, targets) / len(targets)


def num_right(logits: FloatArray, targets: np.ndarray) -> int:
    """Return how many samples have their highest logit at the target's."""
    return int((logits.argmax(axis=1) == targets).sum())


def fixed_batch_of(model: Model) -> int | None:
    """Return the batch that an .onnx file is fixed at, or None."""
    return model.fixed_batch if isinstance(model, OnnxModel) else None


def in_whole_batches(model: Model, data: Data, split: str, limit: int) -> int:
    """Return how many samples of a split a model is to be run on, about the limit at most.

    A file whose batch is fixed takes whole batches, at least one.

    Raises:
        ToolError: The split holds fewer samples than one batch.
    """
    batch_size = fixed_batch_of(model) or 1
    num_samples = len(data.split(split))
    if num_samples < batch_size:
        raise ToolError(
            f"{model.name} has its batch fixed at {batch_size}, more than the {num_samples} samples of {split}; export "
            "it with a dynamic batch"
        )
    found = min(num_samples, max(limit, batch_size))
    return found - found % batch_size
