"""Static int8: right, in the layout that is fast, and refused where it cannot serve."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from fixed_batch import with_fixed_batch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import stages
from compress.distillation.config import DistillConfig
from compress.quantization import int8_layouts
from compress.quantization.config import QuantizeConfig, layout_asked
from compress.quantization.int8_layouts import fast_layout, saturates
from compress.quantization.quantize import quantize
from core.data import Data
from core.data_reference import load_data
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel, open_onnx
from core.predict import accuracy, predict
from core.progress import no_progress
from core.result import Report
from core.torch_model import TorchModel
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, require_verified, verify
from stages import quantize_measured, quantize_trained


def zero_point_types(path: Path) -> dict[str, set[int]]:
    """Element types that QuantizeLinear and DequantizeLinear give activations and weights."""
    graph = onnx.load(path).graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    activations = {initializers[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"}
    weights = {
        initializers[node.input[0]].data_type
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in initializers
    }
    return {"activations": activations, "weights": weights - {onnx.TensorProto.INT32}}


def test_int8_agrees_with_float32(exported: OnnxModel, quantized: OnnxModel, digits: Data) -> None:
    before, targets = predict(exported, digits, "test")
    after, _ = predict(quantized, digits, "test")
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.97
    assert accuracy(after, targets) > accuracy(before, targets) - 2
    sqnr_db = 10 * np.log10((before**2).sum() / ((before - after) ** 2).sum())
    assert sqnr_db > 20, f"SQNR {sqnr_db:.1f} dB"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the layout of x86 processors")
def test_the_default_layout_is_uint8_activations_and_int8_weights(quantized: OnnxModel) -> None:
    types = zero_point_types(quantized.path)
    assert types == {"activations": {onnx.TensorProto.UINT8}, "weights": {onnx.TensorProto.INT8}}
    assert fast_layout().activation_type == "uint8"


def test_explicit_types_are_obeyed(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    config = QuantizeConfig(activation_type="int8", weight_type="int8", calibration_samples=64)
    result = quantize(exported, digits, tmp_path / "s8s8.onnx", config)
    assert zero_point_types(result.model.path)["activations"] == {onnx.TensorProto.INT8}
    assert result.report.layout.reason == "as asked for"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_each_calibration_method_keeps_accuracy(exported: OnnxModel, digits: Data, tmp_path: Path, method: str) -> None:
    config = QuantizeConfig(calibration_method=method, calibration_samples=256)
    made = quantize(exported, digits, tmp_path / "int8.onnx", config).model
    float_accuracy = accuracy(*predict(exported, digits, "test"))
    assert accuracy(*predict(made, digits, "test")) > float_accuracy - 4


@pytest.mark.parametrize("samples", [32, 96, 100])
def test_every_calibration_batch_counts(exported: OnnxModel, digits: Data, tmp_path: Path, samples: int) -> None:
    """The input's range must be that of all calibration samples, whatever their number is divisible by."""
    config = QuantizeConfig(activation_type="uint8", weight_type="int8", calibration_samples=samples)
    made = quantize(exported, digits, tmp_path / "int8.onnx", config).model
    graph = onnx.load(made.path).graph
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input")
    scale = next(numpy_helper.to_array(one) for one in graph.initializer if one.name == first.input[1])
    spread = 1 / made.preprocessing.std[0]  # digits run from 0 to 255 in any sample of a few dozen
    assert float(scale) == pytest.approx(spread / 255, rel=1e-3)


def test_metadata_and_history_travel(exported: OnnxModel, quantized: OnnxModel) -> None:
    assert quantized.preprocessing == exported.preprocessing
    assert quantized.labels == exported.labels
    assert [step.stage for step in quantized.history] == ["finetune", "export", "quantize"]
    assert quantized.history[-1].parent == exported.sha256


def test_a_quantized_file_is_not_quantized_again(quantized: OnnxModel, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="is int8 already; give the float32 file"):
        quantize(quantized, digits, tmp_path / "twice.onnx", QuantizeConfig())


def test_the_original_is_not_replaced(exported: OnnxModel, digits: Data) -> None:
    with pytest.raises(ToolError, match="is a file of the model to read, which stays; choose another --output"):
        quantize(exported, digits, exported.path, QuantizeConfig(form="qdq"), force=True)


def test_types_without_kernels_are_refused() -> None:
    with pytest.raises(ToolError, match="activation_type int8 with weight_type uint8 has no kernels"):
        QuantizeConfig(activation_type="int8", weight_type="uint8")


def test_a_type_that_would_not_be_written_is_refused(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    """With a scale per channel, ONNX Runtime's quantizer gives QLinearConv int8 weights, whatever is asked for."""
    with pytest.raises(ToolError, match="form qoperator with weight_type uint8 takes one scale per tensor"):
        QuantizeConfig(form="qoperator", weight_type="uint8")
    config = QuantizeConfig(form="qoperator", activation_type="uint8", weight_type="uint8", per_channel=False)
    graph = onnx.load(quantize(exported, digits, tmp_path / "int8.onnx", config).model.path).graph
    initializers = {one.name: one for one in graph.initializer}
    weights = [initializers[node.input[3]] for node in graph.node if node.op_type == "QLinearConv"]
    assert {one.data_type for one in weights} == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize("samples", [3, 5, 20])
def test_a_fixed_batch_need_not_divide_the_samples(
    exported: OnnxModel, digits: Data, tmp_path: Path, samples: int
) -> None:
    fixed, made = with_fixed_batch(exported, tmp_path, 4), tmp_path / "int8.onnx"
    config = QuantizeConfig(form="qdq", calibration_samples=samples, max_drop=20.0)
    assert quantize(fixed, digits, made, config).model.precision == "int8"
    if samples == 20:
        assert quantize_measured(fixed, digits, made, config, 1, no_progress, force=True).report.measured_speedup > 0
    assert quantize(fixed, digits, made, QuantizeConfig(), measure_speedups=twice_as_fast, force=True).report.tried


def test_a_node_to_exclude_that_does_not_exist_is_refused(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    name = next(node.name for node in onnx.load(exported.path).graph.node if node.op_type == "Conv")
    with pytest.raises(ToolError, match=f"no node '{name}_' to exclude. Did you mean '{name}'"):
        quantize(exported, digits, tmp_path / "x.onnx", QuantizeConfig(nodes_to_exclude=(f"{name}_",)))


def test_an_excluded_node_stays_in_float(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    nodes = [node.name for node in onnx.load(exported.path).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    config = QuantizeConfig(nodes_to_exclude=tuple(nodes), calibration_samples=32)
    made = quantize(exported, digits, tmp_path / "x.onnx", config).model
    assert zero_point_types(made.path)["weights"] == set()


def test_calibration_data_of_the_wrong_shape_is_refused(exported: OnnxModel, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    random = np.random.default_rng(0)
    np.savez(wrong, x_train=random.standard_normal((20, 1, 9, 9)).astype("f4"), y_train=np.arange(20) % 10)
    with pytest.raises(ToolError, match=r"takes images, .* holds samples that are not images"):
        quantize(exported, load_data(str(wrong)), tmp_path / "x.onnx", QuantizeConfig())
    assert not (tmp_path / "x.onnx").exists()


def test_calibration_data_of_another_length_is_refused(digits: Data, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((5, 2), np.float32), "w")
    sizes = {"x": ["n", 5], "y": ["n", 2]}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in sizes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "five.onnx"
    )
    np.savez(tmp_path / "six.npz", x_train=np.ones((40, 6), np.float32), y_train=np.arange(40) % 2)
    with pytest.raises(ToolError, match=r"cannot run the model on inputs of shape \(1, 6\)"):
        quantize(
            open_onnx(tmp_path / "five.onnx"), load_data(str(tmp_path / "six.npz")), tmp_path / "x", QuantizeConfig()
        )


@pytest.mark.parametrize(
    ("asked", "types", "bits"),
    [
        ({"form": "dynamic"}, ("uint8", "int8"), 7),
        ({"weight_type": "uint8"}, ("uint8", "uint8"), 8),
        ({"activation_type": "int8"}, ("int8", "int8"), 7),
        ({"activation_type": "uint8", "weight_type": "int8"}, ("uint8", "int8"), 7),
        ({"form": "qdq", "reduce_range": False}, ("uint8", "int8"), 8),
        ({"activation_type": "uint8", "weight_type": "uint8", "reduce_range": True}, ("uint8", "uint8"), 7),
    ],
)
@pytest.mark.parametrize("arm", [False, True], ids=["x86 without VNNI", "ARM"])
def test_what_is_not_asked_for_goes_with_what_is(
    monkeypatch: pytest.MonkeyPatch, arm: bool, asked: dict[str, object], types: tuple[str, str], bits: int
) -> None:
    monkeypatch.setattr(int8_layouts, "is_arm", lambda: arm)
    monkeypatch.setattr(int8_layouts, "int8_instructions", tuple)
    found = layout_asked(QuantizeConfig(**asked))
    if arm and "activation_type" not in asked and asked.get("form") == "qdq":
        types = ("int8", "int8")
    if arm and not asked.get("reduce_range"):
        bits = 8  # nothing saturates there
    assert (found.activation_type, found.weight_type) == types
    assert found.reduce_range == (bits == 7)


def test_a_dynamic_form_of_int8_activations_is_refused() -> None:
    with pytest.raises(ToolError, match="form dynamic rounds activations to uint8"):
        QuantizeConfig(form="dynamic", activation_type="int8")


def test_a_form_that_would_leave_all_in_float_is_refused(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    nodes = tuple(node.name for node in onnx.load(exported.path).graph.node)
    config = QuantizeConfig(form="qdq", nodes_to_exclude=nodes)
    with pytest.raises(ToolError, match=r"no product of .* becomes int8 in uint8/int8, qdq"):
        quantize(exported, digits, tmp_path / "x.onnx", config, measure_speedups=twice_as_fast)
    assert not (tmp_path / "x.onnx").exists()


def test_a_result_that_fails_verification_does_not_take_its_name(
    exported: OnnxModel, digits: Data, tmp_path: Path
) -> None:
    def too_strict(reference: OnnxModel, candidate: OnnxModel):
        return require_verified(verify(reference, candidate, VerifyConfig(atol=1e-9, rtol=0), digits))

    output = tmp_path / "int8.onnx"
    output.write_text("the last good file")
    with pytest.raises(GateMissedError, match=f"{output} does not match"):
        quantize(exported, digits, output, QuantizeConfig(calibration_samples=32), verify=too_strict, force=True)
    assert output.read_text() == "the last good file"
    assert list(tmp_path.iterdir()) == [output]


def test_the_cuda_provider_has_no_fast_static_int8(
    trained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does training help: it is not begun."""
    monkeypatch.setattr(int8_layouts, "provider_name", lambda _: "CUDAExecutionProvider")
    config, training = QuantizeConfig(), DistillConfig(quantization_aware=True)
    with pytest.raises(GateMissedError, match="no int8 form is faster than float32 on CUDA") as caught:
        quantize_trained(trained, digits, tmp_path / "x.onnx", config, training, 1, no_progress)
    assert caught.value.tried[0]["verdict"].startswith("not tried: ONNX Runtime's CUDA provider has no int8")
    assert list(tmp_path.iterdir()) == []


def test_the_original_is_untouched(exported: OnnxModel, quantized: OnnxModel) -> None:
    assert open_onnx(exported.path).sha256 == exported.sha256


@pytest.fixture(scope="module")
def paired(trained: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The digits' model with every feature, and so every weight of its last layer, standing there twice."""
    whole = cast(nn.Sequential, trained.module)
    last = cast(nn.Linear, whole[-1])
    wide = nn.Linear(2 * last.in_features, last.out_features)
    with torch.no_grad():
        wide.weight.copy_(last.weight.repeat_interleave(2, 1) / 2)
        wide.bias.copy_(last.bias)
    module = nn.Sequential(*whole[:-1], RepeatInterleave(), wide).eval()
    path = tmp_path_factory.mktemp("paired") / "float32.onnx"
    return export(replace(trained, module=module), path, ExportConfig()).model


class RepeatInterleave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, x], 2).flatten(1)


EIGHT_BITS = QuantizeConfig(activation_type="uint8", weight_type="int8", reduce_range=False)
SATURATES = saturates("int8")


def test_what_is_lost_without_vnni_is_told(
    paired: OnnxModel, digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(EIGHT_BITS, max_drop=100.0 if SATURATES else 4.0)
    report = quantize(paired, digits, tmp_path / "int8.onnx", config, measure_speedups=twice_as_fast).report
    assert report.drop_without_vnni > 5
    if SATURATES:
        assert report.drop == report.drop_without_vnni
    else:
        assert report.drop < 4
        assert "on x86 processors without VNNI" in caplog.text


@pytest.mark.skipif(not SATURATES, reason="this processor's int8 multiply does not saturate")
def test_what_saturation_loses_here_is_refused(paired: OnnxModel, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(GateMissedError, match=r"loses \d+\.\d+ points, more than 1"):
        quantize(paired, digits, tmp_path / "int8.onnx", EIGHT_BITS, measure_speedups=twice_as_fast)


def test_a_portable_file_loses_nothing_without_vnni(
    paired: OnnxModel, digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    portable = replace(EIGHT_BITS, reduce_range=True, max_drop=4.0)
    report = quantize(paired, digits, tmp_path / "portable.onnx", portable, measure_speedups=twice_as_fast).report
    assert report.drop_without_vnni == report.drop < 4
    assert "7-bit weights" in report.layout.title
    assert not caplog.text


def test_weights_beside_the_file_that_it_replaces_go(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    for name in ("int8.onnx", "int8.onnx.data"):
        (tmp_path / name).write_bytes(b"of before")
    config = QuantizeConfig(form="qdq", calibration_samples=64, max_drop=50.0)
    with pytest.raises(ToolError, match="exists already"):
        quantize(exported, digits, tmp_path / "int8.onnx", config)
    quantize(exported, digits, tmp_path / "int8.onnx", config, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def twice_as_fast(_: OnnxModel, files: Sequence[OnnxModel]) -> list[float]:
    return [2.0 for _ in files]


def test_an_operator_that_cannot_run_is_named(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    proto = onnx.load(exported.path)
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Swirl", "com.example"
    onnx.save(proto, tmp_path / "swirl.onnx")
    with pytest.raises(ToolError, match="Swirl"):
        quantize(open_onnx(tmp_path / "swirl.onnx"), digits, tmp_path / "int8.onnx", QuantizeConfig())
    assert [one.name for one in tmp_path.iterdir()] == ["swirl.onnx"]


def test_what_is_slower_is_written_as_asked_with_a_warning(
    exported: OnnxModel, digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = QuantizeConfig(form="qdq", calibration_samples=64, max_drop=5.0)
    quantize(exported, digits, tmp_path / "int8.onnx", config, measure_speedups=lambda _, files: [0.5 for _ in files])
    assert "the int8 file runs at 0.50x the speed of the float32 file: it does not help here" in caplog.text


def test_a_miss_of_verify_tells_what_was_tried(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    def verify(*_: OnnxModel) -> Report:
        raise GateMissedError("too noisy")

    config = QuantizeConfig(calibration_samples=64, max_drop=5.0)
    with pytest.raises(GateMissedError, match="too noisy") as caught:
        quantize(exported, digits, tmp_path / "int8.onnx", config, verify=verify, measure_speedups=twice_as_fast)
    verdicts = [row["verdict"] for row in caught.value.tried]
    assert "does not match the float32 file" in verdicts
    assert "kept" not in verdicts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"form": "qdq"}, {"form": "dynamic"}, {"per_channel": False}])
def test_what_is_given_is_obeyed_on_any_provider(settings: dict[str, object]) -> None:
    found = layout_asked(QuantizeConfig(provider="cuda", **settings))
    assert {name: getattr(found, name) for name in settings} == settings


def test_what_cannot_be_scored_is_not_trained(
    trained: TorchModel, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missed(*_: object, **__: object) -> None:
        raise GateMissedError("cannot be used", [{"speedup": 3.0, "drop": None}, {"speedup": 0.9, "drop": None}])

    monkeypatch.setattr(stages, "quantize_measured", missed)
    training = DistillConfig(quantization_aware=True)
    with pytest.raises(GateMissedError, match="cannot be used"):
        quantize_trained(trained, digits, tmp_path / "x.onnx", QuantizeConfig(), training, 1, no_progress)
