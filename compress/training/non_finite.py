"""A training run whose loss or weights are no longer finite stops here, and is told what to try."""

from torch import Tensor

from compress.training.step import Loop, TrainBatch
from core.errors import ToolError

POSITIONS_NAMED = 8


def require_finite_loss(
    losses: Tensor, last_step: int, of_steps: str, positions: list[Tensor], last: TrainBatch, loop: Loop
) -> None:
    """Raise where one of the latest losses is not finite, with its step and its batch.

    Args:
        losses: Of the latest steps, up to `last_step`.
        last_step: Counted from 1.
        of_steps: What they are steps of.
        positions: Of each one's batch, where its samples stand in the training split.
        last: The batch of the last one; the others are gone.
        loop: For advice.
    """
    if losses.isfinite().all():
        return
    index = int((~losses.isfinite()).nonzero()[0])
    step, batch = last_step - len(losses) + index + 1, positions[index].tolist()
    named = ", ".join(map(str, batch[:POSITIONS_NAMED])) + (" ..." if len(batch) > POSITIONS_NAMED else "")
    seen = f"its batch is the training samples {named} ({len(batch)} in all)"
    if step == last_step:
        least, most = (min(float(one.min()) for one in last.samples), max(float(one.max()) for one in last.samples))
        seen += f" with values in [{least:g}, {most:g}]"
    raise ToolError(
        f"the training loss became {float(losses[index])} at step {step} of {of_steps}; {seen}; {_calmer(loop)}"
    )


def require_finite_weights(loop: Loop, epoch: int) -> None:
    """Raise `ToolError` if weights that would be judged and kept are not finite: no loss has seen the last update."""
    buffers = dict(loop.judged.named_buffers())
    for name, tensor in loop.judged.state_dict().items():
        spoiled = tensor.isnan() if name in buffers else ~tensor.isfinite()  # a mask may well hold infinity
        if spoiled.any():
            raise ToolError(
                f"the weights became {float(tensor[spoiled][0])} in {name} at the last step of epoch {epoch}; "
                f"{_calmer(loop)}"
            )


def _calmer(loop: Loop) -> str:
    """Return what to try where training diverged."""
    advice = f"lower --lr (it is {loop.config.lr}) or raise the warm-up"
    return f"{advice}, or try --precision float32" if loop.execution.use_bfloat16 else advice
