"""From a data reference to the data: digits, images, shards, an .npz file, texts, torchvision, or a factory."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from core.array_data import Array, digits, load_arrays, read_npz
from core.data import VALIDATION_RATIO, Data, check_classes, hold_out_validation
from core.errors import ToolError, did_you_mean
from core.factories import call_factory, factory_sha256, load_factory
from core.history import digest_of
from core.image_folder import load_image_folder
from core.processes import first_on_this_machine
from core.references import (
    Argument,
    Reference,
    check_arguments,
    missing_path,
    parse_reference,
)
from core.shards import load_shards
from core.skipped_samples import SkippedSamples
from core.text_data import SUFFIXES as TEXT_SUFFIXES
from core.text_data import holds_texts, load_texts

PREFIXES = ("torchvision", "hf", "wds")


def load_data(text: str, skip_bad: int = 0) -> Data:
    """Load the data a reference names.

    Args:
        text: The reference.
        skip_bad: How many unreadable samples may be left out, over all that is done with the data.

    Returns:
        The data. Splits that the source does not bring are None, but for validation: a seeded tenth of train is held
        out for it, or the share that the argument ``validation_ratio`` gives. A folder with only one of ``val/`` and
        ``test/`` uses it as the test split, since the test split is what nothing is chosen on.

    Raises:
        ToolError: The source does not exist, is damaged, or its samples or labels cannot be used.
    """
    named = parse_reference(text, PREFIXES)
    arguments = dict(named.arguments)
    validation_ratio = arguments.pop("validation_ratio", None)
    reference = replace(named, arguments=arguments)
    match reference.kind:
        case "torchvision":
            data = _from_torchvision(reference)
        case "wds":
            data = load_shards(reference)
        case "factory":
            data = _from_factory(reference)
        case "path" if reference.name == "digits":
            check_arguments(reference, ())
            data = load_arrays(digits(), reference, labels=tuple(str(digit) for digit in range(10)))
        case "path":
            data = _from_path(reference, skip_bad)
        case _:
            raise ToolError(
                f"{text!r}: {reference.kind}: data is not supported yet; save it as a .tsv or .jsonl file "
                "of texts and labels, a folder of images or an .npz file"
            )
    if skip_bad and data.kind == "text":
        raise ToolError(f"{text}: --skip-bad is for images; a file of texts is read whole, and its bad line is named")
    return _skipping(_with_validation(data, validation_ratio), skip_bad)


def _skipping(data: Data, limit: int) -> Data:
    """Let up to so many unreadable samples be left out of the splits."""
    if limit == 0:
        return data
    skipped = SkippedSamples(limit)
    train, validation, test = (
        None if split is None else replace(split, skipped=skipped) for split in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def _with_validation(data: Data, asked_ratio: Argument | None) -> Data:
    """Check the classes and hold validation out, unless the source brings it."""
    if data.train is not None and data.train.is_labelled:
        check_classes(data.train, data.labels, data.reference)
    if data.train is None or data.validation is not None:
        if asked_ratio is not None:
            reason = "has no train split" if data.train is None else "brings its own validation split"
            raise ToolError(f"{data.reference} {reason}; drop validation_ratio")
        return data
    if len(data.train) < 2:
        raise ToolError(f"{data.reference} has one training sample; at least two are needed to hold validation out")
    ratio = VALIDATION_RATIO if asked_ratio is None else asked_ratio
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        raise ToolError(f"{data.reference}: validation_ratio is {ratio!r}; it is a share of train, such as 0.1")
    train, validation = hold_out_validation(data.train, ratio)
    fingerprint = data.fingerprint if asked_ratio is None else digest_of([data.fingerprint, ratio])
    return replace(data, train=train, validation=validation, fingerprint=fingerprint)


def _from_path(reference: Reference, skip_bad: int) -> Data:
    path = Path(reference.name)
    if not path.exists():
        raise missing_path(path, ["digits"])
    if path.suffix in TEXT_SUFFIXES or (path.is_dir() and holds_texts(path)):
        return load_texts(path, reference)
    if path.is_dir():
        return load_image_folder(path, reference, skip_bad)
    if path.suffix == ".npz":
        check_arguments(reference, ())
        return load_arrays(read_npz(path), reference)
    raise ToolError(
        f"{path} is not data this tool reads: a folder with train/CLASS/, an .npz file, a .tsv, .csv or .jsonl file "
        "of texts, 'digits', torchvision:NAME or FILE.py:FACTORY"
    )


def _from_torchvision(reference: Reference) -> Data:
    import torchvision.datasets

    factory = getattr(torchvision.datasets, reference.name, None)
    if not inspect.isclass(factory):
        raise ToolError(
            f"torchvision has no data set {reference.name!r}."
            + did_you_mean(reference.name, torchvision.datasets.__all__)
        )
    arguments: dict[str, Any] = dict(reference.arguments)
    arguments.setdefault("root", os.environ.get("ONNXPRESS_DATA", Path.home() / ".cache" / "onnxpress"))
    parameters = inspect.signature(factory).parameters
    if "download" in parameters:
        arguments.setdefault("download", True)
    if "train" in parameters:
        by_split: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        by_split = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        raise ToolError(f"torchvision:{reference.name} has no train and test splits; wrap it in a FILE.py:FACTORY")
    datasets = {}
    for split, chosen in by_split.items():
        try:
            with first_on_this_machine():
                datasets[split] = call_factory(factory, arguments | chosen, reference.text)
        except (RuntimeError, OSError, ValueError, AssertionError, LookupError) as error:
            raise ToolError(f"cannot get {reference.text}: {error}") from error
    return _from_datasets(datasets, reference, labels=getattr(datasets["train"], "classes", None))


def _from_factory(reference: Reference) -> Data:
    assert reference.file is not None
    made = call_factory(load_factory(reference.file, reference.name), dict(reference.arguments), reference.text)
    if not isinstance(made, Mapping) or not made:
        raise ToolError(
            f"{reference.text} returned {type(made).__name__}; it must return a mapping: either x_train, "
            "y_train, x_test, y_test[, x_val, y_val, labels] or train, test[, val, labels] of torch datasets"
        )
    if any(name.startswith("x_") for name in made):
        data = load_arrays({name: np.asarray(value) for name, value in made.items()}, reference)
    else:
        datasets = {name: value for name, value in made.items() if name != "labels"}
        data = _from_datasets(datasets, reference, labels=made.get("labels"))
    return replace(data, fingerprint=digest_of([factory_sha256(reference.file), data.fingerprint]))


def _from_datasets(datasets: Mapping[str, Dataset[Any]], reference: Reference, labels: Any) -> Data:
    """Read map-style torch datasets of (image, class index) into memory."""
    arrays: dict[str, Array] = {}
    for split, dataset in datasets.items():
        try:
            pairs = [(sample, target) for sample, target in (dataset[index] for index in range(len(dataset)))]  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ToolError(
                f"{reference.text}: {split} is not a map-style data set of (sample, class index): {error}"
            ) from error
        if not pairs:
            raise ToolError(f"{reference.text}: {split} holds no samples")
        try:
            arrays[f"x_{split}"] = np.stack([np.asarray(sample) for sample, _ in pairs])
        except ValueError as error:
            raise ToolError(
                f"{reference.text}: the samples of {split} differ in shape ({error}); resize them"
            ) from error
        arrays[f"y_{split}"] = np.array([np.asarray(target)[()] for _, target in pairs])
    return load_arrays(arrays, reference, labels=tuple(str(label) for label in labels) if labels is not None else None)
