"""From a data reference to the data: digits, images, shards, an .npz file, texts, torchvision, or a factory."""

import inspect
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from core.data import (
    UNLABELLED,
    VALIDATION_RATIO,
    ArraySamples,
    Data,
    Split,
    array_fingerprint,
    array_samples,
    check_classes,
    check_targets,
    hold_out_validation,
    spread,
    whole_split,
)
from core.errors import ToolError, did_you_mean
from core.history import digest_of
from core.image_folder import (
    MODE_CHANNELS,
    ImageFiles,
    class_names,
    files_fingerprint,
    is_unlabelled,
    list_split,
    list_unlabelled,
    survey,
)
from core.machine import available_cores
from core.references import (
    Argument,
    Reference,
    call_factory,
    check_arguments,
    file_sha256,
    load_factory,
    missing_path,
    parse_reference,
)
from core.shards import SURVEYED, ShardSamples, index_shards, shard_paths
from core.skipped_samples import SkippedSamples
from core.text_data import SUFFIXES as TEXT_SUFFIXES
from core.text_data import holds_texts, load_texts

PREFIXES = ("torchvision", "hf", "wds")
Array = npt.NDArray[np.generic]


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
            data = _from_shards(reference)
        case "factory":
            data = _from_factory(reference)
        case "path" if reference.name == "digits":
            check_arguments(reference, ())
            data = _from_arrays(_digits(), reference, labels=tuple(str(digit) for digit in range(10)))
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
        raise missing_path(path)
    if path.suffix in TEXT_SUFFIXES or (path.is_dir() and holds_texts(path)):
        return load_texts(path, reference)
    if path.is_dir():
        return _from_folder(path, reference, skip_bad)
    if path.suffix == ".npz":
        check_arguments(reference, ())
        return _from_arrays(_read_npz(path), reference)
    raise ToolError(
        f"{path} is not data this tool reads: a folder with train/CLASS/, an .npz file, a .tsv, .csv or .jsonl file "
        "of texts, 'digits', torchvision:NAME or FILE.py:FACTORY"
    )


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ToolError(f"{path} holds one bare array; save x_train, y_train, ... with numpy.savez")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
        raise ToolError(f"cannot read {path}: {error}; the file is damaged or holds Python objects") from error


def _digits() -> dict[str, Array]:
    """Handwritten digits, 1,797 grey images 8x8 (scikit-learn); every fifth one is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    is_test = np.arange(len(images)) % 5 == 4
    return {
        "x_train": images[~is_test],
        "y_train": digits.target[~is_test],
        "x_test": images[is_test],
        "y_test": digits.target[is_test],
    }


def _from_arrays(arrays: Mapping[str, Array], reference: Reference, labels: tuple[str, ...] | None = None) -> Data:
    known = {f"{axis}_{split}" for axis in "xy" for split in ("train", "val", "test")} | {"labels"}
    for name in arrays:
        if name not in known:
            raise ToolError(f"{reference.text} holds an unknown array {name!r}.{did_you_mean(name, known)}")
        if name.startswith("y_") and f"x_{name[2:]}" not in arrays:
            raise ToolError(f"{reference.text} holds {name} without x_{name[2:]}")
    if labels is None and "labels" in arrays:
        if arrays["labels"].ndim != 1:
            raise ToolError(f"{reference.text}: labels has shape {arrays['labels'].shape}; it is a list of class names")
        labels = tuple(str(label) for label in arrays["labels"])
    splits = {split: _array_split(arrays, split, labels, reference.text) for split in ("train", "val", "test")}
    present = [split for split in splits.values() if split is not None]
    if not present:
        raise ToolError(f"{reference.text} holds none of x_train, x_val and x_test")
    shapes = {tuple(split.samples.array.shape[1:]) for split in present if isinstance(split.samples, ArraySamples)}
    if len(shapes) > 1:
        raise ToolError(f"{reference.text}: the splits differ in the shape of a sample: {sorted(shapes)}")
    if len({split.samples.array.dtype for split in present if isinstance(split.samples, ArraySamples)}) > 1:
        raise ToolError(f"{reference.text}: the splits differ: some hold uint8 images, some floats")
    labels = labels or tuple(str(index) for index in range(max(int(split.targets.max()) for split in present) + 1))
    first = present[0].samples
    return Data(
        reference=reference.text,
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        labels=labels,
        sample_shape=shapes.pop(),
        kind="image" if isinstance(first, ArraySamples) and first.array.dtype == torch.uint8 else "values",
        fingerprint=array_fingerprint([arrays[name] for name in sorted(arrays)]),
    )


def _array_split(arrays: Mapping[str, Array], split: str, labels: tuple[str, ...] | None, name: str) -> Split | None:
    if f"x_{split}" not in arrays:
        return None
    samples = array_samples(arrays[f"x_{split}"], f"{name}: x_{split}")
    if f"y_{split}" not in arrays and split == "train":
        return whole_split(samples, torch.full((len(samples),), UNLABELLED))
    if f"y_{split}" not in arrays:
        raise ToolError(f"{name} holds x_{split} without y_{split}; only x_train may do without")
    return whole_split(samples, check_targets(arrays[f"y_{split}"], len(samples), labels, f"{name}: y_{split}"))


def _from_folder(root: Path, reference: Reference, skip_bad: int) -> Data:
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if not folders:
        raise ToolError(
            f"{root} holds none of train/, val/ and test/; images belong in {root}/train/CLASS/, "
            f"texts in {root}/train.tsv"
        )
    check_arguments(reference, ("mode", "image_size"))
    mode = reference.arguments.get("mode")
    if mode is not None and mode not in MODE_CHANNELS:
        raise ToolError(f"{reference.text!r}: mode is {mode!r}; it is RGB or L")
    unlabelled = {"train"} if "train" in folders and is_unlabelled(folders["train"]) else set()
    labelled = [folder for name, folder in folders.items() if name not in unlabelled]
    labels = class_names(labelled[0]) if labelled else ()
    listed = {name: list_split(folder, labels) for name, folder in folders.items() if name not in unlabelled}
    listed |= {name: list_unlabelled(folders[name]) for name in unlabelled}
    paths = [path for found, _ in listed.values() for path in found]
    shared_mode, size = survey(paths, str(mode) if mode is not None else None, skip_bad)
    splits = {
        name: whole_split(ImageFiles(tuple(found), shared_mode, available_cores()), torch.tensor(targets))
        for name, (found, targets) in listed.items()
    }
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    size = _image_size(reference) or size
    return Data(
        reference=reference.text,
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        labels=labels,
        sample_shape=None if size is None else (MODE_CHANNELS[shared_mode], *size),
        kind="image",
        fingerprint=digest_of([reference.arguments, files_fingerprint(root, paths)]),
    )


def _from_shards(reference: Reference) -> Data:
    check_arguments(reference, ("val", "test", "num_classes", "labels", "mode", "image_size"))
    arguments = reference.arguments
    mode = arguments.get("mode", "RGB")
    if mode not in MODE_CHANNELS:
        raise ToolError(f"{reference.text!r}: mode is {mode!r}; it is RGB or L")
    patterns = {"train": reference.name} | {name: str(arguments[name]) for name in ("val", "test") if name in arguments}
    shards = {name: shard_paths(pattern) for name, pattern in patterns.items()}
    indexed = {name: index_shards(paths) for name, paths in shards.items()}
    labels = _labels_of_shards(reference, max(int(targets.max()) for _, targets in indexed.values()) + 1)
    samples = {
        name: ShardSamples(shards[name], places, str(mode), available_cores()) for name, (places, _) in indexed.items()
    }
    splits = {}
    for name, (_, targets) in indexed.items():
        has_labels = bool((targets != UNLABELLED).all())
        checked = check_targets(targets, len(targets), labels, f"{reference.text}: {name}") if has_labels else targets
        splits[name] = whole_split(samples[name], torch.as_tensor(checked))
    sizes = samples["train"].sizes(spread(len(samples["train"]), SURVEYED).tolist())
    size = _image_size(reference) or (sizes.pop() if len(sizes) == 1 else None)
    files = sorted({path for paths in shards.values() for path in paths})
    return Data(
        reference=reference.text,
        train=splits["train"],
        validation=splits.get("val"),
        test=splits.get("test"),
        labels=labels,
        sample_shape=None if size is None else (MODE_CHANNELS[str(mode)], *size),
        kind="image",
        fingerprint=digest_of([arguments, files_fingerprint(None, files)]),
    )


def _labels_of_shards(reference: Reference, num_seen: int) -> tuple[str, ...]:
    """Return the class names: from a file of one name a line, or numbers."""
    named = reference.arguments.get("labels")
    if named is not None:
        path = Path(str(named))
        if not path.is_file():
            raise missing_path(path)
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    asked = reference.arguments.get("num_classes", num_seen)
    if not isinstance(asked, int) or asked < num_seen:
        raise ToolError(f"{reference.text!r}: num_classes is {asked!r}, and the shards hold class {num_seen - 1}")
    return tuple(str(index) for index in range(asked))


def _image_size(reference: Reference) -> tuple[int, int] | None:
    asked = reference.arguments.get("image_size")
    if asked is None:
        return None
    if not isinstance(asked, int) or asked < 1:
        raise ToolError(f"{reference.text!r}: image_size is {asked!r}; it is a number of pixels")
    return asked, asked


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
        data = _from_arrays({name: np.asarray(value) for name, value in made.items()}, reference)
    else:
        datasets = {name: value for name, value in made.items() if name != "labels"}
        data = _from_datasets(datasets, reference, labels=made.get("labels"))
    return replace(data, fingerprint=digest_of([file_sha256(reference.file), data.fingerprint]))


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
    return _from_arrays(arrays, reference, labels=tuple(str(label) for label in labels) if labels is not None else None)
