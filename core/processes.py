"""Which of several processes this is, as torchrun and accelerate launch tell theirs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def num_processes() -> int:
    """Return how many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return which of this machine's processes this is, from 0: its GPU has the same number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def leave_processes() -> None:
    """End the exchange with the other processes, whose threads may abort a process that exits with them."""
    if "RANK" not in os.environ:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def first_on_this_machine() -> Iterator[None]:
    """Let one process of each machine go first, and its others after it: what it downloads, they find."""
    if num_processes() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    with PartialState(cpu=not torch.accelerator.is_available()).local_main_process_first():
        yield
