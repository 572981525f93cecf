"""Images in tar shards as WebDataset lays them out: ``KEY.jpg`` beside ``KEY.cls``, the class index as text.

The shards are indexed once, by reading their headers; a sample is then read from where it lies. So they serve every
command, are shuffled over all shards, and only the index (about 40 bytes a sample) is held in memory.
"""

import io
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from core.data import MOST_CLASSES, UNLABELLED, Data, check_targets, spread, whole_split
from core.errors import ToolError, UnreadableSampleError
from core.history import digest_of
from core.image_folder import MODE_CHANNELS, SUFFIXES, UNREADABLE, decode, files_fingerprint, image_mode, image_size
from core.machine import available_cores
from core.preprocessing import Preprocessing, Tensors, fit_images
from core.references import Reference, check_arguments, missing_path

LABEL = ".cls"
SURVEYED = 64
ZEROS_AT_ONCE = 1 << 16
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class ShardSamples:
    """Images read from shards when they are needed, fitted to the model one by one.

    Attributes:
        shards: The tar files.
        places: int64 (N, 3): shard, offset and length in bytes of each image.
        mode: Pillow mode that every image is converted to: L or RGB.
        num_workers: Worker processes to decode with.
    """

    shards: tuple[Path, ...]
    places: npt.NDArray[np.int64]
    mode: str
    num_workers: int

    def __len__(self) -> int:
        return len(self.places)

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensors:
        """Decode and fit the images at `indices`: (N, C, H, W) uint8."""
        return (torch.cat([fit_images(self._decode(index).unsqueeze(0), preprocessing) for index in indices]),)

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        """Return the different (height, width) among some images, from their headers; unreadable ones are left out."""
        found = set()
        for index in indices:
            try:
                with Image.open(io.BytesIO(self._read(index))) as image:
                    found.add((image.height, image.width))
            except UNREADABLE:
                continue
        return found

    def _decode(self, index: int) -> Tensor:
        try:
            contents = self._read(index)
        except OSError as error:
            shard = self.shards[self.places[index, 0]]
            raise UnreadableSampleError(f"cannot read sample {index} of the shard {shard}: {error}") from error
        return decode(io.BytesIO(contents), self.mode, name=lambda: self._name(index))

    def _read(self, index: int) -> bytes:
        shard, offset, length = self.places[index].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            contents: bytes = file.read(length)
            return contents

    def _name(self, index: int) -> str:
        """Find out what a sample is called; the index does not keep names."""
        shard, offset, _ = self.places[index].tolist()
        path = self.shards[shard]
        try:
            with tarfile.open(path, "r:") as tar:
                return next((f"{path}: {member.name}" for member in tar if member.offset_data == offset), str(path))
        except (tarfile.TarError, OSError):  # it is another file than the one that was indexed
            return f"{path}: sample {index}"


def load_shards(reference: Reference) -> Data:
    """Read where the samples of shards are; they are read from there when they are needed.

    Args:
        reference: Names the training shards; ``val`` and ``test`` others, ``labels`` a file of class names, one a
            line, or ``num_classes`` how many there are; ``mode`` and ``image_size`` as of an image folder.

    Raises:
        ToolError: A shard is missing or damaged, or its labels cannot be used.
    """
    check_arguments(reference, ("val", "test", "num_classes", "labels", "mode", "image_size"))
    arguments = reference.arguments
    mode = image_mode(reference) or "RGB"
    patterns = {"train": reference.name} | {name: str(arguments[name]) for name in ("val", "test") if name in arguments}
    shards = {name: shard_paths(pattern) for name, pattern in patterns.items()}
    indexed = {name: index_shards(paths) for name, paths in shards.items()}
    labels = _labels_of_shards(reference, max(int(targets.max()) for _, targets in indexed.values()) + 1)
    samples = {
        name: ShardSamples(shards[name], places, mode, available_cores()) for name, (places, _) in indexed.items()
    }
    splits = {}
    for name, (_, targets) in indexed.items():
        has_labels = bool((targets != UNLABELLED).all())
        checked = check_targets(targets, len(targets), labels, f"{reference.text}: {name}") if has_labels else targets
        splits[name] = whole_split(samples[name], torch.as_tensor(checked))
    sizes = samples["train"].sizes(spread(len(samples["train"]), SURVEYED).tolist())
    size = image_size(reference) or (sizes.pop() if len(sizes) == 1 else None)
    return Data(
        reference=reference.text,
        train=splits["train"],
        validation=splits.get("val"),
        test=splits.get("test"),
        labels=labels,
        sample_shape=None if size is None else (MODE_CHANNELS[mode], *size),
        kind="image",
        fingerprint=digest_of(
            [arguments, labels, {name: files_fingerprint(None, paths) for name, paths in shards.items()}]
        ),
    )


def _labels_of_shards(reference: Reference, num_seen: int) -> tuple[str, ...]:
    """Return the class names: from a file of one name a line, or numbers."""
    named = reference.arguments.get("labels")
    if named is not None:
        path = Path(str(named))
        if not path.is_file():
            raise missing_path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ToolError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
        return tuple(line.strip() for line in lines if line.strip())
    asked = reference.arguments.get("num_classes", num_seen)
    if not isinstance(asked, int) or not num_seen <= asked <= MOST_CLASSES:
        raise ToolError(f"{reference.text!r}: num_classes is {asked!r}, and the shards hold class {num_seen - 1}")
    return tuple(str(index) for index in range(asked))


def shard_paths(pattern: str) -> tuple[Path, ...]:
    """Return the files a pattern stands for: ``train-{0000..0015}.tar``, ``train-*.tar`` or one file.

    Raises:
        ToolError: There is none, or one of a range is missing.
    """
    if match := RANGE.search(pattern):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [Path(RANGE.sub(f"{number:0{len(first)}}", pattern, count=1)) for number in numbers]
    elif "*" in pattern:
        parent = Path(pattern).parent
        paths = sorted(parent.glob(Path(pattern).name))
    else:
        paths = [Path(pattern)]
    if not paths:
        raise ToolError(f"no shards match {pattern}")
    if missing := [path for path in paths if not path.is_file()]:
        raise ToolError(f"there is no shard {missing[0]}; {len(missing)} of the {len(paths)} of {pattern} are missing")
    return tuple(paths)


def index_shards(shards: Sequence[Path]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the images of shards and their classes.

    Returns:
        Places int64 (N, 3), as `ShardSamples` holds them, and classes int64 (N,), all `UNLABELLED` where none has one.

    Raises:
        ToolError: A shard is damaged, or a sample lacks its image, or some have a class and others do not.
    """
    places, targets = array("q"), array("q")  # of millions of samples lists would take several times as much
    unlabelled, first_unlabelled = 0, ""
    for number, path in enumerate(shards):
        for name, place, target in _samples(path):
            places.extend((number, *place))
            targets.append(UNLABELLED if target is None else target)
            if target is None:
                unlabelled, first_unlabelled = unlabelled + 1, first_unlabelled or f"{path}: {name}"
    if not places:
        raise ToolError(f"{shards[0]} holds no images; a sample is KEY.jpg (or .png, .webp ...) beside KEY{LABEL}")
    if 0 < unlabelled < len(targets):
        raise ToolError(
            f"{unlabelled} of {len(targets)} samples have no class, the first {first_unlabelled}; "
            f"give each a {LABEL}, or none"
        )
    return np.array(places, dtype=np.int64).reshape(-1, 3), np.array(targets, dtype=np.int64)


def _samples(path: Path) -> Iterator[tuple[str, tuple[int, int], int | None]]:
    """Yield key, place and class of each sample of a shard; its files stand together."""
    key, place, target, last = "", None, None, "its start"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                this = f"{folder}/{stem}" if folder else stem
                if this != key:
                    if key:
                        yield key, _require_image(place, key, path), target
                    key, place, target = this, None, None
                if f".{extension.lower()}" in SUFFIXES:
                    place = (member.offset_data, member.size)
                elif f".{extension}" == LABEL:
                    target = _class_index(tar, member, path)
                last = member.name
            _require_end(tar)
            if key:
                yield key, _require_image(place, key, path), target
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ToolError(f"cannot read the shard {path} after {last}: {error}; replace it") from error


def _require_end(tar: tarfile.TarFile) -> None:
    """Raise where no end of archive follows what was read: tarfile takes a damaged header, or none, for the end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    num_zeros = 0
    while chunk := tar.fileobj.read(ZEROS_AT_ONCE):
        if any(chunk):
            raise tarfile.ReadError(f"what stands at byte {tar.offset} is no header, and more follows")
        num_zeros += len(chunk)
    if num_zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"the file ends at byte {tar.offset + num_zeros} without an end-of-archive block")


def _require_image(place: tuple[int, int] | None, key: str, path: Path) -> tuple[int, int]:
    if place is None:
        raise ToolError(f"{path}: the sample {key!r} has no image; its files must stand together in the shard")
    return place


def _class_index(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = file.read().decode(errors="replace").strip() if file is not None else ""
    if not text.isdecimal() or len(text) > 18 or int(text) >= MOST_CLASSES:
        raise ToolError(f"{path}: {member.name} holds {text[:40]!r}; it is a class index, such as 3")
    return int(text)
