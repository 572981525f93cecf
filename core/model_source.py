"""Building a module from where its architecture comes from: timm, torchvision, transformers, or the user's factory."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from core.activations import replace_activations
from core.errors import ToolError, did_you_mean
from core.factories import accepted, call_factory, factory_sha256, load_factory
from core.hf_model import hf_module
from core.references import Argument
from core.torch_model import Source

logger = logging.getLogger(__name__)

WITH_PUBLISHED_WEIGHTS: dict[str, dict[str, Argument]] = {
    name: {"transform_input": True, "aux_logits": False} for name in ("googlenet", "inception_v3")
}
"""Arguments that go with them: they were trained on images normalised otherwise, which the module undoes."""


def fresh_source(
    kind: str,
    name: str,
    arguments: dict[str, Argument],
    file: Path | None,
    defaults: dict[str, Argument],
    *,
    pretrained: bool = False,
) -> Source:
    """Make the source of a fresh architecture, adding those of `defaults` that it takes and the user did not give.

    Args:
        kind: ``timm``, ``torchvision`` or ``factory``.
        name: Model or function name.
        arguments: What the user gave.
        file: The factory's file.
        defaults: ``num_classes`` and ``in_chans``, as the data has them.
        pretrained: Whether it will hold the weights that timm or torchvision publish for it.

    Raises:
        ToolError: There is no model of that name.
    """
    if kind == "factory":
        assert file is not None
        defaults = accepted(load_factory(file, name), defaults)
        return Source(
            kind=kind,
            name=name,
            arguments=defaults | arguments,
            file=str(file.resolve()),
            file_sha256=factory_sha256(file),
        )
    _check_name(kind, name)
    if kind == "torchvision":
        defaults = {key: value for key, value in defaults.items() if key == "num_classes"}
        if pretrained:
            defaults |= WITH_PUBLISHED_WEIGHTS.get(name, {})
    return Source(kind=kind, name=name, arguments=defaults | arguments)


def build_module(source: Source, *, pretrained: bool = False) -> nn.Module:
    """Build the module a source describes, in evaluation mode.

    Args:
        source: What to build.
        pretrained: Fetch the weights that timm or torchvision publish for it.

    Raises:
        ToolError: The source does not take its arguments, or the weights cannot be fetched.
    """
    module = _built(source, pretrained=pretrained)
    if source.activation is not None:
        replace_activations(module, source.activation)
    return module


def _built(source: Source, *, pretrained: bool) -> nn.Module:
    arguments: dict[str, Any] = dict(source.arguments)
    text = f"{source.kind}:{source.name}"
    if source.kind == "factory":
        assert source.file is not None
        module = call_factory(load_factory(Path(source.file), source.name), arguments, f"{source.file}:{source.name}")
        if not isinstance(module, nn.Module):
            raise ToolError(f"{source.file}:{source.name} returned {type(module).__name__}, not a torch.nn.Module")
        return module.eval()
    if source.kind == "hf":
        return hf_module(source)
    _check_name(source.kind, source.name)
    try:
        if source.kind == "timm":
            import timm

            return timm.create_model(source.name, pretrained=pretrained, **arguments).eval()  # type: ignore[no-any-return]
        from torchvision.models import get_model

        module = get_model(source.name, **arguments)
        if pretrained:
            _take_published(module, source)
        return module.eval()  # type: ignore[no-any-return]
    except TypeError as error:
        raise ToolError(f"{text!r} does not take {source.arguments}: {error}") from error
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError, ArithmeticError) as error:
        raise ToolError(f"cannot build {text!r} with {source.arguments}: {type(error).__name__} {error}") from error


def _take_published(module: nn.Module, source: Source) -> None:
    """Give a module the weights that torchvision publishes, as timm does: but for a head of other classes."""
    from torchvision.models import get_model

    arguments = {key: value for key, value in source.arguments.items() if key not in ("num_classes", "aux_logits")}
    published = get_model(source.name, weights="DEFAULT", progress=False, **arguments).state_dict()
    own = module.state_dict()
    for key in [key for key, tensor in published.items() if key not in own or own[key].shape != tensor.shape]:
        del published[key]  # in place: the dict carries the modules' versions
    if head := sorted(set(own) - set(published)):
        logger.warning(
            "torchvision:%s: its published weights are for other classes: %s start random", source.name, ", ".join(head)
        )
    module.load_state_dict(published, strict=False)


def _check_name(kind: str, name: str) -> None:
    if kind == "timm":
        import timm

        known = timm.list_models()
        name = name.partition(".")[0]  # the part after the dot is the tag of pretrained weights
    else:
        from torchvision.models import list_models

        known = list_models()
    if name not in known:
        raise ToolError(f"{kind} has no model {name!r}.{did_you_mean(name, known)}")
