"""From a torch module to an .onnx file that computes the same."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch
from torch import nn

from core.errors import ToolError, require
from core.history import step
from core.onnx_model import OnnxModel, explain, open_onnx
from core.result import Report, Result
from core.torch_model import TorchModel, example_inputs, outputs_once, torch_digest
from core.trace_failure import failing_module
from core.whole_output import whole_file
from export.verify import VerifyConfig, VerifyReport, require_verified, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How to export.

    Attributes:
        opset: Version of the ONNX operator set.
        atol: Absolute tolerance of the verification.
        rtol: Relative tolerance of the verification.
        batch_sizes: Batch sizes it is verified at.
    """

    opset: int = 20
    atol: float = 1e-4
    rtol: float = 1e-3
    batch_sizes: tuple[int, ...] = (1, 2, 7)

    def __post_init__(self) -> None:
        require(18 <= self.opset <= 23, f"opset is {self.opset}; the exporter makes 18 to 23")


class ExportReport(Report, frozen=True):
    """What was written.

    Attributes:
        opset: Version of the operator set.
        nodes: Nodes before and after simplification.
        size_bytes: The file's size.
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
        ToolError: The module cannot be traced; the innermost module that fails is named.
        GateMissedError: The file does not compute what the module computes.
    """
    proto = _traced(model, config.opset, list(outputs_once(model)))
    nodes_before = len(proto.graph.node)
    proto = _simplified(proto)
    done = step("export", asdict(config), parent=torch_digest(model))
    explain(
        proto,
        history=(*model.history, done),
        inputs=model.inputs,
        preprocessing=model.preprocessing,
        labels=model.labels,
    )
    limits = VerifyConfig(atol=config.atol, rtol=config.rtol, batch_sizes=config.batch_sizes)
    with whole_file(output, force=force) as part:
        onnx.save(proto, part)
        candidate = open_onnx(part, str(output))
        _require_dynamic(model, candidate)
        verified = require_verified(verify(model, candidate, limits))
    made = open_onnx(output)
    report = ExportReport(
        stage="export",
        opset=made.opset,
        nodes=(nodes_before, len(proto.graph.node)),
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


def _traced(model: TorchModel, opset: int, outputs: list[str]) -> onnx.ModelProto:
    inputs = example_inputs(model, 2)
    # Copied to default strides: a channels-last weight would be exported with its transpose.
    module = copy.deepcopy(model.module).to(memory_format=torch.contiguous_format)
    names = [spec.name for spec in model.inputs]
    dynamic = tuple(
        {axis: name for axis, name in enumerate(("batch", *spec.axes)) if isinstance(name, str)}
        for spec in model.inputs
    )
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its passes raise
        where = failing_module(model.module, inputs, _trace)
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ToolError(
            f"torch.export cannot trace {model.name} in its module {where or '(root)'!r}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    assert program is not None
    return program.model_proto


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    simplified: onnx.ModelProto = onnxslim.slim(proto)
    return simplified


def _trace(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    with _quiet():
        torch.export.export(module, inputs, strict=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter tells its own developers."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
