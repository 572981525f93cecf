"""Which of several processes this is, as torchrun and accelerate launch tell theirs."""

import os


def num_processes() -> int:
    """Return how many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"
