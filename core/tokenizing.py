"""How a text becomes a model's input: token numbers, made by the tokenizer that the model brought.

The tokenizer is the ``tokenizer.json`` that Hugging Face's libraries write: one JSON text, no code and no pickle. It
travels with the model, in its checkpoint and in its ONNX file, and is run by the ``tokenizers`` library alone.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from core.errors import ToolError

MISSING = "pip install -e '.[text]' in the clone of onnxpress"
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of a model -> what the tokenizers library calls it."""


class Tokenization(BaseModel, frozen=True):
    """Texts to int64 inputs, each (N, longest of the N texts).

    Attributes:
        tokenizer: The text of a ``tokenizer.json``.
        inputs: Which of `FIELDS` the model takes, in its order.
        max_length: Tokens that a text is cut to. It is the model's and not the data's: its positions end somewhere, and
            what it was trained to see is what it must be shown when it is scored, calibrated and deployed.
        padding_id: The token that shorter texts of a batch are filled up with.
        padding_type_id: That token's type.
        padding_side: Where it goes.
    """

    tokenizer: str
    inputs: tuple[str, ...]
    max_length: int
    padding_id: int
    padding_type_id: int = 0
    padding_side: Literal["left", "right"] = "right"

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of the tokenizer, which is too long to show."""
        return hashlib.sha256(self.tokenizer.encode()).hexdigest()


def tokenise(texts: Sequence[str], tokenization: Tokenization) -> tuple[Tensor, ...]:
    """Return the inputs for some texts, each int64 (N, length), padded to the longest of them.

    Args:
        texts: N, at least one.
        tokenization: Of the model.

    Raises:
        ToolError: The tokenizers library is not installed.
    """
    encoded = _opened(tokenization).encode_batch_fast(list(texts))
    return tuple(torch.tensor([getattr(one, FIELDS[name]) for one in encoded]) for name in tokenization.inputs)


@lru_cache(maxsize=8)
def _opened(tokenization: Tokenization) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ToolError(f"text is read with the tokenizers library, which is not installed; {MISSING}") from error
    try:
        tokenizer = Tokenizer.from_str(tokenization.tokenizer)
    except Exception as error:  # the library raises plain Exception
        raise ToolError(f"the model's tokenizer.json cannot be read: {error}") from error
    tokenizer.enable_truncation(tokenization.max_length)
    tokenizer.enable_padding(
        direction=tokenization.padding_side,
        pad_id=tokenization.padding_id,
        pad_type_id=tokenization.padding_type_id,
    )
    return tokenizer
