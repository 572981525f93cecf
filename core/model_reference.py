"""From a model reference to a carrier."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.channel_statistics import channel_statistics
from core.checkpoint import checkpoint_digest, load_checkpoint, load_weights
from core.data import Data
from core.errors import ToolError
from core.factories import factory_sha256
from core.hf_model import hf_digests, load_hf
from core.history import digest_of
from core.input_spec import InputSpec
from core.model import Model
from core.model_source import build_module, fresh_source
from core.onnx_model import OnnxModel, open_onnx
from core.preprocessing import Preprocessing
from core.references import Argument, Reference, check_arguments, existing_sha256, missing_path, parse_reference
from core.stated_input import with_stated_input
from core.torch_model import TorchModel, run_once

PREFIXES = ("timm", "torchvision", "hf")
STATISTICS_SAMPLES = 5000
logger = logging.getLogger(__name__)

InputShape = tuple[int, ...] | tuple[InputSpec, ...]
"""Sizes of one float input, (C, H, W) for images; or the specs of one or several, in the order of forward."""


def load_model(text: str, data: Data | None = None, input_shape: InputShape | None = None, seed: int = 0) -> Model:
    """Load the model a reference names.

    A fresh architecture takes its number of classes, input shape and normalisation from itself where it declares
    them, else from the reference, else from the data.

    Args:
        text: The reference.
        data: Where classes, input shape and normalisation of a fresh architecture come from.
        input_shape: What a model takes; overrides what the architecture declares.
        seed: Seeds the weights of a fresh architecture.

    Raises:
        ToolError: The model does not exist, is damaged, or cannot be built or run.
    """
    reference = parse_reference(text, PREFIXES)
    if reference.kind == "hf":
        return _hf(reference, data, input_shape, seed)
    if reference.kind != "path":
        return _fresh(reference, data, input_shape, seed)
    path = Path(reference.name)
    if path.suffix == ".onnx":
        return with_stated_input(open_onnx(path), reference)
    check_arguments(reference, ())
    if path.is_dir():
        return load_checkpoint(path)
    raise _no_model(path)


def load_torch_model(
    text: str, data: Data | None = None, input_shape: InputShape | None = None, seed: int = 0
) -> TorchModel:
    """Like `load_model`, for stages that change weights.

    Raises:
        ToolError: Also when the reference is an .onnx file.
    """
    return require_torch(load_model(text, data, input_shape, seed), text)


def require_torch(model: Model, text: str) -> TorchModel:
    """Return a model that was named so, which must be a torch model.

    Raises:
        ToolError: It is an .onnx file.
    """
    if isinstance(model, OnnxModel):
        raise ToolError(
            f"{text} is an ONNX file, whose weights cannot be trained or pruned; "
            "name the torch model or checkpoint it was exported from"
        )
    return model


def load_onnx_model(text: str) -> OnnxModel:
    """Like `load_model`, for stages that read or run an .onnx file.

    Raises:
        ToolError: Also when the reference is a torch model.
    """
    reference = parse_reference(text, PREFIXES)
    path = Path(reference.name)
    if reference.kind == "path" and path.suffix == ".onnx":
        return with_stated_input(open_onnx(path), reference)
    if reference.kind == "path" and not path.is_dir():
        raise _no_model(path)
    raise ToolError(f"{text} is not an .onnx file; export it first: onnxpress export {text} -o MODEL.onnx")


def reference_digest(text: str) -> str:
    """Return a digest that changes when what a reference names changes: its files' contents, its arguments.

    Raises:
        ToolError: A file it names does not exist.
    """
    reference = parse_reference(text, PREFIXES)
    weights = reference.arguments.get("weights")
    digests = [existing_sha256(Path(str(weights)))] if weights is not None else []
    if reference.file is not None:
        digests.append(factory_sha256(reference.file))
    elif reference.kind == "hf":
        digests += hf_digests(reference.name)
    elif reference.kind == "path":
        path = Path(reference.name)
        if path.suffix == ".onnx" and not path.is_dir():
            digests.append(open_onnx(path).sha256)  # the weights beside it are of it
        else:
            digests.append(checkpoint_digest(path) if path.is_dir() else existing_sha256(path))
    return digest_of([reference.kind, reference.name, reference.arguments, digests])


def _no_model(path: Path) -> ToolError:
    """Return the error of a path that is neither a folder nor an .onnx file."""
    if not path.exists():
        return missing_path(path)
    return ToolError(
        f"{path} is not a model this tool reads: timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, "
        "FILE.py:FACTORY, a checkpoint folder or an .onnx file"
    )


def _hf(reference: Reference, data: Data | None, input_shape: InputShape | None, seed: int) -> TorchModel:
    if input_shape is not None:
        raise ToolError(f"{reference.text} takes what its tokenizer makes; drop --input-shape, or give ',max_length=N'")
    model = load_hf(reference, data, seed)
    if "weights" in reference.arguments:
        load_weights(model.module, Path(str(reference.arguments["weights"])))
    run_once(model)
    return model


def _fresh(reference: Reference, data: Data | None, input_shape: InputShape | None, seed: int) -> TorchModel:
    arguments = dict(reference.arguments)
    weights = arguments.pop("weights", None)
    pretrained = bool(arguments.pop("pretrained", False))
    defaults: dict[str, Argument] = {}
    if data is not None:
        if data.labels:
            defaults["num_classes"] = len(data.labels)
        if data.kind == "image" and data.sample_shape is not None:
            defaults["in_chans"] = data.sample_shape[0]
    source = fresh_source(reference.kind, reference.name, arguments, reference.file, defaults, pretrained=pretrained)
    torch.manual_seed(seed)
    module = build_module(source, pretrained=pretrained)
    if weights is not None:
        load_weights(module, Path(str(weights)))
    given = _given(input_shape)
    if len(given) > 1:
        inputs, preprocessing = _named_after_forward(module, given, reference), Preprocessing()
    else:
        sizes = given[0].shape if given else None
        shape, preprocessing = _input_of(module, source.arguments, reference, data, sizes)
        spec = InputSpec(name="", shape=shape)
        if given and given[0].dtype != "float32":
            spec, preprocessing = given[0], Preprocessing()
        inputs = (replace(spec, name="input"),)
    model = TorchModel(
        name=reference.text,
        module=module,
        source=source,
        inputs=inputs,
        preprocessing=preprocessing,
        labels=(),
    )
    num_classes = run_once(model).shape[1]
    if data is not None and data.labels and num_classes != len(data.labels):
        raise ToolError(
            f"{reference.text} has {num_classes} classes, {data.reference} has {len(data.labels)}; "
            f"build it with num_classes={len(data.labels)}"
        )
    labels = data.labels if data is not None and data.labels else tuple(str(index) for index in range(num_classes))
    return replace(model, labels=labels)


def _given(input_shape: InputShape | None) -> tuple[InputSpec, ...]:
    sizes = tuple(one for one in input_shape or () if isinstance(one, int))
    specs = tuple(one for one in input_shape or () if isinstance(one, InputSpec))
    return (InputSpec(name="", shape=sizes),) if sizes else specs


def _named_after_forward(
    module: nn.Module, given: tuple[InputSpec, ...], reference: Reference
) -> tuple[InputSpec, ...]:
    """Name several inputs after the parameters of the module's forward."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    required = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty]
    if not len(required) <= len(given) <= len(names):
        raise ToolError(
            f"{reference.text} takes {', '.join(names) or 'no named inputs'}, and {len(given)} shapes are given; give "
            "--input-shape once for each, in this order"
        )
    return tuple(replace(spec, name=name) for spec, name in zip(given, names, strict=False))


def _input_of(
    module: nn.Module,
    arguments: dict[str, Argument],
    reference: Reference,
    data: Data | None,
    input_shape: tuple[int, ...] | None,
) -> tuple[tuple[int, ...], Preprocessing]:
    """Find the input shape and preprocessing of a fresh architecture."""
    if data is not None and data.kind == "text":
        raise ToolError(f"{reference.text} brings no tokenizer, and {data.reference} holds texts; take an hf: model")
    declared = _declared(module, reference)
    shape = input_shape or (declared and tuple(declared["input_size"])) or _shape_of(data, reference)
    if (data is not None and data.kind != "image") or len(shape) != 3:
        return shape, Preprocessing()
    if "in_chans" in arguments and input_shape is None:
        shape = (int(arguments["in_chans"]), *shape[1:])
    preprocessing = Preprocessing(image_size=(shape[1], shape[2]), channels=shape[0], scale=1 / 255)
    if declared and len(declared["mean"]) == shape[0]:
        return shape, _as_declared(preprocessing, declared, reference, data, is_shape_given=bool(input_shape))
    if data is None or data.train is None:
        return shape, preprocessing
    if "weights" in reference.arguments:
        logger.warning(
            "%s does not declare its normalisation, so it is measured on %s; if its weights were trained with "
            "another, set module.pretrained_cfg in the factory",
            reference.text,
            data.reference,
        )
    mean, std = _statistics(data, preprocessing)
    return shape, preprocessing.model_copy(update={"mean": mean, "std": std})


def _shape_of(data: Data | None, reference: Reference) -> tuple[int, ...]:
    """Return the shape of the data's samples, for an architecture that declares none."""
    if data is None:
        raise ToolError(f"{reference.text} does not say what input it takes; give --data or --input-shape C,H,W")
    if data.sample_shape is None:
        raise ToolError(
            f"the images of {data.reference} differ in size and {reference.text} does not say what "
            "it takes; add ',image_size=PIXELS' to the data to resize them"
        )
    return data.sample_shape


def _as_declared(
    preprocessing: Preprocessing,
    declared: dict[str, Any],
    reference: Reference,
    data: Data | None,
    *,
    is_shape_given: bool,
) -> Preprocessing:
    """Add what the architecture declares; images that are of its size already are not cropped."""
    asks_size = data is not None and ",image_size=" in data.reference  # which its images need not have
    if asks_size:
        logger.warning(
            "%s declares how images become its input (size %s, crop ratio %s), so image_size of the data is not used",
            reference.text,
            declared["input_size"][-1],
            declared["crop_pct"],
        )
    is_whole = is_shape_given or (not asks_size and _fits(data, preprocessing))
    update = {
        "mean": tuple(declared["mean"]),
        "std": tuple(declared["std"]),
        "interpolation": declared["interpolation"],
        "crop_ratio": 1.0 if is_whole else declared["crop_pct"],
    }
    return preprocessing.model_copy(update=update)


def _fits(data: Data | None, preprocessing: Preprocessing) -> bool:
    return data is not None and data.sample_shape is not None and data.sample_shape[1:] == preprocessing.image_size


def _declared(module: nn.Module, reference: Reference) -> dict[str, Any] | None:
    """Return what an architecture declares of its input in timm's ``pretrained_cfg``, or torchvision's weights do.

    A user's factory may declare it alike: ``module.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (...), ...}``.
    """
    from timm.data import resolve_data_config

    declared = getattr(module, "pretrained_cfg", None)
    if declared is None and reference.kind == "torchvision":
        declared = _declared_by_weights(reference.name)
    if not declared or "input_size" not in declared:
        return None
    resolved: dict[str, Any] = resolve_data_config(pretrained_cfg=declared)
    return resolved


def _declared_by_weights(name: str) -> dict[str, Any] | None:
    """Return how torchvision evaluates an architecture's default weights, as timm spells it."""
    from torchvision.models import get_model_weights

    preset: Any = get_model_weights(name).DEFAULT.transforms()
    sides: Sequence[int] = getattr(preset, "crop_size", ())
    if len(sides) != 1:  # no classifier of images
        return None
    return {
        "input_size": (3, sides[0], sides[0]),
        "crop_pct": sides[0] / preset.resize_size[0],
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
    }


def _statistics(data: Data, preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure the mean and standard deviation of each channel over training samples."""
    mean, std = channel_statistics(data.split("train"), preprocessing, STATISTICS_SAMPLES)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) or 1.0 for value in std.tolist())
