"""The ONNX carrier: a file that explains itself, one that does not, and one that is damaged."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from core.errors import ToolError
from core.history import step
from core.input_spec import InputSpec
from core.onnx_model import TensorSpec, explain, open_onnx, read_proto
from core.preprocessing import Preprocessing
from core.references import file_sha256

MakeProto = Callable[..., onnx.ModelProto]
MakeOnnx = Callable[..., Path]

PREPROCESSING = Preprocessing(image_size=(8, 8), channels=1, scale=1 / 255, mean=(0.3,), std=(0.1,))
HISTORY = (step("finetune", {"epochs": 3, "ignore": ["a"]}, parent="abc"), step("export", {}, parent="def"))
INPUTS = (InputSpec(name="x", shape=(5,)),)


@pytest.fixture
def explained(linear_proto: MakeProto, tmp_path: Path) -> Path:
    proto = linear_proto()
    helper.set_model_props(proto, {"author": "someone"})
    explain(proto, history=HISTORY, inputs=INPUTS, preprocessing=PREPROCESSING, labels=("a", "ü", "c"))
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def with_metadata(proto: onnx.ModelProto, metadata: dict[str, str], path: Path) -> Path:
    helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    return path


def test_what_is_explained_is_read_back(explained: Path) -> None:
    model = open_onnx(explained)
    assert (model.preprocessing, model.labels, model.history) == (PREPROCESSING, ("a", "ü", "c"), HISTORY)


def test_other_metadata_stays(explained: Path) -> None:
    entries = {entry.key: entry.value for entry in onnx.load(explained).metadata_props}
    assert entries["author"] == "someone"


def test_explaining_again_replaces_what_was_said(explained: Path) -> None:
    proto = onnx.load(explained)
    explain(proto, history=HISTORY[:1], inputs=INPUTS, preprocessing=None, labels=("x", "y", "z"))
    onnx.save(proto, explained)
    model = open_onnx(explained)
    assert (model.labels, model.history) == (("x", "y", "z"), HISTORY[:1])
    assert model.preprocessing is None
    assert len({entry.key for entry in proto.metadata_props}) == len(proto.metadata_props)


def test_explaining_changes_no_output(explained: Path, linear_proto: MakeProto) -> None:
    assert onnx.load(explained).graph == linear_proto().graph


def test_a_file_without_metadata_opens_with_nothing(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx()
    model = open_onnx(path)
    assert (model.preprocessing, model.labels, model.history) == (None, (), ())
    assert (model.name, model.sha256, model.opset) == (str(path), file_sha256(path), 20)
    assert model.size_bytes == len(path.read_bytes())
    assert model.precision == "float32"


def test_inputs_and_outputs_are_those_of_the_graph(linear_onnx: MakeOnnx) -> None:
    model = open_onnx(linear_onnx(batch=7, dtype=TensorProto.FLOAT16), name="half")
    assert model.name == "half"
    assert model.inputs == (TensorSpec(name="x", shape=(7, 5), dtype="float16"),)
    assert model.outputs == (TensorSpec(name="y", shape=(7, 3), dtype="float16"),)


def test_an_initializer_listed_as_input_is_none(linear_proto: MakeProto, tmp_path: Path) -> None:
    proto = linear_proto()
    proto.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, (5, 3)))
    onnx.save(proto, tmp_path / "old.onnx")
    assert [spec.name for spec in open_onnx(tmp_path / "old.onnx").inputs] == ["x"]


def test_dynamic_and_unknown_axes_are_named(linear_proto: MakeProto, tmp_path: Path) -> None:
    proto = linear_proto(batch="batch")
    proto.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    onnx.save(proto, tmp_path / "model.onnx")
    model = open_onnx(tmp_path / "model.onnx")
    assert model.inputs[0].shape == ("batch", 5)
    assert model.outputs[0].shape == ("batch", "?")


@pytest.mark.parametrize(
    ("operator", "precision"),
    [
        ("QuantizeLinear", "int8"),
        ("DynamicQuantizeLinear", "int8"),
        ("DynamicQuantizeLSTM", "int8"),
        ("DequantizeLinear", "int8"),
        ("QLinearAdd", "int8"),
        ("MatMulNBits", "int4"),
    ],
)
def test_a_quantized_file_is_told_apart(linear_proto: MakeProto, tmp_path: Path, operator: str, precision: str) -> None:
    proto = linear_proto()
    proto.graph.node.append(helper.make_node(operator, ["y"], ["z"]))
    onnx.save(proto, tmp_path / "model.onnx")
    assert open_onnx(tmp_path / "model.onnx").precision == precision


@pytest.mark.parametrize(("dtype", "precision"), [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")])
def test_half_precision_is_told_apart(linear_proto: MakeProto, tmp_path: Path, dtype: int, precision: str) -> None:
    proto = linear_proto()
    proto.graph.initializer.append(helper.make_tensor("half", dtype, [2], [0.5, 1.0]))
    onnx.save(proto, tmp_path / "model.onnx")
    assert open_onnx(tmp_path / "model.onnx").precision == precision


def test_a_file_cut_anywhere_is_named(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ToolError, match=r"linear\.onnx .*damaged|cannot read .*linear\.onnx"):
            open_onnx(path)


def test_a_file_cut_within_its_metadata_is_named(explained: Path, cut: Callable[[Path, float], None]) -> None:
    cut(explained, -3)
    with pytest.raises(ToolError, match=r"cannot read .*model\.onnx: .*; the file is damaged, cut short or not ONNX"):
        open_onnx(explained)


@pytest.mark.parametrize("contents", [b"", b"<html>404</html>", b"\x80\x04}.", bytes(100)])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(contents)
    with pytest.raises(ToolError, match=r"a\.onnx.* the file is damaged, cut short or not ONNX"):
        read_proto(tmp_path / "a.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(ToolError, match=r"cannot read .*a\.onnx"):
        read_proto(tmp_path / "a.onnx")


def test_a_missing_file_suggests_the_nearest(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx("model.onnx")
    with pytest.raises(ToolError, match=r"modle\.onnx does not exist\. Did you mean 'model\.onnx'\?"):
        open_onnx(path.with_name("modle.onnx"))


def test_missing_external_weights_are_named(linear_proto: MakeProto, tmp_path: Path) -> None:
    onnx.save(linear_proto(), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    assert open_onnx(tmp_path / "a.onnx").inputs
    (tmp_path / "a.data").unlink()
    with pytest.raises(ToolError, match=r"cannot read .*a\.onnx: .*a\.data"):
        open_onnx(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"onnxpress.labels": "cat, dog"}, id="labels-no-json"),
        pytest.param({"onnxpress.labels": "3"}, id="labels-a-number"),
        pytest.param({"onnxpress.history": '[{"stage": 3}]'}, id="history"),
        pytest.param({"onnxpress.preprocessing": '{"scale": "big"}'}, id="preprocessing"),
        pytest.param({"onnxpress.preprocessing": "[1]"}, id="preprocessing-a-list"),
    ],
)
def test_damaged_metadata_is_named(linear_proto: MakeProto, tmp_path: Path, metadata: dict[str, str]) -> None:
    path = with_metadata(linear_proto(), metadata, tmp_path / "model.onnx")
    with pytest.raises(ToolError, match=r"model\.onnx has damaged onnxpress metadata") as caught:
        open_onnx(path)
    assert "\n" not in str(caught.value)


def test_the_metadata_of_other_tools_is_not_read_as_ours(linear_proto: MakeProto, tmp_path: Path) -> None:
    foreign = {"labels": "cat, dog", "history": "trained on Tuesday", "preprocessing": "resize"}
    model = open_onnx(with_metadata(linear_proto(), foreign, tmp_path / "model.onnx"))
    assert (model.preprocessing, model.labels, model.history) == (None, (), ())


def test_an_output_that_is_no_tensor_is_refused(linear_proto: MakeProto, tmp_path: Path) -> None:
    proto = linear_proto()
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    proto.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ToolError, match="'s'"):
        open_onnx(tmp_path / "model.onnx")
