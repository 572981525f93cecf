"""Every output is whole or absent: written beside its place, then moved onto it."""

import errno
import glob
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from core.errors import ToolError

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # its processes' numbers are no other machine's
NO_ROOM = (errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else []))  # Windows has no quota


def refuse_overwrite(path: Path, *, force: bool) -> None:
    """Raise `ToolError` when something stands at `path` and `force` does not allow replacing it."""
    if path.exists() and not force:
        raise ToolError(f"{path} exists already; pass --force to replace it, or choose another --output")


@contextmanager
def whole_file(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; move it onto `path` when the block ends well, remove it otherwise.

    Raises:
        ToolError: `path` exists and `force` is false, or the file system refuses (full, read-only, not permitted).
    """
    refuse_overwrite(path, force=force)
    require_writable(path)
    part = _part_of(path)
    with _explained(path):
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_files(path: Path, suffix: str, *, force: bool = True) -> Iterator[Path]:
    """Like `whole_file`, for a file that may have a second beside it, whose name is the file's and `suffix`.

    The path to write to lies in a folder of its own, under its final name, so that the first file can name the second.
    The first never stands beside a second that is not its own.
    """
    beside = path.with_name(path.name + suffix) if path.name else path
    for one in (path, beside):
        refuse_overwrite(one, force=force)
    require_writable(path)
    folder = _part_of(path)
    part, part_beside = folder / path.name, folder / beside.name
    with _explained(path), _made(folder):
        yield part
        if part_beside.exists() or beside.exists():
            path.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
        if part_beside.exists():
            part_beside.replace(beside)
        part.replace(path)


@contextmanager
def whole_folder(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Like `whole_file`, for a folder: what stood at `path` stays until its successor is complete.

    Where `path` is a link, it stays one, and what it leads to is replaced.
    """
    refuse_overwrite(path, force=force)
    require_name(path)
    place = path.resolve() if path.is_symlink() else path
    part, old = _part_of(place), place.with_name(f".{place.name}.old")
    with _explained(path), _made(part):
        _sweep(place)
        _put_back(old, place)  # an earlier run may have been killed between the two renames below
        yield part
        try:
            _remove(old)
            if place.exists():
                place.rename(old)
            part.rename(place)
        finally:
            _put_back(old, place)
        _remove(old)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder that is gone afterwards.

    Raises:
        ToolError: There is no place for it, or no room in it; what the file system refuses elsewhere stays as it is.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="onnxpress-")
    except OSError as error:
        raise _no_scratch(error) from error
    with made as scratch:
        try:
            yield Path(scratch)
        except OSError as error:
            if not _is_of(Path(scratch), error):
                raise
            raise _no_scratch(error) from error


def _is_of(folder: Path, error: OSError) -> bool:
    """Tell whether an error is of what a folder holds: of a full disk, writing says no name."""
    if isinstance(error.filename, str | bytes):
        return Path(os.fsdecode(error.filename)).is_relative_to(folder)
    return error.errno in NO_ROOM


def _no_scratch(error: OSError) -> ToolError:
    reason = error.strerror or error
    return ToolError(f"cannot write temporary files: {reason}; make room, or name another folder in TMPDIR")


def require_writable(path: Path) -> None:
    """Raise `ToolError` where no file can be written at a path: to be asked before the work that is to fill it."""
    require_name(path)
    part = _part_of(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        part.touch()
        part.unlink(missing_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))


def _part_of(path: Path) -> Path:
    """Return what this process writes to, beside a path: another that writes to the same path has its own."""
    return path.with_name(f".{path.stem}.{HOST}-{os.getpid()}.part{path.suffix}")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder for the block, and remove what is left of it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left of a path."""
    for part in path.parent.glob(f".{glob.escape(path.stem)}.{HOST}-*.part{glob.escape(path.suffix)}"):
        pid = part.name.removeprefix(f".{path.stem}.{HOST}-").removesuffix(f".part{path.suffix}")
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            _remove(part)


def require_name(path: Path) -> None:
    """Raise `ToolError` where a path names no file or folder that could be replaced."""
    if not path.name:
        raise ToolError(f"{str(path)!r} cannot be replaced; name a file or folder inside it")


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        beside = error.filename and path.parent in (Path(error.filename).parent, Path(error.filename).parent.parent)
        about = f" ({error.filename})" if error.filename and not beside else ""
        raise ToolError(f"cannot write {path}: {error.strerror or error}{about}{_free_space(path)}") from error


def _free_space(path: Path) -> str:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB free on {os.fspath(existing)})"
