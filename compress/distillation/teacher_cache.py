"""Teachers' logits on disk, so that they need not run at every step.

One file for each augmentation of the samples, and for each precision that torch models answered in: a run may choose
its own only after the folder was opened.

A row is written before it is marked as known, so that a run killed in between only computes it again.
"""

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from compress.training.accelerator import start_accelerator
from core.errors import ToolError
from core.whole_output import whole_file

logger = logging.getLogger(__name__)

DESCRIPTION = "teacher-cache.json"
CHUNK_BYTES = 1 << 20
CANNOT_RESERVE = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # as some network file systems say
Description = Mapping[str, Any]
"""What the logits depend on, by what a user would call it: data, teachers, augmentation ..."""
Files = tuple["np.memmap[Any, Any]", "np.memmap[Any, Any]"]
"""Logits (num_samples, num_outputs), and 1 for each sample whose logits are known."""


class TeacherCache:
    """A folder of logits, (num_samples, num_outputs) float32 for each variant and precision.

    Raises:
        ToolError: The folder holds logits of other teachers, data or augmentation, or cannot be read.
    """

    def __init__(
        self, folder: Path, description: Description, *, num_samples: int, num_outputs: int, limit_bytes: int
    ) -> None:
        self._folder = folder
        self._shape = (num_samples, num_outputs)
        self._limit_bytes = limit_bytes
        self._open: dict[str, Files | None] = {}
        with start_accelerator().local_main_process_first():  # each machine may have a disk of its own
            _check(folder, description)

    def read(self, variant: int, positions: Tensor, *, in_bfloat16: bool = False) -> tuple[Tensor, Tensor]:
        """Return the logits float32 (N, num_outputs) of samples, and which of them are known, bool (N,)."""
        files = self._files(variant, in_bfloat16)
        if files is None:
            return torch.zeros(len(positions), self._shape[1]), torch.zeros(len(positions), dtype=torch.bool)
        logits, known = files
        rows = positions.numpy()
        return torch.from_numpy(logits[rows]), torch.from_numpy(known[rows] == 1)

    def write(self, variant: int, positions: Tensor, logits: Tensor, *, in_bfloat16: bool = False) -> None:
        """Keep the logits (N, num_outputs) of samples, unless the folder is full."""
        files = self._files(variant, in_bfloat16)
        if files is None:
            return
        rows = positions.numpy()
        files[0][rows] = logits.numpy()
        files[1][rows] = 1

    def _files(self, variant: int, in_bfloat16: bool) -> Files | None:
        """Return a variant's files; None where they are not there and would pass the limit."""
        name = f"variant-{variant:05}{'-bfloat16' if in_bfloat16 else ''}"
        if name not in self._open:
            with start_accelerator().local_main_process_first():  # one process makes them, at the same step of all
                self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> Files | None:
        paths = [self._folder / f"{name}.{kind}" for kind in ("logits", "known")]
        if not all(path.exists() for path in paths) and not self._has_room():
            return None
        if not paths[0].exists() or paths[0].stat().st_size != 4 * self._shape[0] * self._shape[1]:
            paths[1].unlink(missing_ok=True)  # what is said to be known is not there, as of a copy that was cut off
        return (
            _memmap(paths[0], np.dtype("<f4"), self._shape),
            _memmap(paths[1], np.dtype(np.uint8), self._shape[:1]),
        )

    def _has_room(self) -> bool:
        used = sum(path.stat().st_size for path in self._folder.glob("variant-*"))
        needed = self._shape[0] * (4 * self._shape[1] + 1)
        if used + needed <= self._limit_bytes:
            return True
        if None not in self._open.values():
            logger.warning(
                "the teacher cache %s is full: it holds %.3g GB, one more augmentation takes %.3g, teacher_cache_gb "
                "is %.3g; the teacher runs for what it does not hold",
                self._folder,
                used / 1e9,
                needed / 1e9,
                self._limit_bytes / 1e9,
            )
        return False


def _check(folder: Path, description: Description) -> None:
    """Note in a new folder what it is for; refuse one that is for something else."""
    path = folder / DESCRIPTION
    wanted = json.loads(json.dumps(description))
    if not path.exists():
        if folder.is_file() or (folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir())):
            raise ToolError(f"{folder} is no teacher cache and not empty; name another folder")
        with whole_file(path) as part:
            part.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ToolError(f"cannot read the teacher cache {folder}: {error}; remove it") from error
    differing = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
    if differing:
        raise ToolError(
            f"the teacher cache {folder} was made with another {differing[0]} ({_brief(found, differing[0])}, now "
            f"{wanted[differing[0]]}); name another folder or remove it"
        )


def _brief(found: Any, name: str) -> Any:
    return found.get(name, "none") if isinstance(found, dict) else "damaged"


def _memmap(path: Path, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    size = int(dtype.itemsize * np.prod(shape))
    try:
        if not path.exists() or path.stat().st_size != size:
            path.touch()
            with path.open("r+b") as file:  # appending would keep some systems from reserving
                _reserve(file, size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
    except OSError as error:
        raise ToolError(f"cannot write the teacher cache {path.parent}: {error.strerror}") from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its size: a full disk must fail here, and not on a write to memory. What it holds already stays."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise
    for start in range(file.seek(0, os.SEEK_END), size, CHUNK_BYTES):  # truncating would reserve nothing
        file.write(bytes(min(CHUNK_BYTES, size - start)))
