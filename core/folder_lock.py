"""A folder that one process works in at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ToolError
from core.whole_output import require_writable

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; a killed one keeps nobody out.

    On Windows, and on file systems that have no locks, nobody is kept out.

    Raises:
        ToolError: Another process works there, or the folder cannot be written.
    """
    require_writable(folder / LOCK)
    try:
        file = (folder / LOCK).open("wb")
    except OSError as error:  # another user's, for one
        raise ToolError(f"cannot write {folder / LOCK}: {error.strerror}; choose another --output") from error
    with file:
        if not _lock(file.fileno()):
            raise ToolError(f"another process works in {folder}; wait until it is done, or choose another --output")
        yield


def _lock(descriptor: int) -> bool:
    """Take a lock that is this process's alone, which worker processes do not inherit; tell whether that is so."""
    try:
        import fcntl  # which Windows does not have
    except ImportError:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
