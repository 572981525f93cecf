"""A file of another tool takes images as its user says, in whatever is done with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.compare import BenchConfig, bench
from compress.quantization.config import QuantizeConfig
from compress.quantization.quantize import quantize
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_model, load_onnx_model, reference_digest
from core.onnx_model import OnnxModel, open_onnx
from core.predict import predict
from core.preprocessing import Preprocessing
from export.verify import VerifyConfig, verify

STATED = ",mean=0.5:0.25:0.1,std=0.5:0.5:0.2"


def foreign(path: Path, height: int | str = 8, width: int | str = 8, dtype: int = TensorProto.FLOAT) -> Path:
    """Write a file (N, 3, H, W) -> (N, 2): a convolution, its mean over the image."""
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    convolved = "x" if dtype == TensorProto.FLOAT else "cast"
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Conv", [convolved, "W"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes[convolved == "x" :],
        "foreign",
        [helper.make_tensor_value_info("x", dtype, ("N", 3, height, width))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 2))],
        [numpy_helper.from_array(weight, "W")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Data:
    """Forty colour images of 10x10 in two classes."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (40, 10, 10, 3), dtype=np.uint8)
    targets = np.arange(40) % 2
    np.savez(tmp_path / "photos.npz", x_train=images, y_train=targets, x_test=images, y_test=targets)
    return load_data(str(tmp_path / "photos.npz"))


def test_images_become_its_input_as_stated(tmp_path: Path, photos: Data) -> None:
    text = f"{foreign(tmp_path / 'net.onnx')}{STATED},crop_ratio=0.8,interpolation=bicubic"
    model = load_onnx_model(text)
    assert model.preprocessing == Preprocessing(
        image_size=(8, 8),
        channels=3,
        crop_ratio=0.8,
        interpolation="bicubic",
        scale=1 / 255,
        mean=(0.5, 0.25, 0.1),
        std=(0.5, 0.5, 0.2),
    )
    plain = load_onnx_model(f"{tmp_path / 'net.onnx'},mean=0,std=1")
    assert not np.allclose(predict(model, photos, "test")[0], predict(plain, photos, "test")[0])
    assert model.sha256 != plain.sha256 != open_onnx(model.path).sha256
    assert reference_digest(text) != reference_digest(str(model.path))


def test_what_is_made_of_it_says_so_itself(tmp_path: Path, photos: Data) -> None:
    model = load_onnx_model(str(foreign(tmp_path / "net.onnx", "H", "W")) + STATED + ",image_size=8")
    made = quantize(
        model,
        photos,
        tmp_path / "int8.onnx",
        QuantizeConfig(max_drop=100),
        measure_speedups=lambda _, others: [2.0] * len(others),
    ).model
    assert made.preprocessing == model.preprocessing
    assert open_onnx(made.path).declared[0].shape == (3, 8, 8)
    report = bench([model, made], [BenchConfig(iterations=2, max_seconds=0.5)], photos)
    assert all(row.quality is not None for row in report.rows)
    assert verify(model, made, VerifyConfig(min_sqnr_db=5.0), photos).misses == ()


def test_sizes_that_a_file_leaves_open_are_those_of_the_samples(tmp_path: Path) -> None:
    path = foreign(tmp_path / "net.onnx", "H", "W")
    random = np.random.default_rng(2)
    samples = random.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "floats.npz", x_train=samples, x_test=samples, y_test=np.arange(40) % 2)
    floats = load_data(str(tmp_path / "floats.npz"))
    made = quantize(
        open_onnx(path),
        floats,
        tmp_path / "int8.onnx",
        QuantizeConfig(max_drop=100),
        measure_speedups=lambda _, others: [2.0] * len(others),
    ).model
    report = bench([open_onnx(path), made], [BenchConfig(iterations=2, max_seconds=0.5)], floats)
    assert all(row.quality is not None for row in report.rows)


def test_a_free_size_is_needed_and_a_fixed_one_is_kept(tmp_path: Path) -> None:
    free = foreign(tmp_path / "free.onnx", "H", "W")
    assert load_onnx_model(f"{free},image_size=16").declared[0].shape == (3, 16, 16)
    with pytest.raises(ToolError, match=r"leaves the images' size open; add image_size=PIXELS"):
        load_model(f"{free}{STATED}")
    fixed = foreign(tmp_path / "fixed.onnx", 8, 6)
    read = load_onnx_model(f"{fixed}{STATED}").preprocessing
    assert read is not None
    assert read.image_size == (8, 6)
    with pytest.raises(
        ToolError, match=r"the file takes images of 8x6 \(height and width\), which image_size must agree with"
    ):
        load_model(f"{fixed},image_size=8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (",meen=0.5", r"unknown argument 'meen'; it takes image_size, .*Did you mean 'mean'"),
        (",mean=0.5:0.5,std=1", r"mean is '0.5:0.5'; it is a number a channel, like 0.5:0.5:0.5"),
        (",mean=a:b:c,std=1", r"mean is 'a:b:c'; it is a number a channel"),
        (",mean=0.5", "mean and std go together"),
        (",mean=0,std=0", "each std must be above 0"),
        (",crop_ratio=2", r"crop_ratio is 2.0; it must be in \(0, 1\]"),
        (",scale=x", "scale is 'x'; it is a number"),
        (",scale=0", "scale is above 0, and every number finite"),
        (",mean=nan,std=1", "scale is above 0, and every number finite"),
        (",interpolation=box", "interpolation is 'box'; it is one of nearest, nearest-exact, bilinear, bicubic"),
        (",image_size=true", "image_size is True; it is a number of pixels"),
        (",interpolation=cubic", "interpolation is 'cubic'; it is one of nearest, .*bicubic"),
        (",image_size=big", "image_size is 'big'; it is a number of pixels"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_onnx_model(f"{foreign(tmp_path / 'net.onnx')}{arguments}")


def test_other_inputs_than_images_are_refused(tmp_path: Path, linear_onnx: Callable[..., Path]) -> None:
    for path in (linear_onnx(), foreign(tmp_path / "bytes.onnx", dtype=TensorProto.UINT8)):
        with pytest.raises(ToolError, match=r"what can be said of an input is how images become one of float32"):
            load_model(f"{path}{STATED}")


def test_a_file_that_says_itself_is_not_contradicted(exported: OnnxModel) -> None:
    with pytest.raises(ToolError, match=r"says itself how its input is made; drop mean, std"):
        load_model(f"{exported.path}{STATED}")
