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
from core.input_spec import InputSpec
from core.module_paths import paths_entered
from core.outputs import named_outputs
from core.preprocessing import Preprocessing, Tensors
from core.pruning_plan import PruningPlan
from core.references import Argument


class Source(BaseModel, frozen=True):
    """Where an architecture comes from.

    Attributes:
        kind: ``timm``, ``torchvision``, ``hf`` or ``factory``.
        name: Model name, or the factory's function name; of ``hf`` also a folder, which is not needed any more.
        arguments: Keyword arguments it is built with.
        file: The factory's Python file; absolute in memory, relative to the folder in a checkpoint
            on the same drive.
        file_sha256: What that file was when the module was built, with the neighbours that it imports.
        activation: What its activation layers were replaced by, as in `core.activations`; None leaves them.
        config: The text of an ``hf`` model's ``config.json``, which is all that it is rebuilt from.
    """

    kind: str
    name: str
    arguments: dict[str, Argument] = {}
    file: str | None = None
    file_sha256: str | None = None
    activation: str | None = None
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A module and its contract.

    Attributes:
        name: How the user called it.
        module: The module itself, in evaluation mode: one tensor (N, *shape) for each of `inputs` -> logits
            (N, len(labels)), alone or the first of several outputs.
        source: How to build the module afresh.
        inputs: What it takes, in the order of its forward.
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


def example_inputs(model: TorchModel, batch_size: int, seed: int = 0) -> Tensors:
    """Make inputs of the model's shapes, (batch_size, *shape) each: standard normal, or whole numbers within bounds."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch_size, *spec.shape, generator=generator)
        if spec.dtype == "float32"
        else torch.randint(spec.below, (batch_size, *spec.shape), generator=generator)
        for spec in model.inputs
    )


def channels_last(module: nn.Module) -> nn.Module:
    """Lay a module's weights out channels last, in place, as torch runs convolutions of images fastest; return it.

    One with weights of five axes, which convolve volumes, stays as it is: that layout is of four.
    """
    if any(tensor.ndim == 5 for tensor in (*module.parameters(), *module.buffers())):
        return module
    return module.to(memory_format=torch.channels_last)


def num_params(module: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def torch_digest(model: TorchModel) -> str:
    """Return the SHA-256 over architecture and weights; history is not part of it."""
    digest = hashlib.sha256()
    plan = model.plan.model_dump() if model.plan else None
    # What only texts have is left out where there are none, so that the digests of all other models stay; a module's
    # input is always float32.
    source = model.source.model_dump(exclude={"file", "config"} if model.source.config is None else {"file", "name"})
    unsaid = {"input", "text"} if model.preprocessing.text is None else {"input"}
    preprocessing = model.preprocessing.model_dump(exclude=unsaid)
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
        ToolError: As `outputs_once`.
    """
    return next(iter(outputs_once(model).values()))


def outputs_once(model: TorchModel) -> dict[str, Tensor]:
    """Run the module on one made-up batch of two and return its outputs by name, (2, ...) each, the logits first.

    Raises:
        ToolError: The module fails on it (the failing submodule is named), or returns something else than tensors of
            two samples whose first is (2, K).
    """
    try:
        returned = forward_once(model)
    except ForwardError as error:
        shapes = [str(spec.shape) for spec in model.inputs]
        taken = f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"inputs of shapes {', '.join(shapes)}"
        advice = "" if model.source.kind == "hf" else "; give the shape it takes with --input-shape"
        raise ToolError(f"{model.name} cannot run on {taken}, {error}{advice}") from error
    outputs = named_outputs(returned, model.name)
    first = next(iter(outputs.values()))
    if first.ndim != 2 or len(first) != 2:
        described = f"a tensor of shape {tuple(first.shape)}" + (" first" if len(outputs) > 1 else "")
        raise ToolError(f"{model.name} returns {described}; a classifier returns logits (N, num_classes)")
    for name, output in outputs.items():
        if output.ndim == 0 or len(output) != 2:
            raise ToolError(
                f"{model.name} returns {name!r} of shape {tuple(output.shape)} for two samples; the first axis of "
                "every output is the batch"
            )
    return outputs


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
