"""Files that ONNX allows and no exporter of ours makes are quantized like any other, and what is float stays so."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_file import name_nodes
from compress.quantization.int8_layouts import FileForm, fast_layout
from compress.quantization.int8_trial import Form
from compress.quantization.quantize import quantization_sensitivity, quantize
from compress.quantization.source import Batches, quantize_source
from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel, open_onnx
from core.progress import no_progress
from core.sessions import Array, FloatArray, open_session


@pytest.fixture
def values(tmp_path: Path) -> Data:
    random = np.random.default_rng(0)
    x = random.standard_normal((48, 16)).astype(np.float32)
    y = np.arange(48) % 4
    np.savez(tmp_path / "values.npz", x_train=x, x_val=x, y_train=y, y_val=y)
    return load_data(str(tmp_path / "values.npz"))


def saved(nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], folder: Path, *given: str) -> OnnxModel:
    """Write a file from x (N, 16) to y (N, 4) with random weights, the given of which are inputs too."""
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in given),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.asarray(random.standard_normal(shape), np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "float32.onnx"
    )
    return open_onnx(folder / "float32.onnx")


def unnamed(folder: Path) -> OnnxModel:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    return saved(nodes, {"w1": (16, 16), "w2": (16, 4)}, folder)


def test_nodes_without_names_are_told_apart(values: Data, tmp_path: Path) -> None:
    model = unnamed(tmp_path)
    names = [one.node for one in quantization_sensitivity(model, values, QuantizeConfig()).layers]
    assert names == ["MatMul_0", "MatMul_2"]
    made = quantize(model, values, tmp_path / "int8.onnx", QuantizeConfig(nodes_to_exclude=(names[0],))).model
    assert {one.name: list(one.dims) for one in onnx.load(made.path).graph.initializer}["w1"] == [16, 16]
    with pytest.raises(ToolError, match="no node '' to exclude"):
        quantize(model, values, tmp_path / "other.onnx", QuantizeConfig(nodes_to_exclude=("",)))


def test_only_what_overflows_stays_in_float32_where_nodes_have_no_names(values: Data, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Mul", ["b", "b"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["d"]),
        helper.make_node("Tanh", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w2"], ["y"]),
    ]
    model = saved(nodes, {"w1": (16, 16), "w2": (16, 4)}, tmp_path)
    report = quantize(model, values, tmp_path / "half.onnx", QuantizeConfig(precision="float16")).report
    assert report.left_in_float == ("Mul_3", "Tanh_4")


def test_names_are_unique() -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"y{index}"], name) for index, name in enumerate(["", "a", "a", "a_2"])]
    graph = helper.make_graph(nodes, "g", [], [])
    name_nodes(graph)
    assert [node.name for node in graph.node] == ["Relu_0", "a", "a_2_", "a_2"]


def test_a_file_without_a_product_in_int8_is_not_kept(values: Data, tmp_path: Path) -> None:
    """Whatever a clock says of it."""
    layer = helper.make_node("Einsum", ["x", "w1"], ["y"], "layer", equation="ij,jk->ik")
    model = saved([layer], {"w1": (16, 4)}, tmp_path)
    with pytest.raises(GateMissedError, match="no int8 form of this model can be used here") as caught:
        quantize(
            model,
            values,
            tmp_path / "int8.onnx",
            QuantizeConfig(),
            measure_speedups=lambda _, files: [2.0 for _ in files],
        )
    told = {row["verdict"] for row in caught.value.tried if not row["verdict"].startswith("not tried")}
    assert told == {"cannot be used: no product in it could be made int8"}
    assert not (tmp_path / "int8.onnx").exists()


def layers(folder: Path, *given: str) -> OnnxModel:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "between"),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["y"], "last"),
    ]
    return saved(nodes, {"w1": (16, 16), "b1": (16,), "w2": (16, 4), "b2": (4,)}, folder, *given)


def answers(path: Path) -> FloatArray:
    inputs = np.random.default_rng(1).standard_normal((8, 16)).astype(np.float32)
    found: FloatArray = open_session(path).run(None, {"x": inputs})[0]
    return found


@pytest.mark.parametrize("kind", ["qdq", "dynamic"])
def test_the_bias_of_a_layer_in_float_is_left_as_it_is(values: Data, tmp_path: Path, kind: FileForm) -> None:
    model = layers(tmp_path)
    layout = fast_layout().model_copy(update={"form": kind, "only": ("Gemm",)})
    with quantize_source(model, values, 48, ("first",), no_progress) as source:
        source.write(Form(layout, "minmax", ("last",), ("bias corrected",)), tmp_path / "whole.onnx")
        source.write(Form(layout, "minmax", (), ("bias corrected",)), tmp_path / "half.onnx")
    np.testing.assert_allclose(answers(tmp_path / "whole.onnx"), answers(model.path), rtol=1e-5, atol=1e-5)
    assert np.abs(answers(tmp_path / "half.onnx") - answers(model.path)).max() > 1e-3


def test_what_stays_in_float_is_not_looked_at(values: Data, tmp_path: Path) -> None:
    report = quantization_sensitivity(layers(tmp_path), values, QuantizeConfig(nodes_to_exclude=("first",)))
    assert [one.node for one in report.layers] == ["last"]


def test_samples_are_run_for_means_once(values: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    whole = Batches.__iter__

    def counted(batches: Batches) -> Iterator[tuple[Array, ...]]:
        runs.append(len(batches))
        return whole(batches)

    monkeypatch.setattr(Batches, "__iter__", counted)
    form = Form(fast_layout(), "minmax", (), ("bias corrected",))
    with quantize_source(layers(tmp_path), values, 48, (), no_progress) as source:
        source.write(form, tmp_path / "first.onnx")
        once = len(runs)
        source.write(form, tmp_path / "second.onnx")
    assert len(runs) == once == 2


def test_weights_that_are_inputs_too_are_not_asked_for(values: Data, tmp_path: Path) -> None:
    model = layers(tmp_path, "w1", "b2")
    assert len(quantization_sensitivity(model, values, QuantizeConfig()).layers) == 2
    with quantize_source(model, values, 48, (), no_progress) as source:
        source.write(Form(fast_layout(), "minmax", (), ("bias corrected",)), tmp_path / "int8.onnx")
    assert np.abs(answers(tmp_path / "int8.onnx") - answers(model.path)).max() < 2


def test_weights_that_are_constant_nodes_are_quantized(values: Data, tmp_path: Path) -> None:
    proto = onnx.load(unnamed(tmp_path).path)
    for weight in proto.graph.initializer:
        proto.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    del proto.graph.initializer[:]
    onnx.save(proto, tmp_path / "constants.onnx")
    made = quantize(open_onnx(tmp_path / "constants.onnx"), values, tmp_path / "int8.onnx", QuantizeConfig(form="qdq"))
    kept = [one.data_type for one in onnx.load(made.model.path).graph.initializer if len(one.dims) == 2]
    assert kept == [TensorProto.INT8] * 2
