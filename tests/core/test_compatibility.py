"""What a model cannot be run on or taught by is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from core.compatibility import check_same_task, preprocessing_of
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.input_spec import InputSpec
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel, explain, open_onnx
from core.preprocessing import Preprocessing
from core.torch_model import TorchModel

MakeOnnx = Callable[..., Path]


@pytest.fixture
def mlp(factory_file: Path) -> TorchModel:
    """A network (N, 5) -> (N, 3)."""
    return load_torch_model(f"{factory_file}:mlp", input_shape=(5,))


def with_labels(path: Path, labels: tuple[str, ...]) -> OnnxModel:
    proto = onnx.load(path)
    explain(proto, history=(), inputs=(), preprocessing=None, labels=labels)
    onnx.save(proto, path)
    return open_onnx(path)


def test_images_are_not_guessed_at_for_a_foreign_file(linear_onnx: MakeOnnx, digits: Data) -> None:
    with pytest.raises(ToolError, match=r"linear\.onnx does not say how images become its input .*float samples"):
        preprocessing_of(open_onnx(linear_onnx()), digits)


def test_preprocessing_is_the_models_own(
    untrained: TorchModel, digits: Data, linear_onnx: MakeOnnx, tmp_path: Path
) -> None:
    np.savez(tmp_path / "floats.npz", x_test=np.zeros((3, 5), np.float32), y_test=np.arange(3))
    floats = load_data(str(tmp_path / "floats.npz"))
    assert preprocessing_of(untrained, digits) is untrained.preprocessing
    assert preprocessing_of(open_onnx(linear_onnx()), floats) == Preprocessing()


def test_models_of_one_task_pass(mlp: TorchModel, linear_onnx: MakeOnnx) -> None:
    check_same_task(mlp, mlp)
    check_same_task(mlp, open_onnx(linear_onnx()))
    check_same_task(mlp, with_labels(linear_onnx(), ("0", "1", "2")))


def test_a_teacher_of_other_inputs_is_refused(mlp: TorchModel, linear_onnx: MakeOnnx) -> None:
    wider = replace(mlp, name="wide", inputs=(InputSpec(name="x", shape=(6,)),))
    for teacher in (wider, replace(open_onnx(linear_onnx(num_features=6)), name="wide")):
        with pytest.raises(ToolError, match=r"the teacher wide takes inputs of shape \(6,\), the student .* of \(5,\)"):
            check_same_task(mlp, teacher)


def test_a_teacher_of_other_classes_is_refused(mlp: TorchModel, linear_onnx: MakeOnnx) -> None:
    four = replace(mlp, name="four", labels=("0", "1", "2", "3"))
    for teacher in (four, replace(open_onnx(linear_onnx(num_classes=4)), name="four")):
        with pytest.raises(
            ToolError, match=r"the teacher four has 4 classes, the student .* has 3; the classes must be"
        ):
            check_same_task(mlp, teacher)


def test_a_teacher_that_orders_its_classes_otherwise_is_refused(mlp: TorchModel, linear_onnx: MakeOnnx) -> None:
    for teacher in (replace(mlp, labels=("2", "0", "1")), with_labels(linear_onnx(), ("2", "0", "1"))):
        with pytest.raises(ToolError, match=r"orders its classes \('2', '0', '1'\), .*would be matched wrongly"):
            check_same_task(mlp, teacher)


def test_classes_that_one_renamed_class_has_moved_are_refused(mlp: TorchModel, linear_onnx: MakeOnnx) -> None:
    for labels in (("00", "0", "2"), ("1", "x", "2")):
        with pytest.raises(ToolError, match="logits would be matched wrongly"):
            check_same_task(mlp, with_labels(linear_onnx(), labels))
    check_same_task(mlp, with_labels(linear_onnx(), ("zero", "one", "two")))
    check_same_task(mlp, with_labels(linear_onnx(), ("0", "one", "2")))
