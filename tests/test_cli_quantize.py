"""The command quantize: what it refuses, plots, trains and never deletes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

import stages
from compress.distillation.config import QAT_DEFAULTS
from core.checkpoint import save_checkpoint
from core.data import Data
from core.errors import GateMissedError
from core.external_data import data_file
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from stages import quantize_measured

Onnxpress = Callable[..., Result]


def test_what_training_for_int8_takes_unless_told_is_said(onnxpress: Onnxpress) -> None:
    said = onnxpress("quantize", "--help").output
    assert f"Of --qat; {QAT_DEFAULTS['epochs']} unless given." in said
    assert f"{QAT_DEFAULTS['lr']} unless given." in " ".join(said.split())


def test_what_each_layer_loses_in_int8_is_plotted(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    arguments = ["quantize", exported.path, "--sensitivity", "--calibration-samples", 64, "--data", "digits"]
    result = onnxpress(*arguments, "-o", "int8.html", "--json")
    assert result.exit_code == 0
    layers = json.loads(result.stdout)["layers"]
    assert {"node", "operator", "weights", "activations"} == set(layers[0])
    assert layers[0]["node"] in Path("int8.html").read_text()
    original = Path("original.onnx")
    shutil.copyfile(exported.path, original)
    result = onnxpress("quantize", original, *arguments[2:], "-o", original, "--force")
    assert (result.exit_code, "is the file to look at, which stays" in result.stderr) == (1, True)
    assert original.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize("options", [[], ["--sensitivity"]])
def test_quantizing_never_deletes_the_weights_it_reads(
    onnxpress: Onnxpress, exported: OnnxModel, options: list[str]
) -> None:
    """They lie where the output, or the output's weights, would: as other tools name them."""
    output = Path("weights.bin" if options else "other.onnx")
    weights = output if options else data_file(output)
    onnx.save(onnx.load(exported.path), "whole.onnx", save_as_external_data=True, location=str(weights))
    before = weights.read_bytes()
    arguments = ["quantize", "whole.onnx", "--data", "digits", *options, "-o", output, "--force"]
    result = onnxpress(*arguments)
    assert (result.exit_code, "which stays; choose another --output" in result.stderr) == (1, True)
    assert weights.read_bytes() == before


def test_quantization_aware_training_takes_a_torch_model(
    onnxpress: Onnxpress, trained: TorchModel, exported: OnnxModel
) -> None:
    save_checkpoint(trained, Path("trained"))
    training = ["--qat", "--epochs", 1, "--form", "qdq", "--max-drop", 5, "--threads", 1, "--data", "digits", "--json"]
    result = onnxpress("quantize", "trained", *training, "-o", "int8.onnx")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["trained_epochs"] == 0
    refused = onnxpress("quantize", exported.path, *training, "-o", "other.onnx")
    assert "is an ONNX file, whose weights cannot be trained" in refused.stderr
    both = onnxpress("quantize", "trained", "--qat", "--sensitivity", "--data", "digits", "-o", "plot.html")
    assert (both.exit_code, "--sensitivity quantizes nothing" in both.stderr) == (2, True)
    other = onnxpress("quantize", "trained", "--qat", "--precision", "float16", "--data", "digits", "-o", "x.onnx")
    assert (other.exit_code, "--qat trains a model to bear int8, not float16" in other.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", 3, "--seed", 1], "--epochs, --seed: of --qat, which trains; add that, or drop it"),
        (["--sensitivity", "--precision", "int4"], "--sensitivity looks at int8, not int4; drop one of them"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    onnxpress: Onnxpress, exported: OnnxModel, options: list[object], said: str
) -> None:
    result = onnxpress("quantize", exported.path, *options, "--data", "digits", "-o", "int8.onnx")
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_portable_file_has_weights_of_seven_bits(onnxpress: Onnxpress, exported: OnnxModel) -> None:
    asked = ["--portable", "--form", "qdq", "--max-drop", 5, "--threads", 1, "--data", "digits", "--json"]
    result = onnxpress("quantize", exported.path, *asked, "-o", "int8.onnx")
    report = json.loads(result.stdout)
    assert report["layout"]["reduce_range"]
    assert report["drop_without_vnni"] == report["drop"]
    weights = [numpy_helper.to_array(one) for one in onnx.load("int8.onnx").graph.initializer]
    assert max(np.abs(one.astype(int)).max() for one in weights if one.dtype == np.int8 and one.ndim > 1) == 64


def test_quantization_aware_training_needs_no_labels(
    onnxpress: Onnxpress, trained: TorchModel, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def at_first_too_bad(*given: Any, **settings: Any) -> Any:
        attempts.append("one")
        if len(attempts) == 1:
            raise GateMissedError("it loses too much")
        return quantize_measured(*given, **settings)

    monkeypatch.setattr(stages, "quantize_measured", at_first_too_bad)
    save_checkpoint(trained, Path("trained"))
    np.savez("unlabelled.npz", x_train=digits.train.samples.array[:, 0].numpy())
    arguments = ["--form", "qdq", "--max-drop", 20, "--epochs", 2, "--lr", 0.002, "--data", "unlabelled.npz", "--json"]
    result = onnxpress("quantize", "trained", "--qat", *arguments, "-o", "x.onnx")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["trained_epochs"] == 2
