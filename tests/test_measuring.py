"""What `prune` asks the time of is the file that will be deployed: exported, and int8 where that is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import stages
from bench.latency import measure_against
from bench.layer_latency import layer_latencies
from core.data import Data
from core.errors import ToolError
from core.layer_shape import layer_shapes
from core.measuring import Timed
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel
from stages import measuring


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_models_and_layers_are_timed_in_the_precision_that_is_asked_for(
    trained: TorchModel, digits: Data, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path))
    files: list[str] = []
    types: list[object] = []

    def models(first: OnnxModel, others: Sequence[OnnxModel], **settings: Any) -> list[Timed]:
        files.extend(one.precision for one in (first, *others))
        return measure_against(first, others, **settings)

    def layers(shapes: Any, **settings: Any) -> list[float]:
        types.append(settings["types"])
        return layer_latencies(shapes, **settings)

    monkeypatch.setattr(stages, "measure_against", models)
    monkeypatch.setattr(stages, "layer_latencies", layers)
    with measuring("cpu", 1, 1, precision, digits) as measure:
        assert measure.models(trained, trained).candidate_ms > 0
        assert min(measure.layers(list(layer_shapes(trained).values()))) >= 0
    assert files == [precision, precision]
    assert [one is not None for one in types] == [precision == "int8"]


def test_int8_is_not_timed_without_samples(trained: TorchModel) -> None:
    asked = pytest.raises(ToolError, match="int8 is calibrated on samples; give --data")
    with asked, measuring("cpu", 1, 1, "int8", None):
        pass
