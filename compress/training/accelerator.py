"""How this process trains: alone, or beside others that torchrun or accelerate launch started."""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration


def start_accelerator() -> Accelerator:
    """Return the accelerator of this process; a batch is shared out among the processes, so that its size is kept.

    Precision and compilation are measured here, whatever `accelerate config` or `accelerate launch` says of them.
    """
    loading = DataLoaderConfiguration(split_batches=True, non_blocking=True)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        dataloader_config=loading,
        mixed_precision="no",
        dynamo_backend="no",
    )
