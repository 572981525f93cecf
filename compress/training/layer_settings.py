"""What is set on a student's layers before training: dropout and stochastic-depth rates, and what is frozen."""

from collections.abc import Sequence

from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from core.errors import ToolError
from core.module_paths import module_at

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def set_dropout(module: nn.Module, rate: float) -> None:
    """Set the rate of every dropout layer, in place.

    Raises:
        ToolError: There is none.
    """
    layers = [one for one in module.modules() if isinstance(one, DROPOUTS)]
    if not layers:
        raise ToolError(
            "the student has no dropout layer whose rate could be set; drop dropout, or build the model with its own, "
            "as in timm:NAME,drop_rate=0.2"
        )
    for layer in layers:
        layer.p = rate


def set_stochastic_depth(module: nn.Module, rate: float) -> None:
    """Set the rates of the stochastic-depth layers, in place: they rise linearly to `rate` at the last.

    Raises:
        ToolError: There is none.
    """
    layers = [one for one in module.modules() if isinstance(one, (DropPath, StochasticDepth))]
    if not layers:
        raise ToolError(
            "the student has no stochastic-depth layer whose rate could be set; drop stochastic_depth, or build the "
            "model with one, as in timm:NAME,drop_path_rate=0.1"
        )
    for index, layer in enumerate(layers, start=1):
        share = rate * index / len(layers)
        if isinstance(layer, DropPath):
            layer.drop_prob = share
        else:
            layer.p = share


def frozen_modules(module: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """Stop the modules at these paths from training, in place; return them, to be kept in evaluation mode.

    Raises:
        ToolError: There is no module of that path, or nothing is left to train.
    """
    found = [module_at(module, path, "freeze") for path in paths]
    for one in found:
        one.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ToolError(f"freeze {', '.join(paths)} leaves nothing to train")
    return found
