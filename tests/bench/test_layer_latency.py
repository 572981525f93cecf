"""Layers are timed side by side, once, in the kernels of their precision."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import layer_latency
from bench.layer_latency import layer_latencies
from bench.profile import NodeTime, profile
from core.layer_shape import LayerShape, layer_shapes
from core.machine import this_machine
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel

SMALL = LayerShape(
    kind="conv",
    in_channels=8,
    out_channels=8,
    size=(16, 16),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1, 1, 1),
    dilation=(1, 1),
)
LARGE = SMALL.model_copy(update={"in_channels": 128, "out_channels": 128, "size": (32, 32)})
DEPTHWISE = SMALL.model_copy(update={"groups": 8})
LINEAR = LayerShape(kind="linear", in_channels=32, out_channels=10)
LSTM = LayerShape(kind="lstm", in_channels=16, out_channels=32, size=(10,), directions=2)
DEEP_LSTM = LSTM.model_copy(update={"depth": 3})
GRU = LayerShape(kind="gru", in_channels=16, out_channels=16, size=(10,))
TOKENS = LINEAR.model_copy(update={"size": (5,)})


def timed(layers: list[LayerShape], cache: Path, types: tuple[str, str] | None = None) -> list[float]:
    return layer_latencies(layers, provider="cpu", threads=1, batch_size=1, types=types, cache=cache)


@pytest.mark.parametrize("types", [None, ("uint8", "int8")], ids=["float32", "int8"])
def test_a_larger_layer_takes_longer(types: tuple[str, str] | None, tmp_path: Path) -> None:
    found = timed([SMALL, LARGE, DEPTHWISE, LINEAR, TOKENS, SMALL], tmp_path, types)
    assert all(math.isfinite(ms) and ms >= 0 for ms in found)
    assert found[1] > 5 * found[0]
    assert found[0] == found[5]


@pytest.mark.parametrize("types", [None, ("uint8", "int8")], ids=["float32", "int8"])
def test_recurrent_layers_are_timed_at_all_their_depth(
    types: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: list[NodeTime] = []

    def profiled(*arguments: Any) -> tuple[NodeTime, ...]:
        nodes.extend(profile(*arguments))
        return tuple(nodes)

    monkeypatch.setattr(layer_latency, "profile", profiled)
    _, lstm, deep = timed([GRU, LSTM, DEEP_LSTM], tmp_path, types)
    levels = [[node.ms for node in nodes if node.name.startswith(f"layer{index}_")] for index in (0, 1)]
    assert [len(ms) for ms in levels] == [3, 1]  # the largest comes first
    assert min(*levels[0], *levels[1]) > 0
    assert [deep, lstm] == pytest.approx([sum(ms) for ms in levels])


def test_what_was_timed_is_kept(tmp_path: Path) -> None:
    first = timed([SMALL, LINEAR], tmp_path)
    assert timed([LINEAR, SMALL], tmp_path) == first[::-1]
    (table,) = tmp_path.iterdir()
    table.write_text(json.dumps(dict.fromkeys(json.loads(table.read_text()), 7.0)))
    assert timed([SMALL, LINEAR], tmp_path) == [7.0, 7.0]
    assert timed([SMALL, LARGE], tmp_path)[0] == 7.0
    assert timed([SMALL], tmp_path, ("uint8", "int8")) != [7.0]


@pytest.mark.parametrize("types", [None, ("uint8", "int8")], ids=["float32", "int8"])
def test_layers_that_are_too_large_together_are_timed_in_several_files(
    types: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[int] = []

    def profiled(model: OnnxModel, *arguments: Any) -> tuple[NodeTime, ...]:
        files.append(model.path.stat().st_size)
        return profile(model, *arguments)

    monkeypatch.setattr(layer_latency, "profile", profiled)
    limit = 700_000 if types is None else 700_000 // 4
    monkeypatch.setattr(layer_latency, "MOST_BYTES", limit)
    wide = [LARGE.model_copy(update={"out_channels": width}) for width in (128, 120, 112, 104, 96)]
    found = timed([SMALL, *wide, DEEP_LSTM], tmp_path, types)
    assert len(files) > 3
    assert max(files) < 1.5 * limit
    assert min(found[1:6]) > 5 * found[0] > 0
    assert found[6] > 0


def test_what_goes_through_layers_counts_as_their_weights_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_latency, "MOST_BYTES", 4 * 2 * 8 * 16 * 16 * 8)  # of 8 samples in and out of one layer
    files: list[int] = []

    def as_timed(layers: list[LayerShape], *_: object) -> list[float]:
        files.append(len(layers))
        return [1.0] * len(layers)

    monkeypatch.setattr(layer_latency, "_timed", as_timed)
    layers = [SMALL.model_copy(update={"out_channels": width}) for width in (8, 7, 6, 5)]
    for batch_size, expected in ((1, [4]), (8, [1, 1, 1, 1])):
        files.clear()
        layer_latencies(layers, provider="cpu", threads=1, batch_size=batch_size, cache=tmp_path)
        assert files == expected


@pytest.mark.parametrize("damaged", ["{", "[]", "null", '{"layer": "fast"}'])
def test_a_damaged_table_is_timed_anew(damaged: str, tmp_path: Path) -> None:
    timed([SMALL], tmp_path)
    (table,) = tmp_path.iterdir()
    table.write_text(damaged)
    assert timed([SMALL], tmp_path)[0] >= 0


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_done_without(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert timed([SMALL], tmp_path / folder)[0] >= 0
    assert "cannot be kept in" in caplog.text
    assert "$ONNXPRESS_CACHE" in caplog.text


@pytest.mark.parametrize("changed", ["provider", "threads", "batch_size", "machine", "versions"])
def test_what_was_timed_elsewhere_does_not_count(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a table of its own."""
    given: dict[str, Any] = {"provider": "cpu", "threads": 1, "batch_size": 1}
    monkeypatch.setattr(layer_latency, "_timed", lambda layers, *_: [1.0] * len(layers))
    layer_latencies([SMALL], cache=tmp_path, **given)
    if changed == "machine":
        other = this_machine().model_copy(update={"cpu": "another"})
        monkeypatch.setattr(layer_latency, "this_machine", lambda: other)
    elif changed == "versions":
        monkeypatch.setattr(layer_latency, "package_versions", lambda: {"onnxruntime": "0"})
    else:
        given[changed] = {"provider": "cuda", "threads": 2, "batch_size": 4}[changed]
    layer_latencies([SMALL], cache=tmp_path, **given)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "here"))
    layer_latencies([SMALL], provider="cpu", threads=1, batch_size=1)
    assert len(list((tmp_path / "here").iterdir())) == 1


def test_recurrent_layers_are_found(tiny: str) -> None:
    shapes = layer_shapes(load_torch_model(f"{tiny}:recurrent,num_layers=2,bidirectional=true", input_shape=(1, 8, 8)))
    (lstm,) = [shape for shape in shapes.values() if shape.kind == "lstm"]
    assert (lstm.directions, lstm.depth, lstm.out_channels % 2) == (2, 2, 0)
    (gru,) = [
        shape
        for shape in layer_shapes(load_torch_model(f"{tiny}:recurrent,kind=GRU", input_shape=(1, 8, 8))).values()
        if shape.kind == "gru"
    ]
    assert (gru.directions, gru.depth, gru.size) == (1, 1, (8,))


def test_the_layers_of_a_model_are_found_in_order() -> None:
    shapes = layer_shapes(load_torch_model("timm:mobilenetv3_small_050,num_classes=10", input_shape=(3, 64, 64)))
    first = next(iter(shapes.values()))
    assert (first.in_channels, first.out_channels, first.size, first.stride) == (3, 16, (64, 64), (2, 2))
    assert list(shapes)[-1] == "classifier"
    assert shapes["classifier"] == LayerShape(kind="linear", in_channels=1024, out_channels=10)
    assert any(shape.groups == shape.in_channels > 1 for shape in shapes.values())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_that_is_named_is_that_of_the_graph(tmp_path: Path) -> None:
    module = tmp_path / "named.py"
    module.write_text(
        "from torch import nn\n\n\ndef net(num_classes=3, in_chans=1):\n"
        "    same = nn.Conv2d(in_chans, 4, (4, 3), padding='same', dilation=(1, 2))\n"
        "    valid = nn.Conv2d(4, 4, 3, padding='valid')\n"
        "    return nn.Sequential(same, valid, nn.Flatten(), nn.LazyLinear(num_classes))\n"
    )
    same, valid, _ = layer_shapes(load_torch_model(f"{module}:net", input_shape=(1, 9, 9))).values()
    assert same.padding == (1, 2, 2, 2)  # as in ONNX: before each axis, then after each
    assert valid.padding == (0, 0, 0, 0)
    assert valid.size == (9, 9)
    assert min(timed([same, valid], tmp_path)) >= 0
