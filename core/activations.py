"""Replacing a model's activation layers by what runs faster once deployed: in an int8 kernel a ReLU costs nothing."""

import timm.layers
from torch import nn

from core.errors import ToolError

REPLACEMENTS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky-relu": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
# gates (sigmoid, softmax) are no activations in this sense: replacing them changes what a model is
REPLACED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    timm.layers.Swish,
    timm.layers.Mish,
    timm.layers.HardSwish,
    timm.layers.HardMish,
    timm.layers.GELU,
    timm.layers.GELUTanh,
    timm.layers.QuickGELU,
)
KEPT = ("LinearActivation", "SqrtSoftplusActivation")  # of transformers': the identity, and a gate


def replace_activations(module: nn.Module, activation: str) -> None:
    """Put this activation in place of every activation layer, in place; weights stay as they are.

    Args:
        module: The model.
        activation: A key of `REPLACEMENTS`.

    Raises:
        ToolError: The model has no activation layer; its forward may call functions instead.
    """
    named = module.named_modules(remove_duplicate=False)  # one layer may stand in several places
    found = [path for path, one in named if path and _is_activation(one)]
    if not found:
        raise ToolError(
            "the model has no activation layers to replace: its forward calls functions; make them layers, "
            "such as self.act = nn.SiLU()"
        )
    for path in found:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, REPLACEMENTS[activation]())
    module.eval()


def _is_activation(layer: nn.Module) -> bool:
    kind = type(layer)
    of_transformers = kind.__module__ == "transformers.activations" and kind.__name__ not in KEPT
    return isinstance(layer, REPLACED) or of_transformers
