"""Shared by the tests of quantization: a model that int8 is hard on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compress.training.finetune import FinetuneConfig, finetune
from core.data import Data
from core.data_reference import load_data
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from export.to_onnx import ExportConfig, export


@pytest.fixture(scope="session")
def hard(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Data]:
    """Two layers that tell in which tenth of a circle a point lies, and the data.

    The unit that says most is a hundred times as large as it need be; the second layer makes up for it.
    """
    return _hard(f"{tiny}:mlp", tmp_path_factory.mktemp("hard"))


@pytest.fixture(scope="session")
def hard_for_good(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Data]:
    """The same, of which something else reads the large unit too, so that it cannot be made smaller."""
    return _hard(f"{tiny}:read_twice", tmp_path_factory.mktemp("hard-for-good"))


def _hard(reference: str, folder: Path) -> tuple[OnnxModel, Data]:
    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, count in (("train", 3000), ("val", 1000), ("test", 1000)):
        angle = random.uniform(0, 2 * np.pi, count)
        arrays[f"x_{split}"] = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        arrays[f"y_{split}"] = (angle / (2 * np.pi) * 10).astype(np.int64)
    np.savez(folder / "ring.npz", **arrays)
    ring = load_data(str(folder / "ring.npz"))
    start = load_torch_model(f"{reference},num_classes=10,num_features=2", ring)
    model = finetune(start, ring, FinetuneConfig(epochs=15, batch_size=64, lr=0.1)).model
    first, last = model.module.get_submodule("0"), model.module.get_submodule("2")
    with torch.no_grad():
        active = first(torch.from_numpy(arrays["x_train"])).relu().mean(0)
        unit = int((active * last.get_parameter("weight").norm(dim=0)).argmax())
        for parameter in first.parameters():
            parameter[unit] *= 100
        last.get_parameter("weight")[:, unit] /= 100
    return export(model, folder / "hard.onnx", ExportConfig()).model, ring
