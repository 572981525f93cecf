"""The simulated multiply of x86 processors without VNNI: against its definition, and against an emulated processor."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_layouts import saturates
from compress.quantization.quantize import quantize
from compress.quantization.saturation import saturating
from core.batches import batches
from core.data import Data
from core.onnx_model import OnnxModel
from core.sessions import open_session

IN, WEIGHT, OUT = 1 / 255, 1 / 127, 0.1
CONVOLUTIONS = {
    "channels": {"weight": (24, 16, 3, 3), "pads": [1, 1, 1, 1]},
    "odd channels": {"weight": (24, 3, 3, 3), "pads": [0, 1, 1, 2]},
    "strided": {"weight": (8, 5, 3, 5), "strides": [2, 3]},
    "dilated": {"weight": (8, 4, 3, 3), "dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "grouped": {"weight": (24, 8, 3, 3), "group": 2},
    "pointwise": {"weight": (24, 16, 1, 1), "strides": [2, 2]},
    "one axis": {"weight": (8, 6, 3), "pads": [1, 1]},
    "same": {"weight": (8, 6, 4, 3), "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same, lower": {"weight": (8, 6, 4, 2), "auto_pad": "SAME_LOWER"},
    "depthwise": {"weight": (16, 1, 3, 3), "group": 16},
    "depthwise, two each": {"weight": (32, 1, 3, 3), "group": 16},
}
MATRICES = {"MatMul": (64, 40), "Gemm": (63, 40), "Gemm, transposed": (40, 63)}


def qdq_file(operator: str, shape: tuple[int, ...], weight: NDArray[np.int8], signed: bool, **attributes: object):
    """Return a file of one operator, its input, weight and output rounded."""
    kind = np.int8 if signed else np.uint8
    constants = {
        "in scale": np.float32(IN), "in zero": kind(-100 if signed else 28), "weight": weight,
        "weight scale": np.float32(WEIGHT), "weight zero": np.int8(0), "out scale": np.float32(OUT),
        "out zero": np.uint8(128),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "in scale", "in zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "in scale", "in zero"], ["given"]),
            helper.make_node("DequantizeLinear", ["weight", "weight scale", "weight zero"], ["w"]),
            helper.make_node(operator, ["given", "w"], ["product"], **attributes),
            helper.make_node("QuantizeLinear", ["product", "out scale", "out zero"], ["kept"]),
            helper.make_node("DequantizeLinear", ["kept", "out scale", "out zero"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def dynamic_file() -> onnx.ModelProto:
    """Return a file of one product whose input is rounded by the range it has when the file runs."""
    weight = np.random.default_rng(0).integers(-127, 128, (64, 40)).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["codes", "weight", "zero", "weight zero"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.int8(0), "weight zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def example(name: str, signed: bool = False) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    if name in MATRICES:
        weight = random.integers(-127, 128, MATRICES[name]).astype(np.int8)
        operator, _, transposed = name.partition(", ")
        attributes = {"transB": 1} if transposed else {}
        return qdq_file(operator, (weight.shape[1 if transposed else 0],), weight, signed, **attributes)
    settings = dict(CONVOLUTIONS[name])
    weight = random.integers(-127, 128, settings.pop("weight")).astype(np.int8)
    channels = weight.shape[1] * settings.get("group", 1)
    return qdq_file("Conv", (channels, *[9, 11][: weight.ndim - 2]), weight, signed, **settings)


def samples(proto: onnx.ModelProto) -> NDArray[np.float32]:
    sizes = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    zero = int(numpy_helper.to_array(proto.graph.initializer[1]))
    low = -128 if zero < 0 else 0
    codes = np.random.default_rng(1).integers(low, low + 256, (4, *sizes))
    return ((codes - zero) * np.float32(IN)).astype(np.float32)


def answers(proto: onnx.ModelProto, folder: Path) -> NDArray[np.float32]:
    onnx.save(proto, folder / "file.onnx")
    return open_session(folder / "file.onnx").run(None, {"x": samples(proto)})[0]


def summed(values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what vpmaddubsw makes of rows (M, K) and columns (K, O)."""
    total = np.zeros((len(values), weights.shape[1]), np.int64)
    for first in range(0, values.shape[1], 2):
        pair = values[:, first : first + 2] @ weights[first : first + 2]
        total += pair.clip(-(2**15), 2**15 - 1)
    return total


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", list(MATRICES))
def test_a_matrix_is_summed_in_pairs_of_sixteen_bits(name: str, signed: bool, tmp_path: Path) -> None:
    proto = example(name, signed)
    weight = numpy_helper.to_array(proto.graph.initializer[2]).astype(np.int64)
    weight = weight.T if "transposed" in name else weight
    zero = int(numpy_helper.to_array(proto.graph.initializer[1]))
    codes = np.rint(samples(proto) / IN).astype(np.int64) + zero
    offset = 128 if signed else 0
    exact = summed(codes + offset, weight) - (zero + offset) * weight.sum(0)
    expected = (np.rint(exact * (IN * WEIGHT / OUT)) + 128).clip(0, 255) - 128
    found = answers(saturating(proto), tmp_path) / OUT
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.allclose(found, answers(proto, tmp_path) / OUT, atol=0.01) == saturates("int8")


def windows(codes: NDArray[np.int64], kernel: tuple[int, ...], zero: int, settings: dict) -> NDArray[np.int64]:
    """Return what each output place of a convolution reads of codes (N, C, ...): (N, C, ..., positions)."""
    rank = len(kernel)
    strides, dilations = settings.get("strides", [1] * rank), settings.get("dilations", [1] * rank)
    reaches = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = settings.get("pads", [0] * 2 * rank)
    around = [(pads[axis], pads[axis + rank]) for axis in range(rank)]
    if "auto_pad" in settings:
        sizes = [-(-size // stride) for size, stride in zip(codes.shape[2:], strides, strict=True)]
        short = [
            (out - 1) * stride + reach - size
            for out, stride, reach, size in zip(sizes, strides, reaches, codes.shape[2:], strict=True)
        ]
        around = [(one // 2, one - one // 2) for one in short]
        around = around if settings["auto_pad"] == "SAME_UPPER" else [(after, before) for before, after in around]
    padded = np.pad(codes, [(0, 0), (0, 0), *around], constant_values=zero)
    axes = tuple(range(2, 2 + rank))
    seen = np.lib.stride_tricks.sliding_window_view(padded, reaches, axes)
    seen = seen[(..., *(slice(None, None, one) for one in dilations))]
    seen = seen[(slice(None), slice(None), *(slice(None, None, one) for one in strides))]
    return seen.reshape(*seen.shape[: 2 + rank], -1)


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "depthwise"])
def test_a_convolution_is_summed_in_pairs_of_sixteen_bits(name: str, signed: bool, tmp_path: Path) -> None:
    proto = example(name, signed)
    weight = numpy_helper.to_array(proto.graph.initializer[2]).astype(np.int64)
    zero = int(numpy_helper.to_array(proto.graph.initializer[1]))
    codes = np.rint(samples(proto) / IN).astype(np.int64) + zero
    offset = 128 if signed else 0
    settings = CONVOLUTIONS[name]
    groups = settings.get("group", 1)
    seen = windows(codes, weight.shape[2:], zero, settings) + offset
    sums = []
    for read, of_group in zip(np.split(seen, groups, 1), np.split(weight, groups), strict=True):
        rows = np.moveaxis(read, 1, -1)  # position by position, channels last
        columns = np.moveaxis(of_group.reshape(*of_group.shape[:2], -1), 1, -1).reshape(len(of_group), -1).T
        total = summed(rows.reshape(-1, len(columns)), columns) - (zero + offset) * columns.sum(0)
        sums.append(np.moveaxis(total.reshape(*rows.shape[:-2], -1), -1, 1))
    expected = (np.rint(np.concatenate(sums, 1) * (IN * WEIGHT / OUT)) + 128).clip(0, 255) - 128
    found = answers(saturating(proto), tmp_path) / OUT
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_weights_of_seven_bits_cannot_saturate() -> None:
    proto = example("channels")
    weight = numpy_helper.to_array(proto.graph.initializer[2])
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight // 2, "weight"))
    assert saturating(proto) is None


@pytest.mark.parametrize("name", ["depthwise"])
def test_depthwise_kernels_do_not_saturate(name: str) -> None:
    assert saturating(example(name)) is None


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(
            ["qemu-x86_64", "-cpu", "Haswell"],
            marks=pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-user is not installed"),
            id="Intel's Haswell of 2013, emulated",
        ),
        pytest.param(
            [],
            marks=pytest.mark.skipif(not saturates("int8"), reason="this processor's int8 multiply does not saturate"),
            id="this one",
        ),
    ],
)
def test_a_processor_without_vnni_answers_alike(
    exported: OnnxModel, digits: Data, tmp_path: Path, processor: list[str]
) -> None:
    expected, files = {}, []
    for name, signed in itertools.product([*CONVOLUTIONS, *MATRICES], [False, True]):
        proto = example(name, signed)
        key = f"{name} {signed}"
        expected[key] = answers(saturating(proto) or proto, tmp_path)
        onnx.save(proto, tmp_path / f"{key}.onnx")
        np.save(tmp_path / f"{key}.npy", samples(proto))
        files.append(key)
    dynamic = dynamic_file()
    onnx.save(dynamic, tmp_path / "dynamic.onnx")
    onnx.save(saturating(dynamic), tmp_path / "dynamic-saturated.onnx")
    np.save(tmp_path / "dynamic.npy", values := np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32))
    expected["dynamic"] = open_session(tmp_path / "dynamic-saturated.onnx").run(None, {"x": values})[0]
    inputs = next(batches(digits.split("test"), exported.preprocessing, 100))[0][0].numpy()
    eight_bits = QuantizeConfig(activation_type="uint8", weight_type="int8", reduce_range=False)
    quantize(exported, digits, tmp_path / "digits.onnx", eight_bits)
    onnx.save(saturating(onnx.load(tmp_path / "digits.onnx")), tmp_path / "saturated.onnx")
    expected["digits"] = open_session(tmp_path / "saturated.onnx").run(None, {"input": inputs})[0]
    np.save(tmp_path / "digits.npy", inputs)
    files += ["dynamic", "digits"]
    script = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "ort.set_default_logger_severity(4)\n"
        "options = ort.SessionOptions(); options.intra_op_num_threads = 1\n"
        "for name in sys.argv[1:]:\n"
        "    session = ort.InferenceSession(name + '.onnx', options, providers=['CPUExecutionProvider'])\n"
        "    np.save(name + '.out.npy', session.run(None, {session.get_inputs()[0].name: np.load(name + '.npy')})[0])\n"
    )
    packages = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    subprocess.run(
        [*processor, os.path.realpath(sys.executable), "-c", script, *files],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": packages, "OPENBLAS_NUM_THREADS": "1"},
        check=True,
        stderr=subprocess.DEVNULL,
    )
    alike = {
        key: np.isclose(np.load(tmp_path / f"{key}.out.npy"), expected[key], atol=1e-4).reshape(len(expected[key]), -1)
        for key in files
    }
    whole = alike.pop("digits").all(1)  # samples: a value midway between two codes may be rounded up here, down there
    assert whole.mean() > 0.95
    assert not [key for key, one in alike.items() if not one.all()]
