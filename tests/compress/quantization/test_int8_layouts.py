"""The forms worth trying on a processor, and why the others are not."""

import pytest

from compress.quantization import int8_layouts
from compress.quantization.int8_layouts import PRODUCTS, layouts_ruled_out, layouts_worth_trying


@pytest.mark.parametrize(
    ("instructions", "reduce_range", "bits"),
    [
        (("avx512_vnni",), None, "this processor's multiply does not saturate"),
        ((), None, "this processor's multiply saturates with 8 bits"),
        (("avx512_vnni",), True, "the other number of bits was asked for"),
    ],
)
def test_what_is_not_measured_is_told_with_why(
    monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], reduce_range: bool | None, bits: str
) -> None:
    monkeypatch.setattr(int8_layouts, "is_arm", lambda: False)
    monkeypatch.setattr(int8_layouts, "int8_instructions", lambda: instructions)
    worth = layouts_worth_trying("cpu", reduce_range)
    out = layouts_ruled_out(worth)
    assert not {one.title for one in worth} & {one.title for one in out}
    types = {(one.activation_type, one.weight_type): one.reason for one in out}
    assert "half of its convolutions have no kernel" in types["int8", "int8"]
    assert "uint8 weights" in types["uint8", "uint8"]
    (told,) = [one.reason for one in out if one.reduce_range != worth[0].reduce_range]
    assert told.startswith(bits)
    assert out[-1].form == "dynamic"
    assert all(one.form != "dynamic" for one in layouts_ruled_out(layouts_worth_trying("cpu", None, ["MatMul"])))


def test_arm_files_of_uint8_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_layouts, "is_arm", lambda: True)
    assert layouts_ruled_out(layouts_worth_trying("cpu"))[0].title.startswith("uint8/int8")


def test_products_multiply() -> None:
    assert {"Conv", "MatMul", "Gemm"} <= set(PRODUCTS)
