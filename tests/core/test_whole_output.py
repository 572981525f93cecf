"""Every output is whole or absent, also when the disk is full or the work is interrupted."""

import errno
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import ToolError
from core.whole_output import refuse_overwrite, scratch_folder, whole_file, whole_folder

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from core.errors import ToolError
from core.whole_output import whole_file, whole_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with {writer}(Path(sys.argv[1])) as part:
        {target}.write_bytes(bytes(5000))
except ToolError as error:
    sys.stdout.write(str(error))
"""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_half(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def fail_to_write(writer: str, target: str, path: Path) -> str:
    source = FULL_DISK.format(writer=writer, target=target)
    done = subprocess.run([sys.executable, "-c", source, path], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_file_takes_its_place_and_nothing_else_remains(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.onnx") as part:
        part.write_text("new")
        assert not (tmp_path / "a.onnx").exists()
        assert part.suffix == ".onnx"
    assert (tmp_path / "a.onnx").read_text() == "new"
    assert names(tmp_path) == ["a.onnx"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x" / "y" / "a.onnx") as part:
        part.write_text("new")
    with whole_folder(tmp_path / "p" / "q" / "model") as part:
        (part / "a").write_text("new")
    assert (tmp_path / "x" / "y" / "a.onnx").read_text() == "new"
    assert (tmp_path / "p" / "q" / "model" / "a").read_text() == "new"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, ToolError])
def test_a_file_keeps_its_old_contents_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.onnx") as part:
        write_half(part, error)
    assert (tmp_path / "a.onnx").read_text() == "old"
    assert names(tmp_path) == ["a.onnx"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, ToolError])
def test_a_folder_keeps_its_old_contents_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    with pytest.raises(error), whole_folder(tmp_path / "model") as part:
        write_half(part / "a", error)
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert names(tmp_path) == ["model", "model/a"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").write_text("old")
    with whole_folder(tmp_path / "model") as part:
        (part / "a").write_text("new")
    assert names(tmp_path) == ["model", "model/a"]


def test_the_old_folder_stays_when_its_successor_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    with pytest.raises(ToolError, match="cannot write"), whole_folder(tmp_path / "model") as part:
        part.rmdir()  # so that the last rename fails
    assert names(tmp_path) == ["model", "model/a"]


def test_a_folder_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with whole_folder(tmp_path / "model") as part:
        (part / "a").write_text("new")
    assert names(tmp_path) == ["model", "model/a"]


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "a.onnx" / "kept").write_text("old")
    with pytest.raises(ToolError, match=r"cannot write .*a\.onnx"), whole_file(tmp_path / "a.onnx") as part:
        part.write_text("new")
    assert names(tmp_path) == ["a.onnx", "a.onnx/kept"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    code = (
        "import os\nfrom pathlib import Path\nfrom core.whole_output import whole_file, whole_folder\n"
        "with whole_file(Path('a[1].onnx')) as part, whole_folder(Path('model')) as folder:\n"
        "    part.touch(), (folder / 'half').touch(), os._exit(9)\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
        assert len(names(tmp_path)) == 3
    with whole_folder(tmp_path / "model") as part:
        (part / "a").write_text("new")
    with whole_file(tmp_path / "a[1].onnx") as part:
        part.write_text("new")
    assert names(tmp_path) == ["a[1].onnx", "model", "model/a"]


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
def test_two_processes_may_write_to_one_place(tmp_path: Path, writer: Callable[[Path], Any]) -> None:
    """The other begins and ends while this one writes, and neither touches what the other has not finished."""
    target = "part" if writer is whole_file else "part / 'a'"
    code = (
        f"from pathlib import Path\nfrom core.whole_output import {writer.__name__}\n"
        f"with {writer.__name__}(Path('out')) as part:\n    ({target}).write_text('other')\n"
    )
    with writer(tmp_path / "out") as part:
        mine = part if writer is whole_file else part / "a"
        mine.write_text("mine")
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        found = tmp_path / "out" if writer is whole_file else tmp_path / "out" / "a"
        assert found.read_text() == "other"
    assert found.read_text() == "mine"
    assert [one for one in names(tmp_path) if one.startswith(".")] == []


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    for contents in ("first", "second", "third"):
        with whole_folder(tmp_path / "model") as part:
            (part / "a").write_text(contents)
        assert (tmp_path / "disk" / "a").read_text() == contents
    assert names(tmp_path) == ["disk", "disk/a", "model"]


def test_an_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for writer in (whole_file, whole_folder):
        with pytest.raises(ToolError, match=r"a exists already; pass --force"), writer(tmp_path / "a", force=False):
            pytest.fail("the block ran")
    assert (tmp_path / "a").read_text() == "old"


def test_force_and_absence_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    refuse_overwrite(tmp_path / "a", force=True)
    refuse_overwrite(tmp_path / "b", force=False)


def test_an_output_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for writer in (whole_file, whole_folder):
        with pytest.raises(ToolError, match=r"cannot write .*a/b: .* MiB free on") as caught, writer(tmp_path / "a/b"):
            pytest.fail("the block ran")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc, where nobody may write")
def test_what_cannot_be_written_fails_before_the_work() -> None:
    with pytest.raises(ToolError, match=r"cannot write /proc/model\.onnx"), whole_file(Path("/proc/model.onnx")):
        pytest.fail("the block ran")


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
@pytest.mark.parametrize("path", [".", "/"])
def test_an_output_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: type, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolError), writer(Path(path)):
        pytest.fail("the block ran")


def test_a_scratch_folder_is_gone_afterwards() -> None:
    with scratch_folder() as scratch:
        (scratch / "a").write_text("new")
    assert not scratch.exists()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, None], ids=["no-room", "a-file-of-it"])
def test_what_a_scratch_folder_refuses_says_where_it_is_chosen(error: OSError | None) -> None:
    said = r"cannot write temporary files: No .*; make room, or name another folder in TMPDIR"
    with pytest.raises(ToolError, match=said), scratch_folder() as scratch:
        raise error or FileNotFoundError(errno.ENOENT, "No such file or directory", str(scratch / "a"))


def test_what_is_refused_elsewhere_is_not_of_the_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder():
        (tmp_path / "data").read_bytes()


def test_where_there_is_no_scratch_folder_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    said = r"cannot write temporary files: .* or name another folder in TMPDIR"
    with pytest.raises(ToolError, match=said), scratch_folder():
        pytest.fail("the block ran")


@pytest.mark.parametrize(
    ("writer", "target"),
    [pytest.param("whole_file", "part", id="file"), pytest.param("whole_folder", "(part / 'a')", id="folder")],
)
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, writer: str, target: str) -> None:
    said = fail_to_write(writer, target, tmp_path / "out")
    assert said.startswith(f"cannot write {tmp_path}/out: File too large (")
    assert "MiB free on" in said
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    assert "cannot write" in fail_to_write("whole_folder", "(part / 'a')", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out", "out/a"]
