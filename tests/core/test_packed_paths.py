"""Many paths in little memory, which worker processes share with their parent."""

import gc
import os
import sys
from pathlib import Path

import pytest

from core.packed_paths import PackedPaths, packed


def test_paths_come_back_in_their_order() -> None:
    paths = [Path("a/b.png"), Path("/x/Kätzchen.jpg"), Path("c"), Path("a/b.png")]
    found = packed(paths)
    assert [found[index] for index in range(len(found))] == paths


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_names_need_not_be_text() -> None:
    path = Path(os.fsdecode(b"caf\xe9.png"))
    assert packed([path])[0] == path


def test_none_are_none() -> None:
    assert len(packed([])) == 0


def objects_of(paths: PackedPaths) -> int:
    """How many objects they hold that a process would write to by counting who refers to them."""
    return len(gc.get_referents(paths))


def test_a_thousand_paths_are_no_more_objects_than_one() -> None:
    many = packed([Path(f"train/cat/{index:06}.png") for index in range(1000)])
    assert objects_of(many) == objects_of(packed([Path("a")]))
    assert len(many.encoded) + many.ends.nbytes < 1000 * (20 + 8) + 9
