"""What may be asked of quantization."""

from dataclasses import dataclass
from typing import Any, Literal

from compress.quantization.calibration import Method
from compress.quantization.int8_layouts import ElementType, FileForm, Layout, fast_layout, saturates
from core.errors import require

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
Precision = Literal["int8", "int4", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """How to quantize.

    What is fast is measured where neither types, scales nor form of int8 are given.

    Attributes:
        provider: Where the file will run.
        precision: ``int8``; ``int4``, matrices of four bits a weight; ``float16``, but for what would overflow; or
            ``bfloat16``.
        activation_type: ``uint8`` or ``int8``; None takes what is fast there, and uint8 beside uint8 weights or in the
            dynamic form.
        weight_type: ``uint8`` or ``int8``; None takes what is fast there.
        reduce_range: Use 7 of 8 bits for weights, which makes the file as right on x86 processors without VNNI, whose
            int8 multiply saturates; None asks this one.
        per_channel: One scale per output channel of a weight, or one per tensor; None takes what is fast.
        form: ``qdq``, ``qoperator`` or ``dynamic``; None takes what is fast.
        calibration_method: How a range follows from what was seen: ``minmax``, ``percentile``, ``entropy`` or ``mse``;
            None takes minmax and, where neither types, scales nor form are given, tries the others if that loses too
            much.
        calibration_samples: Training samples to look at.
        nodes_to_exclude: Names of graph nodes to leave in float.
        max_drop: Points of accuracy that may be lost, of agreement where the data has no labels.
    """

    provider: str = "cpu"
    precision: Precision = "int8"
    activation_type: ElementType | None = None
    weight_type: ElementType | None = None
    reduce_range: bool | None = None
    per_channel: bool | None = None
    form: FileForm | None = None
    calibration_method: Method | None = None
    calibration_samples: int = 512
    nodes_to_exclude: tuple[str, ...] = ()
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.calibration_samples >= 1, f"calibration_samples is {self.calibration_samples}; it must be at least 1"
        )
        require(self.max_drop >= 0, f"max_drop is {self.max_drop}; it cannot be negative")
        require(
            (self.activation_type, self.weight_type) != ("int8", "uint8"),
            "activation_type int8 with weight_type uint8 has no kernels in ONNX Runtime; give uint8 and int8, or one "
            "type for both",
        )
        require(
            (self.form, self.activation_type) != ("dynamic", "int8"),
            "form dynamic rounds activations to uint8: ONNX Runtime writes no other; drop activation_type",
        )
        require(
            (self.form, self.weight_type) != ("qoperator", "uint8") or self.per_channel is False,
            "form qoperator with weight_type uint8 takes one scale per tensor: per channel, ONNX Runtime's quantizer "
            "writes int8 all the same; set per_channel to false, or form to qdq",
        )
        given = [*self.asked, *["reduce_range"] * (self.reduce_range is not None)]
        require(self.precision == "int8" or not given, f"precision is {self.precision}; {', '.join(given)} is for int8")

    @property
    def methods(self) -> tuple[Method, ...]:
        """Return the ways to find ranges, in the order that they are tried."""
        return (self.calibration_method,) if self.calibration_method else METHODS

    @property
    def asked(self) -> dict[str, Any]:
        """Return what of the layout is given."""
        names = ("activation_type", "weight_type", "per_channel", "form")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def layout_asked(config: QuantizeConfig) -> Layout:
    """Return the int8 layout that is asked for, what is not given of it being what is fast.

    A type that is not given is uint8 where the one that is has no kernels with another, or the form writes no other.
    """
    asked = config.asked
    if not asked:
        return fast_layout(config.reduce_range)
    if config.activation_type and config.weight_type:
        chosen = Layout(**asked, reduce_range=False, reason="as asked for")
    else:
        fast = fast_layout(config.reduce_range)
        implied = {"activation_type": "uint8"} if config.form == "dynamic" or config.weight_type == "uint8" else {}
        reason = f"{fast.reason}; {', '.join(asked)} as asked for"
        chosen = fast.model_copy(update=implied | asked | {"reason": reason})
    reduce_range = saturates(chosen.weight_type) if config.reduce_range is None else config.reduce_range
    return chosen.model_copy(update={"reduce_range": reduce_range})
