"""Shared by all tests: the embedded digits, one small trained model and what is made of it, and the command line."""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import bench.latency
from cli import main
from compress.quantization.config import QuantizeConfig
from compress.quantization.quantize import quantize
from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.data_reference import load_data
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export

TINY = f"{Path(__file__).parent / 'tiny_models.py'}"


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Hear Ctrl-C, and let what is started hear it, where a shell's background job would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _timed_briefly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds where models are compared on the way: tests assert behaviour, not speed, but for the slow ones."""
    if "slow" not in request.keywords:
        brief = dataclasses.replace(bench.latency.AGAINST, iterations=20, rounds=2, max_rounds=2)
        monkeypatch.setattr(bench.latency, "AGAINST", brief)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def working_in(tmp_path: Path) -> Callable[[str], AbstractContextManager[None]]:
    """Return what lets another process hold a folder, by its path from the test's own, until it is killed."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom core.folder_lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(600)\n"
    )

    @contextmanager
    def working(folder: str) -> Iterator[None]:
        command = [sys.executable, "-c", code, folder]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            try:
                yield
            finally:
                other.kill()

    return working


@pytest.fixture(scope="session")
def tiny() -> str:
    """The factory file's path; ``f"{tiny}:cnn"`` is a model reference."""
    return TINY


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits")


@pytest.fixture(scope="session")
def few_digits(digits: Data) -> Data:
    """The digits with 256 training samples, for tests that train."""
    assert digits.train is not None
    return dataclasses.replace(digits, train=digits.train.take(torch.arange(256)))


@pytest.fixture(scope="session")
def untrained(digits: Data) -> TorchModel:
    return load_torch_model(f"{TINY}:cnn", digits)


@pytest.fixture(scope="session")
def trained(untrained: TorchModel, digits: Data) -> TorchModel:
    config = FinetuneConfig(epochs=4, batch_size=64, lr=0.1, crop_padding=1)
    return finetune(untrained, digits, config).model


@pytest.fixture(scope="session")
def exported(trained: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(trained, tmp_path_factory.mktemp("exported") / "float32.onnx", ExportConfig()).model


@pytest.fixture(scope="session")
def quantized(exported: OnnxModel, digits: Data, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    return quantize(exported, digits, path, QuantizeConfig()).model


@pytest.fixture
def onnxpress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in an empty folder: ``onnxpress("bench", "model.onnx")``."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke
