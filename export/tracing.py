"""From a torch module to the ONNX graph of what torch.export traces of it."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from core.errors import ToolError
from core.torch_model import TorchModel, example_inputs
from core.trace_failure import failing_module
from export.attention import PlainAttention


def traced(model: TorchModel, opset: int, outputs: list[str]) -> torch.onnx.ONNXProgram:
    """Trace a model with a dynamic batch, and translate what was traced to ONNX.

    Args:
        model: What to trace.
        opset: Version of the ONNX operator set.
        outputs: Names of what it returns.

    Raises:
        ToolError: The module cannot be traced; the innermost module that fails is named.
    """
    inputs = example_inputs(model, 2)
    # Copied to default strides: a channels-last weight would be exported with its transpose.
    module = copy.deepcopy(model.module).to(memory_format=torch.contiguous_format)
    names = [spec.name for spec in model.inputs]
    dynamic = tuple(
        {axis: name for axis, name in enumerate(("batch", *spec.axes)) if isinstance(name, str)}
        for spec in model.inputs
    )
    try:
        with _quiet(), PlainAttention():
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
    return program


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
        # torch.export prints the graph that it has so far where tracing fails
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
