"""What a model is: inputs, operators, parameters, MACs, size, history."""

import math
from collections import Counter

import torch_pruning
from torch import nn

from core.model import Model
from core.onnx_model import OnnxModel, read_proto
from core.preprocessing import Preprocessing
from core.result import Report
from core.torch_model import TorchModel, example_inputs, num_params, outputs_once, torch_digest


class Description(Report, frozen=True):
    """A model's description; fields that its carrier does not have are None.

    Attributes:
        name: How the user called it.
        kind: ``torch`` or ``onnx``.
        sha256: Digest of the file, or of architecture and weights.
        inputs: Name, shape and dtype of each; the batch axis is the first of an ONNX input.
        outputs: Likewise, the logits first.
        params: Number of parameters; of an ONNX file, elements of all its initializers.
        macs: Multiply-accumulates of one sample.
        size_bytes: The file's size, with weights beside it.
        returns: What an ONNX file returns: ``logits``, ``probabilities`` or ``top-5``.
        opset: Version of the operator set.
        precision: The least that it computes in.
        operators: Operator, or module type, to how many there are.
        labels: Class names.
        preprocessing: How raw samples become inputs; of a tokenizer its digest.
        history: The stages it went through, in order.
    """

    name: str
    kind: str
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] | None = None
    params: int
    macs: int | None = None
    size_bytes: int | None = None
    returns: str | None = None
    opset: int | None = None
    precision: str | None = None
    operators: dict[str, int]
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    history: tuple[str, ...]


def describe(model: Model) -> Description:
    """Describe either carrier."""
    return _describe_onnx(model) if isinstance(model, OnnxModel) else _describe_torch(model)


def num_macs(model: TorchModel, module: nn.Module) -> int:
    """Count the multiply-accumulates of one sample through `module`, which takes the model's inputs."""
    macs, _ = torch_pruning.utils.count_ops_and_params(module, example_inputs(model, 1))
    return int(macs)


def _describe_torch(model: TorchModel) -> Description:
    leaves = [type(module).__name__ for module in model.module.modules() if not list(module.children())]
    return Description(
        stage="inspect",
        name=model.name,
        kind="torch",
        sha256=torch_digest(model),
        inputs=tuple(f"{spec.name} {spec.axes} {spec.dtype}" for spec in model.inputs),
        outputs=tuple(
            f"{name} {tuple(one.shape[1:])} {str(one.dtype).removeprefix('torch.')}"
            for name, one in outputs_once(model).items()
        ),
        params=num_params(model.module),
        macs=num_macs(model, model.module),
        operators=dict(Counter(leaves).most_common()),
        labels=model.labels,
        preprocessing=_shown(model.preprocessing),
        history=tuple(step.stage for step in model.history),
    )


def _describe_onnx(model: OnnxModel) -> Description:
    graph = read_proto(model.path, weights=False).graph
    return Description(
        stage="inspect",
        name=model.name,
        kind="onnx",
        sha256=model.sha256,
        inputs=tuple(f"{spec.name} {spec.shape} {spec.dtype}" for spec in model.inputs),
        outputs=tuple(f"{spec.name} {spec.shape} {spec.dtype}" for spec in model.outputs),
        params=sum(math.prod(initializer.dims) for initializer in graph.initializer),
        size_bytes=model.size_bytes,
        returns=model.returns,
        opset=model.opset,
        precision=model.precision,
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        labels=model.labels,
        preprocessing=_shown(model.preprocessing),
        history=tuple(step.stage for step in model.history),
    )


def _shown(preprocessing: Preprocessing | None) -> Preprocessing | None:
    """Put a digest in the place of a tokenizer, whose text is as long as a book."""
    if preprocessing is None or preprocessing.text is None:
        return preprocessing
    text = preprocessing.text.model_copy(update={"tokenizer": f"sha256 {preprocessing.text.tokenizer_sha256}"})
    return preprocessing.model_copy(update={"text": text})
