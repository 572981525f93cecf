"""Forms of an int8 file: which ONNX Runtime has fast kernels for, and which are worth trying on a machine."""

import platform
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from core.errors import GateMissedError
from core.machine import int8_instructions
from core.sessions import provider_name

ElementType = Literal["uint8", "int8"]
FileForm = Literal["qdq", "qoperator", "dynamic"]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators that multiply, and so gain the most


class Layout(BaseModel, frozen=True):
    """How a quantized file is written, and why.

    Attributes:
        activation_type: Element type of activations.
        weight_type: Element type of weights.
        reduce_range: Whether weights use 7 of 8 bits.
        per_channel: Whether each output channel of a weight has a scale.
        form: ``qdq``, pairs of QuantizeLinear and DequantizeLinear around float operators, ``qoperator``, or
            ``dynamic``, in which activations are rounded by the range they have when the file runs.
        only: Operator types that are quantized; all that can be where empty.
        reason: Why this was taken or is worth trying.
    """

    activation_type: ElementType
    weight_type: ElementType
    reduce_range: bool
    per_channel: bool = True
    form: FileForm = "qdq"
    only: tuple[str, ...] = ()
    reason: str

    @property
    def title(self) -> str:
        """Describe the layout in a few words."""
        words = [
            f"{self.activation_type}/{self.weight_type}",
            self.form,
            "per channel" if self.per_channel else "per tensor",
        ]
        return ", ".join(words + ["7-bit weights"] * self.reduce_range + ["products only"] * bool(self.only))


def require_int8_kernels(provider: str) -> None:
    """Check that int8 may be worth trying on a provider.

    Raises:
        GateMissedError: ONNX Runtime has no fast static int8 there.
    """
    if provider_name(provider) == "CUDAExecutionProvider":
        why = "ONNX Runtime's CUDA provider has no int8 convolution or matrix kernels"
        raise GateMissedError(
            f"no int8 form is faster than float32 on CUDA: {why}; keep float32, or try float16",
            [{"form": "any static int8", "speedup": None, "drop": None, "verdict": f"not tried: {why}"}],
        )


def fast_layout(reduce_range: bool | None = None) -> Layout:
    """Choose the layout that is fast on this processor, without measuring.

    Args:
        reduce_range: Use 7 of 8 bits for weights; None asks this processor.
    """
    layout = _fast_here()
    if reduce_range is None or reduce_range == layout.reduce_range:
        return layout
    asked = "7-bit weights as asked for" if reduce_range else "8-bit weights as asked for"
    return layout.model_copy(update={"reduce_range": reduce_range, "reason": f"{layout.reason}; {asked}"})


def layouts_worth_trying(
    provider: str, reduce_range: bool | None = None, operators: Sequence[str] = ()
) -> tuple[Layout, ...]:
    """Return the layouts to measure; the first is the one that is taken where nothing is measured.

    Args:
        provider: Where the file will run.
        reduce_range: Use 7 of 8 bits for weights; None asks this processor.
        operators: Operator types of the graph's nodes; the dynamic form is worth trying where matrix products and
            recurrences outnumber convolutions.

    Raises:
        GateMissedError: ONNX Runtime has no fast static int8 there.
    """
    require_int8_kernels(provider)
    first = fast_layout(reduce_range)

    def other(reason: str, **changes: object) -> Layout:
        return first.model_copy(update={"reason": f"measured: {reason}", **changes})

    matrices = sum(operator in ("MatMul", "Gemm", "LSTM", "Attention") for operator in operators)
    dynamic = other("ranges found when it runs", form="dynamic", activation_type="uint8", weight_type="int8")
    return (
        first,
        other("fewer scales to apply", per_channel=False),
        other("operators that are int8 themselves", form="qoperator"),
        other("what does not multiply stays in float32", only=PRODUCTS),
        other("operators that are int8 themselves, with fewer scales", form="qoperator", per_channel=False),
        *[dynamic] * (matrices > operators.count("Conv")),
    )


def layouts_ruled_out(worth_trying: Sequence[Layout]) -> tuple[Layout, ...]:
    """Return the layouts that are not worth measuring here, and why, beside those of `layouts_worth_trying`."""
    first = worth_trying[0]

    def other(reason: str, **changes: object) -> Layout:
        return first.model_copy(update={"reason": reason, **changes})

    if is_arm():
        types = [other(first.reason, activation_type="uint8")]
    else:
        unused = "VNNI" if int8_instructions() else "the multiply of bytes"
        types = [
            other("x86 multiplies uint8 by int8: half of its convolutions have no kernel", activation_type="int8"),
            other(f"ONNX Runtime's x86 kernel of uint8 weights leaves {unused} unused", weight_type="uint8"),
        ]
    dynamic = other("most of its products are convolutions, of which that form is slow", form="dynamic")
    return (
        *types,
        other(_why_not_bits(first), reduce_range=not first.reduce_range),
        *[dynamic] * all(layout.form != "dynamic" for layout in worth_trying),
    )


def saturates(weight_type: str) -> bool:
    """Tell whether this processor's multiply of uint8 by int8 saturates: x86 without VNNI."""
    return not is_arm() and weight_type == "int8" and not int8_instructions()


def is_arm() -> bool:
    """Tell whether this is an ARM processor."""
    return platform.machine().lower() in ("arm64", "aarch64")


def _why_not_bits(taken: Layout) -> str:
    """Return why weights have 7 bits in a layout and not 8, or 8 and not 7."""
    if taken.reduce_range != _fast_here().reduce_range:
        return "the other number of bits was asked for"
    if taken.reduce_range:
        return "this processor's multiply saturates with 8 bits"
    return "this processor's multiply does not saturate: they are no faster"


def _fast_here() -> Layout:
    instructions = int8_instructions()
    if is_arm():
        return Layout(
            activation_type="int8",
            weight_type="int8",
            reduce_range=False,
            reason=f"ARM kernels multiply int8 by int8 ({', '.join(instructions) or 'no dot product'})",
        )
    if instructions:
        return Layout(
            activation_type="uint8",
            weight_type="int8",
            reduce_range=False,
            reason=f"x86 multiplies uint8 by int8 ({', '.join(instructions)}); int8 by int8 has no kernel",
        )
    return Layout(
        activation_type="uint8",
        weight_type="int8",
        reduce_range=True,
        reason="this x86 processor has no VNNI: its uint8 by int8 multiply saturates, 7-bit weights do not",
    )
