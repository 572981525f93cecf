"""Ctrl-C that is obeyed, though a library's code may swallow the exception it raises or turn it into one of its own."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 1.0
TIDYING_S = 10.0


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at Ctrl-C, and again every second while the block goes on all the same.

    What tidies up behind the exception is left alone for ten seconds, unless Ctrl-C comes again.

    Yields:
        A list that is empty until Ctrl-C: what is raised after it is no error.
    """
    came: list[int] = []
    raised_at = 0.0
    has_timer = hasattr(signal, "setitimer")  # not on Windows

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        if has_timer:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        if number != signal.SIGINT and _is_tidying_up() and time.monotonic() < raised_at + TIDYING_S:
            return
        came.append(number)
        raised_at = time.monotonic()
        signal.default_int_handler(number, frame)

    numbers = (signal.SIGINT, signal.SIGALRM) if has_timer else (signal.SIGINT,)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield came
    finally:
        if has_timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_tidying_up() -> bool:
    """Tell whether code runs that handles the interruption, or an error that came of it: a ``finally``, for one."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
