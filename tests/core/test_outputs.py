"""What a module may return, and what its outputs are called."""

from collections import namedtuple

import pytest
import torch

from core.errors import ToolError
from core.outputs import logits_in, named_outputs

A, B = torch.zeros(2, 3), torch.ones(2)
Pair = namedtuple("Pair", ["scores", "box"])


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        pytest.param(A, ["logits"], id="tensor"),
        pytest.param((A, B), ["logits", "output_1"], id="tuple"),
        pytest.param([A, B], ["logits", "output_1"], id="list"),
        pytest.param({"scores": A, "loss": None, "box": B}, ["scores", "box"], id="dict"),
        pytest.param(Pair(A, B), ["scores", "box"], id="named-tuple"),
    ],
)
def test_outputs_have_names_and_the_first_are_the_logits(returned: object, names: list[str]) -> None:
    assert list(named_outputs(returned, "net")) == names
    assert logits_in(returned) is A


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "net returns a NoneType; a model returns tensors, logits first"),
        ((), "net returns a tuple; a model"),
        ({"loss": None}, "net returns nothing; a model"),
        ((A, (A, B)), "net returns a tuple as 'output_1'; every output must be a tensor"),
    ],
)
def test_what_is_no_tensor_is_named(returned: object, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        named_outputs(returned, "net")
