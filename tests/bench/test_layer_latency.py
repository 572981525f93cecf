"""Layers are timed side by side, once, in the kernels of their precision."""

import json
import math
from pathlib import Path

import pytest

from bench.layer_latency import layer_latencies
from core.layer_shape import LayerShape, layer_shapes
from core.model_reference import load_torch_model

SMALL = LayerShape(
    kind="conv",
    in_channels=8,
    out_channels=8,
    size=(16, 16),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
)
LARGE = SMALL.model_copy(update={"in_channels": 128, "out_channels": 128, "size": (32, 32)})
DEPTHWISE = SMALL.model_copy(update={"groups": 8})
LINEAR = LayerShape(kind="linear", in_channels=32, out_channels=10)
TOKENS = LINEAR.model_copy(update={"size": (5,)})


def timed(layers: list[LayerShape], cache: Path, types: tuple[str, str] | None = None) -> list[float]:
    return layer_latencies(layers, provider="cpu", threads=1, batch_size=1, types=types, cache=cache)


@pytest.mark.parametrize("types", [None, ("uint8", "int8")], ids=["float32", "int8"])
def test_a_larger_layer_takes_longer(types: tuple[str, str] | None, tmp_path: Path) -> None:
    found = timed([SMALL, LARGE, DEPTHWISE, LINEAR, TOKENS, SMALL], tmp_path, types)
    assert all(math.isfinite(ms) and ms >= 0 for ms in found)
    assert found[1] > 5 * found[0]
    assert found[0] == found[5]


def test_what_was_timed_is_kept(tmp_path: Path) -> None:
    first = timed([SMALL, LINEAR], tmp_path)
    assert timed([LINEAR, SMALL], tmp_path) == first[::-1]
    (table,) = tmp_path.iterdir()
    table.write_text(json.dumps(dict.fromkeys(json.loads(table.read_text()), 7.0)))
    assert timed([SMALL, LINEAR], tmp_path) == [7.0, 7.0]
    assert timed([SMALL, LARGE], tmp_path)[0] == 7.0
    assert timed([SMALL], tmp_path, ("uint8", "int8")) != [7.0]


def test_a_damaged_table_is_timed_anew(tmp_path: Path) -> None:
    timed([SMALL], tmp_path)
    (table,) = tmp_path.iterdir()
    table.write_text("{")
    assert timed([SMALL], tmp_path)[0] >= 0


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "here"))
    layer_latencies([SMALL], provider="cpu", threads=1, batch_size=1)
    assert len(list((tmp_path / "here").iterdir())) == 1


def test_the_layers_of_a_model_are_found_in_order() -> None:
    shapes = layer_shapes(load_torch_model("timm:mobilenetv3_small_050,num_classes=10", input_shape=(3, 64, 64)))
    first = next(iter(shapes.values()))
    assert (first.in_channels, first.out_channels, first.size, first.stride) == (3, 16, (64, 64), (2, 2))
    assert list(shapes)[-1] == "classifier"
    assert shapes["classifier"] == LayerShape(kind="linear", in_channels=1024, out_channels=10)
    assert any(shape.groups == shape.in_channels > 1 for shape in shapes.values())
