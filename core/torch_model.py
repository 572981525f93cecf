"""The first carrier: a torch module with all that is needed to train, export and rebuild it."""

import copy
import hashlib
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from core.activations import replace_activations
from core.errors import ToolError
from core.history import History, digest_of
from core.module_paths import paths_entered
from core.preprocessing import Preprocessing
from core.pruning_plan import PruningPlan
from core.references import Argument


class Source(BaseModel, frozen=True):
    """Where an architecture comes from.

    Attributes:
        kind: ``timm``, ``torchvision`` or ``factory``.
        name: Model name, or the factory's function name.
        arguments: Keyword arguments it is built with.
        file: The factory's Python file; absolute in memory, relative to the folder in a checkpoint.
        file_sha256: What that file was when the model was built.
        activation: What its activation layers were replaced by, as in `core.activations`; None leaves them.
    """

    kind: str
    name: str
    arguments: dict[str, Argument] = {}
    file: str | None = None
    file_sha256: str | None = None
    activation: str | None = None


class InputSpec(BaseModel, frozen=True):
    """One model input; the first axis is the batch and is dynamic.

    Attributes:
        name: The input's name in the ONNX file.
        shape: Shape of one sample, without the batch axis.
        dtype: Element type, as design.md spells dtypes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A module and its contract.

    Attributes:
        name: How the user called it.
        module: The module itself, in evaluation mode: (N, *inputs[0].shape) -> logits (N, len(labels)).
        source: How to build the module afresh.
        inputs: What it takes.
        preprocessing: How raw samples become inputs.
        labels: Class names, in the order of the logits.
        plan: What pruning changed since the source, or None.
        history: The stages it went through.
    """

    name: str
    module: nn.Module
    source: Source
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    plan: PruningPlan | None = None
    history: History = ()


def with_activation(model: TorchModel, activation: str) -> TorchModel:
    """Return a copy of a model whose activation layers are replaced, in its module and in how it is rebuilt.

    Raises:
        ToolError: It has no activation layer.
    """
    module = copy.deepcopy(model.module)
    replace_activations(module, activation)
    return replace(model, module=module, source=model.source.model_copy(update={"activation": activation}))


def example_inputs(model: TorchModel, batch_size: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Make standard normal inputs of the model's shapes, each (batch_size, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch_size, *spec.shape, generator=generator) for spec in model.inputs)


def num_params(module: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def torch_digest(model: TorchModel) -> str:
    """Return the SHA-256 over architecture and weights; history is not part of it."""
    digest = hashlib.sha256()
    plan = model.plan.model_dump() if model.plan else None
    source = model.source.model_dump(exclude={"file"})
    preprocessing = model.preprocessing.model_dump(exclude={"input"})  # float32 for every module
    digest.update(digest_of([source, plan, preprocessing]).encode())
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class ForwardError(Exception):
    """A module fails on its input.

    Attributes:
        path: Path of the innermost submodule that does; empty for the module itself.
    """

    def __init__(self, path: str, cause: Exception) -> None:
        self.path = path
        super().__init__(f"in its module {path!r}: {cause}" if path else f"in its own forward: {cause}")


def run_once(model: TorchModel) -> Tensor:
    """Run the module on one made-up batch of two and return its logits (2, num_classes).

    Raises:
        ToolError: The module fails on it (the failing submodule is named), or does not return one (2, K) tensor.
    """
    try:
        logits = forward_once(model)
    except ForwardError as error:
        raise ToolError(
            f"{model.name} cannot run on an input of shape {model.inputs[0].shape}, {error}; "
            "give the shape it takes with --input-shape"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise ToolError(f"{model.name} returns {_described(logits)}; a classifier returns logits (N, num_classes)")
    return logits


def forward_once(model: TorchModel) -> object:
    """Run the module on one made-up batch of two and return what it does.

    Raises:
        ForwardError: It fails.
    """
    with paths_entered(model.module) as entered, torch.no_grad():
        try:
            return model.module(*example_inputs(model, 2))
        except Exception as error:
            raise ForwardError(entered[-1] if entered else "", error) from error


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
