"""What a torch module returns, by name: one tensor, several, or a mapping of them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from core.answers import LOGITS
from core.errors import ToolError


def named_outputs(returned: object, whose: str) -> dict[str, Tensor]:
    """Return the tensors that a module returned, by name and in its order; the first are the logits.

    Those of a mapping (a Hugging Face ``ModelOutput`` is one) and of a named tuple keep their names, those of a plain
    sequence are called ``logits``, ``output_1`` and so on. A None, as for a loss that was not asked for, is left out.

    Args:
        returned: What the module returned.
        whose: The model's name, for an error.

    Raises:
        ToolError: There is something else than tensors in it, or nothing.
    """
    if isinstance(returned, Tensor):
        return {LOGITS: returned}
    if isinstance(returned, Mapping):
        found = {str(name): value for name, value in returned.items() if value is not None}
    elif isinstance(returned, (tuple, list)) and returned:
        found = {name: value for name, value in zip(_names(returned), returned, strict=True) if value is not None}
    else:
        raise ToolError(f"{whose} returns a {type(returned).__name__}; a model returns tensors, logits first")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise ToolError(f"{whose} returns a {type(value).__name__} as {name!r}; every output must be a tensor")
    if not found:
        raise ToolError(f"{whose} returns nothing; a model returns tensors, logits first")
    return found


def logits_in(returned: object) -> Tensor:
    """Return the first tensor among what a module returned: its logits, (N, num_classes)."""
    return next(iter(named_outputs(returned, "the model").values()))


def _names(returned: Sequence[object]) -> list[str]:
    fields = getattr(returned, "_fields", None)
    return list(fields) if fields else [LOGITS, *(f"output_{index}" for index in range(1, len(returned)))]
