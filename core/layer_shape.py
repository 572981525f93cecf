"""A layer as far as its latency goes: what `bench` times and `compress` narrows."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from core.torch_model import TorchModel, run_once


class LayerShape(BaseModel, frozen=True):
    """One layer of a model.

    Attributes:
        kind: ``conv``, ``linear``, ``lstm`` or ``gru``.
        in_channels: Channels or features of its input.
        out_channels: Channels or features of its output; of a recurrent layer those of all its directions.
        groups: Groups of a convolution.
        size: The input's other axes: (H, W) of an image; of a linear layer what lies between batch and features, of a
            recurrent one (steps,).
        kernel: Size of the kernel.
        stride: Its step.
        padding: Zeros added before each axis, then those after each, as ONNX's ``pads``.
        dilation: Distance between its elements.
        directions: 2 where a recurrent layer reads both ways.
        depth: Recurrent layers on top of one another.
    """

    kind: Literal["conv", "linear", "lstm", "gru"]
    in_channels: int
    out_channels: int
    groups: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    directions: int = 1
    depth: int = 1


TimeLayers = Callable[[Sequence[LayerShape]], list[float]]
"""Milliseconds of each layer, in the session the model is to run in."""


def layer_shapes(model: TorchModel) -> dict[str, LayerShape]:
    """Return the shapes of the layers that a sample runs through, by path, in the order they run.

    Transposed convolutions and whatever else is neither a convolution nor linear nor recurrent are left out.

    Raises:
        ToolError: The model does not run.
    """
    found: dict[str, LayerShape] = {}

    def note(path: str, module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        inputs = given or tuple(named[name] for name in ("input",) if name in named)  # as torch's own layers call it
        if isinstance(module, nn.Linear):
            found[path] = LayerShape(
                kind="linear",
                in_channels=module.in_features,
                out_channels=module.out_features,
                size=tuple(inputs[0].shape[1:-1]),
            )
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            directions = 2 if module.bidirectional else 1
            found[path] = LayerShape(
                kind="lstm" if isinstance(module, nn.LSTM) else "gru",
                in_channels=module.input_size,
                out_channels=module.hidden_size * directions,
                size=(inputs[0].shape[-2] if module.batch_first else inputs[0].shape[0],),
                directions=directions,
                depth=module.num_layers,
            )
        elif isinstance(module, _ConvNd) and not module.transposed:
            found[path] = LayerShape(
                kind="conv",
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                groups=module.groups,
                size=tuple(inputs[0].shape[2:]),
                kernel=module.kernel_size,
                stride=module.stride,
                padding=_padding(module),
                dilation=module.dilation,
            )

    with ExitStack() as hooks:
        for path, module in model.module.named_modules():
            hooks.enter_context(
                module.register_forward_pre_hook(
                    lambda module, given, named, path=path: note(path, module, given, named), with_kwargs=True
                )
            )
        run_once(model)
    return found


def _padding(module: _ConvNd) -> tuple[int, ...]:
    if not isinstance(module.padding, str):
        return (*module.padding, *module.padding)
    is_same = module.padding == "same"
    both = [dilation * (size - 1) * is_same for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    return (*(one // 2 for one in both), *(one - one // 2 for one in both))
