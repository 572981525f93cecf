"""Samples that cannot be read stop a run with their name, or are left out up to a number."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from fixed_batch import with_fixed_batch
from PIL import Image

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.quantization.config import QuantizeConfig
from compress.quantization.quantize import quantize
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.step import _check_shareable
from core.checkpoint import save_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError, UnreadableSampleError
from core.model_reference import load_torch_model
from core.predict import predict
from export.to_onnx import ExportConfig, export


@pytest.fixture
def photos(tmp_path: Path, digits: Data) -> Path:
    """Forty digits as files, of which three training images are cut short."""
    for index in range(40):
        folder = tmp_path / "photos" / "train" / str(int(digits.train.labels()[index]) % 2)
        folder.mkdir(parents=True, exist_ok=True)
        image = digits.train.samples.array[index, 0].numpy()
        Image.fromarray(np.kron(image, np.ones((8, 8), np.uint8))).save(folder / f"{index}.png")
    for path in sorted((tmp_path / "photos").rglob("*.png"))[:3]:
        path.write_bytes(path.read_bytes()[:-30])
    return tmp_path / "photos"


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_bad_samples_stop_with_the_name_of_one(allowed: int, photos: Path, tiny: str) -> None:
    data = load_data(str(photos), skip_bad=allowed)
    with pytest.raises(ToolError, match=r"cannot read the image .*\.png") as raised:
        load_torch_model(f"{tiny}:cnn", data)  # looks at them for its normalisation
    assert allowed == 0 or "3 samples cannot be read, --skip-bad allows 2" in str(raised.value)


def test_so_many_bad_samples_are_left_out(photos: Path, tiny: str) -> None:
    data = load_data(str(photos), skip_bad=3)
    model = load_torch_model(f"{tiny}:cnn", data)
    report = finetune(model, data, FinetuneConfig(epochs=2, batch_size=8)).report
    assert report.skipped_samples == 3
    assert distill(model, model, data, DistillConfig(epochs=1, batch_size=8)).report.skipped_samples == 3


@pytest.mark.parametrize("fixed_batch", [None, 8])
def test_they_are_left_out_of_calibration_too(photos: Path, tiny: str, tmp_path: Path, fixed_batch: int | None) -> None:
    data = load_data(str(photos), skip_bad=3)
    model = load_torch_model(f"{tiny}:cnn", data)
    made = export(model, tmp_path / "float32.onnx", ExportConfig()).model
    if fixed_batch:
        (tmp_path / "fixed").mkdir()
        made = with_fixed_batch(made, tmp_path / "fixed", fixed_batch)
    report = quantize(made, data, tmp_path / "int8.onnx", QuantizeConfig(form="qdq", max_drop=100.0)).report
    assert report.layout is not None
    with pytest.raises(ToolError, match=r"cannot read the image .*\.png"):
        quantize(made, load_data(str(photos)), tmp_path / "no.onnx", QuantizeConfig(form="qdq", max_drop=100.0))


@pytest.mark.parametrize("allowed", [0, 2])
def test_no_form_is_to_blame_for_bad_samples(photos: Path, tiny: str, tmp_path: Path, allowed: int) -> None:
    model = load_torch_model(f"{tiny}:cnn", load_data(str(photos), skip_bad=3))
    made = export(model, tmp_path / "float32.onnx", ExportConfig()).model
    with pytest.raises(ToolError, match=r"cannot read the image .*\.png"):
        quantize(
            made,
            load_data(str(photos), skip_bad=allowed),
            tmp_path / "int8.onnx",
            QuantizeConfig(max_drop=100.0),
            measure_speedups=lambda _, files: [2.0 for _ in files],
        )
    assert not (tmp_path / "int8.onnx").exists()


def test_validation_samples_that_are_all_bad_cannot_judge(photos: Path, tiny: str) -> None:
    for split, folder in itertools.product(("val", "test"), "01"):  # alone, val/ would be the test split
        (photos / split / folder).mkdir(parents=True)
        for path in sorted((photos / "train" / folder).glob("*.png"))[-2:]:
            (photos / split / folder / path.name).write_bytes(path.read_bytes()[:80])
    data = load_data(str(photos), skip_bad=11)
    model = load_torch_model(f"{tiny}:cnn", data)
    message = (
        r"--skip-bad leaves no sample of a split: all 4 are bad, the first: cannot read the image .*/val/0/\d+\.png"
    )
    with pytest.raises(ToolError, match=message):
        finetune(model, data, FinetuneConfig(epochs=1, batch_size=8))
    with pytest.raises(UnreadableSampleError, match=message):  # for which whoever tries the model does not blame that
        predict(model, data, "validation")


def test_several_processes_leave_no_sample_out(photos: Path) -> None:
    split = load_data(str(photos), skip_bad=3).split("train")
    message = "--skip-bad works in one process: several must agree on every batch; replace the bad samples"
    with pytest.raises(ToolError, match=message):
        _check_shareable(split, FinetuneConfig(batch_size=8), 2)


@pytest.mark.parametrize(
    "command",
    [
        ["finetune", "model", "--epochs", "1", "-o", "out"],
        ["prune", "model", "--pruning-ratio", "0.3", "-o", "out"],
        ["quantize", "model.onnx", "--form", "qdq", "--max-drop", "100", "-o", "out.onnx"],
        ["verify", "model.onnx", "--reference", "model"],
        ["bench", "model.onnx", "--threads", "1"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_reads_samples_can_leave_some_out(
    command: list[str], photos: Path, tiny: str, onnxpress: Callable[..., Result]
) -> None:
    for split in ("val", "test"):
        (photos / split).symlink_to(photos / "train")
    model = load_torch_model(f"{tiny}:cnn", load_data(str(photos), skip_bad=9))
    save_checkpoint(model, Path("model"))
    export(model, Path("model.onnx"), ExportConfig())
    stopped = onnxpress(*command, "--data", photos)
    assert (stopped.exit_code, "cannot read the image" in stopped.stderr) == (1, True)
    done = onnxpress(*command, "--data", photos, "--skip-bad", 9)
    assert done.exit_code == 0, done.stderr
