"""From a reference to a carrier: what a fresh architecture takes from itself, the reference, and the data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from core.batches import batches
from core.checkpoint import save_checkpoint
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.input_spec import parse_input_spec
from core.model_reference import load_model, load_onnx_model, load_torch_model, reference_digest
from core.onnx_model import OnnxModel
from core.preprocessing import Preprocessing
from core.torch_model import TorchModel

MakeFolder = Callable[..., Path]
MakeOnnx = Callable[..., Path]


def inputs_of(model: TorchModel, data: Data) -> torch.Tensor:
    return torch.cat([inputs for (inputs,), _ in batches(data.split("train"), model.preprocessing, 256)])


def test_a_factory_takes_classes_channels_and_statistics_from_the_data(factory_file: Path, digits: Data) -> None:
    model = load_torch_model(f"{factory_file}:cnn", digits)
    assert model.source.arguments == {"num_classes": 10, "in_chans": 1}
    assert model.inputs[0].shape == (1, 8, 8)
    assert model.labels == digits.labels
    inputs = inputs_of(model, digits)
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01


def test_a_constant_channel_gives_finite_inputs(tmp_path: Path, factory_file: Path) -> None:
    np.savez(tmp_path / "black.npz", x_train=np.zeros((20, 8, 8), np.uint8), y_train=np.arange(20) % 2)
    data = load_data(str(tmp_path / "black.npz"))
    model = load_torch_model(f"{factory_file}:cnn", data)
    assert inputs_of(model, data).isfinite().all()


def test_float_samples_are_not_preprocessed(tmp_path: Path, factory_file: Path) -> None:
    np.savez(tmp_path / "flat.npz", x_train=np.full((20, 5), 7.0), y_train=np.arange(20) % 3)
    data = load_data(str(tmp_path / "flat.npz"))
    model = load_torch_model(f"{factory_file}:mlp", data)
    assert model.inputs[0].shape == (5,)
    assert (inputs_of(model, data) == 7).all()


def test_without_data_the_input_shape_is_asked_for(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"nets\.py:cnn does not say what input it takes; give --data or --input-shape"):
        load_model(f"{factory_file}:cnn")
    model = load_torch_model(f"{factory_file}:cnn,num_classes=4", input_shape=(1, 6, 6))
    assert (model.inputs[0].shape, model.labels) == ((1, 6, 6), ("0", "1", "2", "3"))


def test_timm_declares_its_own_input() -> None:
    model = load_torch_model("timm:test_resnet")
    assert model.inputs[0].shape == (3, 160, 160)
    assert model.preprocessing.image_size == (160, 160)
    assert model.preprocessing.crop_ratio == 0.95
    assert len(model.labels) == 1000


def test_what_is_declared_goes_before_a_size_given_to_the_data(
    image_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder({"train/cat": 3, "train/dog": 3})
    load_torch_model("timm:test_resnet", load_data(str(root)))
    assert caplog.text == ""
    model = load_torch_model("timm:test_resnet", load_data(f"{root},image_size=160"))
    assert model.preprocessing.crop_ratio == 0.95
    assert "declares how images become its input (size 160, crop ratio 0.95), so image_size of the data" in caplog.text


@pytest.mark.parametrize(
    ("name", "side", "crop_ratio", "interpolation"),
    [
        ("squeezenet1_1", 224, 0.875, "bilinear"),
        ("shufflenet_v2_x1_5", 224, 224 / 232, "bilinear"),
        ("efficientnet_b1", 240, 240 / 255, "bilinear"),
        ("efficientnet_b2", 288, 1.0, "bicubic"),
    ],
)
def test_torchvision_declares_how_it_evaluates_its_weights(
    name: str, side: int, crop_ratio: float, interpolation: str
) -> None:
    model = load_torch_model(f"torchvision:{name},num_classes=4")
    preprocessing = model.preprocessing
    assert model.inputs[0].shape == (3, side, side)
    assert (preprocessing.crop_ratio, preprocessing.interpolation) == (crop_ratio, interpolation)
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_given_input_shape_wins_over_the_declared_one() -> None:
    model = load_torch_model("timm:test_resnet", input_shape=(3, 64, 64))
    assert model.inputs[0].shape == (3, 64, 64)
    assert model.preprocessing.crop_ratio == 1.0


def test_grey_data_builds_a_timm_model_of_one_channel(digits: Data) -> None:
    model = load_torch_model("timm:test_resnet", digits, input_shape=(1, 32, 32))
    assert model.source.arguments == {"num_classes": 10, "in_chans": 1}
    assert model.preprocessing.channels == 1


def test_images_of_mixed_size_need_a_size_to_resize_to(image_folder: MakeFolder, factory_file: Path) -> None:
    image_folder({"train/cat": 9, "train/dog": 9})
    root = image_folder({"train/cat": 1}, height=10)
    with pytest.raises(ToolError, match=r"images differ in size and .*nets\.py:cnn does not say .*image_size=PIXELS"):
        load_model(f"{factory_file}:cnn", load_data(str(root)))
    model = load_torch_model(f"{factory_file}:cnn,in_chans=3", load_data(f"{root},image_size=8"))
    assert model.inputs[0].shape == (3, 8, 8)


def test_the_seed_decides_the_weights(factory_file: Path) -> None:
    one, same, other = (
        load_torch_model(f"{factory_file}:mlp", input_shape=(5,), seed=seed).module.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_weights_come_from_a_safetensors_file(factory_file: Path, tmp_path: Path) -> None:
    first = load_torch_model(f"{factory_file}:mlp", input_shape=(5,), seed=1)
    save_file(first.module.state_dict(), tmp_path / "w.safetensors")
    again = load_torch_model(f"{factory_file}:mlp,weights={tmp_path}/w.safetensors", input_shape=(5,), seed=2)
    assert torch.equal(again.module[0].weight, first.module[0].weight)
    assert "weights" not in again.source.arguments


def test_pickled_weights_are_refused(factory_file: Path, tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(
        ToolError, match=r"w\.pt is not a \.safetensors file; convert it .*pickled weights can run code"
    ):
        load_model(f"{factory_file}:mlp,weights={tmp_path}/w.pt", input_shape=(5,))


def test_weights_that_are_not_there_are_named(factory_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"w\.safetensors does not exist"):
        load_model(f"{factory_file}:mlp,weights={tmp_path}/w.safetensors", input_shape=(5,))


def test_missing_weights_suggest_the_nearest_file(factory_file: Path, tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ToolError, match=r"Did you mean 'weights\.safetensors'\?"):
        load_model(f"{factory_file}:mlp,weights={tmp_path}/weihgts.safetensors", input_shape=(5,))


def test_a_number_of_classes_that_differs_from_the_data_is_told(factory_file: Path, digits: Data) -> None:
    with pytest.raises(
        ToolError, match=r"cnn,num_classes=4 has 4 classes, digits has 10; build it with num_classes=10"
    ):
        load_model(f"{factory_file}:cnn,num_classes=4", digits)


def test_an_input_that_the_model_cannot_take_names_the_failing_module(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot run on an input of shape \(3, 8, 8\), in its module '0': .*channels"):
        load_model(f"{factory_file}:cnn", input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("timm:resnte18", r"timm has no model 'resnte18'\. Did you mean 'resnet18'\?", id="timm"),
        pytest.param("torchvision:resnte18", r"torchvision has no model 'resnte18'\. Did you mean", id="torchvision"),
        pytest.param("trochvision:resnet18", r"unknown kind 'trochvision'.* Did you mean 'torchvision'\?", id="prefix"),
        pytest.param("timm:resnet18,pretrained", "'pretrained' is not key=value", id="no-pair"),
        pytest.param("nowhere.py:cnn", r"nowhere\.py does not exist", id="factory-file"),
        pytest.param("nowhere.onnx", r"nowhere\.onnx does not exist", id="onnx"),
        pytest.param("nowhere", "nowhere does not exist", id="path"),
    ],
)
def test_a_reference_to_nothing_is_told(text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_model(text)


def test_a_misspelt_factory_suggests_the_nearest(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"has no function 'clp'\. Did you mean 'mlp'\?"):
        load_model(f"{factory_file}:clp")


def test_a_misspelt_file_suggests_the_nearest(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx("model.onnx")
    for load in (load_model, load_onnx_model, reference_digest):
        with pytest.raises(ToolError, match=r"modle\.onnx does not exist\. Did you mean 'model\.onnx'\?"):
            load(str(path.with_name("modle.onnx")))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.h5"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ToolError, match=rf"{name} is not a model this tool reads: timm:NAME, .*an \.onnx file"):
        load_model(str(tmp_path / name))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"is not a checkpoint folder: it has no model\.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("argument", ["num_classes=3", "weights=other.safetensors"])
def test_an_argument_that_a_file_cannot_take_is_refused(
    linear_onnx: MakeOnnx, untrained: TorchModel, tmp_path: Path, argument: str
) -> None:
    save_checkpoint(untrained, tmp_path / "model")
    for path in (linear_onnx(), tmp_path / "model"):
        with pytest.raises(ToolError, match=argument.partition("=")[0]):
            load_model(f"{path},{argument}")


def test_an_onnx_file_cannot_be_trained(linear_onnx: MakeOnnx) -> None:
    with pytest.raises(ToolError, match=r"linear\.onnx is an ONNX file, whose weights cannot be trained or pruned"):
        load_torch_model(str(linear_onnx()))


def test_a_torch_model_cannot_be_run_as_onnx(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"nets\.py:mlp is not an \.onnx file; export it first: onnxpress export"):
        load_onnx_model(f"{factory_file}:mlp")


def test_files_and_folders_open_as_what_they_are(linear_onnx: MakeOnnx, untrained: TorchModel, tmp_path: Path) -> None:
    save_checkpoint(untrained, tmp_path / "model")
    assert isinstance(load_model(str(linear_onnx())), OnnxModel)
    assert isinstance(load_onnx_model(str(linear_onnx())), OnnxModel)
    assert isinstance(load_torch_model(str(tmp_path / "model")), TorchModel)


def test_colour_images_meet_a_model_of_one_channel(image_folder: MakeFolder, factory_file: Path) -> None:
    data = load_data(str(image_folder({"train/cat": 5, "train/dog": 5})))
    with pytest.raises(ToolError, match="the images have 3 channels, the model takes 1; build the model with in_chans"):
        load_model(f"{factory_file}:cnn,in_chans=1", data)


def test_whole_numbers_of_three_axes_are_no_images(python_file: Callable[[str], Path]) -> None:
    code = (
        "import torch\n"
        "class Flat(torch.nn.Module):\n    def forward(self, x): return x.float().flatten(1)\n"
        "def net(): return Flat()\n"
    )
    model = load_torch_model(f"{python_file(code)}:net", input_shape=(parse_input_spec("int64:2,3,3"),))
    assert model.inputs[0].dtype == "int64"
    assert model.preprocessing == Preprocessing()


def test_the_digest_of_a_reference_follows_files_and_arguments(factory_file: Path, tmp_path: Path) -> None:
    text = f"{factory_file}:mlp"
    found = {reference_digest(text), reference_digest(text)}
    assert len(found) == 1
    found.add(reference_digest(f"{text},num_classes=4"))
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    found.add(reference_digest(f"{text},weights={tmp_path}/w.safetensors"))
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    found.add(reference_digest(f"{text},weights={tmp_path}/w.safetensors"))
    factory_file.write_text(factory_file.read_text() + "# changed")
    found.add(reference_digest(text))
    assert len(found) == 5


def test_the_digest_of_a_checkpoint_follows_its_weights(untrained: TorchModel, tmp_path: Path) -> None:
    save_checkpoint(untrained, tmp_path / "model")
    before = reference_digest(str(tmp_path / "model"))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert reference_digest(str(tmp_path / "model")) != before


def test_the_digest_of_a_file_follows_the_weights_beside_it(exported: OnnxModel, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx.load(exported.path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = reference_digest(str(path))
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert reference_digest(str(path)) != before


def test_the_digest_of_a_folder_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not exist"):
        reference_digest(str(tmp_path))


def test_a_cut_image_met_by_the_statistics_is_one_line(
    image_folder: MakeFolder, factory_file: Path, cut: Callable[[Path, float], None]
) -> None:
    root = image_folder({"train/cat": 20})
    for path in root.rglob("*.png"):
        cut(path, 0.6)
    with Image.open(path) as image:
        assert image.size == (6, 8)
    with pytest.raises(ToolError, match=r"^cannot read the image .*; replace or remove it$") as caught:
        load_model(f"{factory_file}:cnn,in_chans=3", load_data(str(root)))
    assert "\n" not in str(caught.value)
