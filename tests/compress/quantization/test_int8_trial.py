"""A form that cannot be used is told; what is no fault of the form is raised."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_trials import quantized_by, source_of, trial_of
from onnxruntime import InferenceSession

from compress.quantization.int8_choice import choose
from compress.quantization.int8_layouts import layouts_worth_trying
from core.data import Data
from core.errors import ToolError
from core.onnx_model import OnnxModel


def test_a_form_that_cannot_be_used_is_told(
    exported: OnnxModel, digits: Data, caplog: pytest.LogCaptureFixture
) -> None:
    def run_once(candidate: OnnxModel) -> None:
        if candidate.path.name == "layout1.onnx":
            raise ToolError("no memory\nfor this")
        if candidate.path.name == "layout2.onnx":
            InferenceSession(b"no model")

    caplog.set_level("DEBUG", "compress.quantization.int8_trial")
    with source_of(exported, digits) as source:
        trial = replace(trial_of(source, lambda _: 2.0, lambda _: 0.0), run_once=run_once)
        tried = choose(layouts_worth_trying("cpu"), trial, ("minmax",), source.sensitivity).tried
    told, theirs = [one.verdict for one in tried if "cannot be used" in one.verdict]
    assert told == "cannot be used: no memory for this"
    assert theirs.startswith("cannot be used: [ONNXRuntimeError]")
    assert "Traceback" in caplog.text


def test_a_bug_of_ours_is_no_fault_of_the_form(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        quantized_by(lambda *_: None + 1, exported, digits, tmp_path)
    assert not list(tmp_path.iterdir())
