"""How a user writes the shape of an input, and how long a made-up text may be."""

import pytest

from core.errors import ToolError
from core.input_spec import InputSpec, at_length, parse_input_spec

TOKENS = InputSpec(name="ids", shape=(12,), dtype="int64", symbols=("sequence",), below=50)
PICTURE = InputSpec(name="picture", shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3,8,8", InputSpec(name="", shape=(3, 8, 8))),
        ("int64:12", InputSpec(name="", shape=(12,), dtype="int64", below=2)),
        ("int64:12,4,below=50", InputSpec(name="", shape=(12, 4), dtype="int64", below=50)),
    ],
)
def test_a_shape_is_parsed(text: str, expected: InputSpec) -> None:
    assert parse_input_spec(text) == expected


@pytest.mark.parametrize(
    "text", ["", "3,x", "0,8", "int32:4", "int64:", "int64:4,below=0", "int64:4,below=x", "4,below=3"]
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_input_spec(text)


def test_axes_are_sizes_or_names() -> None:
    assert (TOKENS.axes, PICTURE.axes) == (("sequence",), (3, 8, 8))


def test_texts_get_a_length() -> None:
    assert [spec.shape for spec in at_length((TOKENS, PICTURE), 5, "net")] == [(5,), (3, 8, 8)]


@pytest.mark.parametrize(
    ("specs", "length", "said"), [((TOKENS,), 13, "net takes 1 to 12 tokens"), ((PICTURE,), 4, "net takes no seq")]
)
def test_a_length_that_cannot_be_is_refused(specs: tuple[InputSpec, ...], length: int, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        at_length(specs, length, "net")
