"""From a torch module to an .onnx file that computes the same."""

from dataclasses import asdict, dataclass
from pathlib import Path

import onnxslim

from core.answers import LOGITS, is_known
from core.errors import ToolError, require
from core.external_data import fits_one_file, whole_onnx, write_onnx
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx
from core.preprocessing import InputForm
from core.result import Report, Result
from core.torch_model import TorchModel, outputs_once, torch_digest
from export.baked import bake_answer, bake_preprocessing, check_bakeable
from export.tracing import traced
from export.verify import VerifyConfig, VerifyReport, require_verified, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How to export.

    Attributes:
        opset: Version of the ONNX operator set.
        atol: Absolute tolerance of the verification.
        rtol: Relative tolerance of the verification.
        batch_sizes: Batch sizes it is verified at.
        input: What the file takes: ``float32`` inputs (N, C, H, W), normalised before; or ``uint8`` images
            (N, H, W, C) of the model's size, which it normalises itself.
        returns: What it returns: ``logits``, ``probabilities``, or ``top-5`` (any number): the most probable classes.
    """

    opset: int = 20
    atol: float = 1e-4
    rtol: float = 1e-3
    batch_sizes: tuple[int, ...] = (1, 2, 7)
    input: InputForm = "float32"
    returns: str = LOGITS

    def __post_init__(self) -> None:
        require(18 <= self.opset <= 23, f"opset is {self.opset}; the exporter makes 18 to 23")
        require(
            is_known(self.returns),
            f"returns is {self.returns!r}; it is logits, probabilities or top-K with a number, like top-5",
        )


class ExportReport(Report, frozen=True):
    """What was written.

    Attributes:
        opset: Version of the operator set.
        nodes: Nodes before and after simplification; a file whose weights lie beside it is not simplified.
        size_bytes: The file's size, with weights beside it.
        verify: The file against the torch module.
    """

    opset: int
    nodes: tuple[int, int]
    size_bytes: int
    verify: VerifyReport


def export(
    model: TorchModel, output: Path, config: ExportConfig, *, force: bool = False
) -> Result[OnnxModel, ExportReport]:
    """Export with a dynamic batch, simplify, verify against the module, and only then give the file its name.

    Texts also have a dynamic length. Outputs keep the names that the module gives them.

    Args:
        model: What to export.
        output: The .onnx file to make.
        config: How.
        force: Replace an existing file.

    Raises:
        ToolError: The module cannot be traced; the innermost module that fails is named. Or the file cannot take or
            return what is asked.
        GateMissedError: The file does not compute what the module computes.
    """
    returned = outputs_once(model)
    num_classes = next(iter(returned.values())).shape[1]
    check_bakeable(model, list(returned), num_classes, config.input, config.returns)
    proto = traced(model, config.opset, list(returned)).model_proto
    nodes_before = len(proto.graph.node)
    if fits_one_file(proto):
        proto = onnxslim.slim(proto)
    nodes_after = len(proto.graph.node)
    inputs, preprocessing = model.inputs, model.preprocessing.model_copy(update={"input": config.input})
    if config.input == "uint8":
        inputs = (bake_preprocessing(proto, preprocessing),)
    bake_answer(proto, config.returns, num_classes)
    done = step("export", asdict(config), parent=torch_digest(model))
    explain(
        proto,
        history=(*model.history, done),
        inputs=inputs,
        preprocessing=preprocessing,
        labels=model.labels,
        returns=config.returns,
    )
    limits = VerifyConfig(atol=config.atol, rtol=config.rtol, batch_sizes=config.batch_sizes)
    with whole_onnx(output, force=force) as part:
        write_onnx(proto, part)
        candidate = open_onnx(part, str(output))
        _require_dynamic(model, candidate)
        verified = require_verified(verify(model, candidate, limits))
    made = open_onnx(output)
    report = ExportReport(
        stage="export",
        opset=made.opset,
        nodes=(nodes_before, nodes_after),
        size_bytes=made.size_bytes,
        verify=verified,
    )
    return Result(made, report)


def _require_dynamic(model: TorchModel, candidate: OnnxModel) -> None:
    """Raise `ToolError` where tracing has fixed the batch, or another axis that is to be dynamic."""
    for spec, found in zip(model.inputs, candidate.inputs, strict=True):
        for axis, (wanted, size) in enumerate(zip(("batch", *spec.axes), found.shape, strict=True)):
            if isinstance(wanted, str) and not isinstance(size, str):
                raise ToolError(
                    f"{model.name}: its code fixes the {wanted} at {size} when traced; look for a Python number taken "
                    f"from x.shape[{axis}]"
                )
