"""Ctrl-C that is obeyed, though a library's code may swallow the exception it raises or turn it into one of its own."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 1.0


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at Ctrl-C, and again every second while the block goes on all the same.

    Yields:
        A list that is empty until Ctrl-C: what is raised after it is no error.
    """
    came: list[int] = []
    has_timer = hasattr(signal, "setitimer")  # not on Windows

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if has_timer:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
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
