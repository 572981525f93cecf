"""How the learning rate changes over a run."""

from typing import Any

from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler

from compress.training.config import TrainConfig

STEP_DECAY = 0.1
DEFAULT_WARMUP_RATIO = 0.1  # of the run
POWERS = {"linear": 1.0, "polynomial": 2.0}


def schedule_of(optimizer: Any, config: TrainConfig, steps_an_epoch: int) -> Any:
    """Return timm's scheduler for a config; its ``step_update`` takes the number of steps done."""
    num_steps = config.epochs * steps_an_epoch
    asked = config.warmup_epochs
    warmup_epochs = min(1.0, DEFAULT_WARMUP_RATIO * config.epochs) if asked is None else asked
    warmup = {"warmup_t": min(round(warmup_epochs * steps_an_epoch), num_steps - 1), "t_in_epochs": False}
    falling = {"t_initial": num_steps - warmup["warmup_t"], "warmup_prefix": True, **warmup}  # from the highest rate
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, **falling)
    if config.schedule == "step":
        return StepLRScheduler(
            optimizer, decay_t=max(num_steps / 3, 1), decay_rate=STEP_DECAY, warmup_prefix=False, **warmup
        )
    if config.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=num_steps + 1, decay_rate=1.0, **warmup)
    return PolyLRScheduler(optimizer, power=POWERS[config.schedule], **falling)
