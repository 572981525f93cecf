"""How many points of accuracy a file loses, on how many samples."""

from collections.abc import Callable
from functools import partial

from core.data import Data
from core.onnx_model import OnnxModel
from core.predict import in_whole_batches, num_right, predict

SCORED = 2000  # samples of the validation split
SCORED_AT_ONCE = 16  # few, since the simulation of saturation holds a tensor for every pair of weights


def num_scored(model: OnnxModel, data: Data) -> int:
    """Return how many samples of the validation split files of a model are scored on.

    Raises:
        ToolError: The split holds fewer than the model takes at once.
    """
    return in_whole_batches(model, data, "validation", SCORED)


def drop_against(model: OnnxModel, data: Data, provider: str) -> Callable[[OnnxModel], float]:
    """Return the function that says how many points of accuracy a file loses on the validation split.

    Without labels it is points of agreement.

    Raises:
        ToolError: As `num_scored`.
    """
    score = partial(
        predict,
        data=data,
        split="validation",
        batch_size=SCORED_AT_ONCE,
        limit=num_scored(model, data),
        provider=provider,
    )
    logits, targets = score(model)
    if not data.split("validation").is_labelled:
        targets = logits.argmax(1)
    before = num_right(logits, targets)

    def drop_of(candidate: OnnxModel) -> float:
        return 100 * (before - num_right(score(candidate)[0], targets)) / len(targets)

    return drop_of
