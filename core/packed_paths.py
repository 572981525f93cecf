"""Many paths in two objects: a million `Path` objects are copied into every worker process that looks at them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PackedPaths:
    """Paths by their number, made anew when they are asked for.

    Attributes:
        encoded: All paths, one after another, as the file system has them.
        ends: int64 (N + 1,): where each ends, after a 0.
    """

    encoded: bytes
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Path:
        start, end = self.ends[index : index + 2].tolist()
        return Path(os.fsdecode(self.encoded[start:end]))


def packed(paths: Sequence[Path]) -> PackedPaths:
    """Pack paths, in their order."""
    encoded = [os.fsencode(path) for path in paths]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return PackedPaths(b"".join(encoded), ends)
