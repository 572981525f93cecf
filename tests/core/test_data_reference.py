"""From a reference to data: digits, folders, .npz files, torchvision and factories, whole or damaged."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data import Data, batches
from core.data_reference import load_data
from core.errors import ToolError
from core.preprocessing import Preprocessing

MakeFolder = Callable[..., Path]
MakeNpz = Callable[..., str]
PythonFile = Callable[[str], Path]

FLOATS: dict[str, Any] = {
    "x_train": np.random.default_rng(0).normal(size=(40, 5)),
    "y_train": np.arange(40) % 4,
    "x_test": np.ones((8, 5)),
    "y_test": np.arange(8) % 4,
}


def indices_of(data: Data, split: str) -> list[int]:
    return data.split(split).indices.tolist()


def pixels_of(data: Data, split: str) -> torch.Tensor:
    assert data.sample_shape is not None
    settings = Preprocessing(image_size=data.sample_shape[1:], channels=data.sample_shape[0])
    return torch.cat([inputs for inputs, _ in batches(data.split(split), settings, 64)])


def test_the_digits_are_all_there() -> None:
    data = load_data("digits")
    assert {split: len(data.split(split)) for split in ("train", "validation", "test")} == {
        "train": 1294,
        "validation": 144,
        "test": 359,
    }
    assert data.labels == tuple("0123456789")
    assert (data.sample_shape, data.is_image) == ((1, 8, 8), True)
    assert pixels_of(data, "test").max() == 255


def test_the_validation_split_is_disjoint_and_the_same_on_each_load() -> None:
    one, other = load_data("digits"), load_data("digits")
    assert indices_of(one, "validation") == indices_of(other, "validation")
    assert not set(indices_of(one, "validation")) & set(indices_of(one, "train"))
    assert len({*indices_of(one, "validation"), *indices_of(one, "train")}) == 1438
    assert one.fingerprint == other.fingerprint


def test_an_npz_file_is_read(npz: MakeNpz) -> None:
    data = load_data(npz(**FLOATS, labels=["a", "b", "c", "d"]))
    assert (data.labels, data.sample_shape, data.is_image) == (("a", "b", "c", "d"), (5,), False)
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (36, 4, 8)


def test_the_share_held_out_can_be_asked_for() -> None:
    tenth, fiftieth = load_data("digits"), load_data("digits,validation_ratio=0.02")
    assert (len(fiftieth.split("train")), len(fiftieth.split("validation"))) == (1409, 29)
    assert tenth.fingerprint != fiftieth.fingerprint


@pytest.mark.parametrize("ratio", ["0.0", "1.0", "-0.1", "2", "yes"])
def test_a_share_that_leaves_nothing_is_refused(ratio: str) -> None:
    with pytest.raises(ToolError, match=r"validation_ratio is .*; it is a share of train, such as 0\.1"):
        load_data(f"digits,validation_ratio={ratio}")


def test_a_share_of_train_is_refused_where_nothing_is_held_out(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="brings its own validation split; drop validation_ratio"):
        load_data(f"{npz(**FLOATS, x_val=np.zeros((3, 5)), y_val=[0, 1, 2])},validation_ratio=0.1")


def test_a_validation_split_that_is_given_is_used(npz: MakeNpz) -> None:
    data = load_data(npz(**FLOATS, x_val=np.zeros((3, 5)), y_val=[0, 1, 2]))
    assert (len(data.split("train")), len(data.split("validation"))) == (40, 3)


def test_labels_follow_from_the_highest_target(npz: MakeNpz) -> None:
    assert load_data(npz(**FLOATS)).labels == ("0", "1", "2", "3")


def test_absent_splits_are_none_and_named(npz: MakeNpz) -> None:
    data = load_data(npz(x_test=np.ones((2, 5)), y_test=[0, 1]))
    assert (data.train, data.validation) == (None, None)
    for split in ("train", "validation"):
        with pytest.raises(ToolError, match=rf"data\.npz has no {split} split"):
            data.split(split)


def test_training_samples_may_lack_labels(npz: MakeNpz) -> None:
    data = load_data(npz(**{name: array for name, array in FLOATS.items() if name != "y_train"}))
    assert (len(data.split("train")), len(data.split("validation"))) == (36, 4)
    assert not data.split("train").is_labelled
    assert not data.split("validation").is_labelled
    assert data.split("test").is_labelled


def test_the_fingerprint_follows_the_contents(npz: MakeNpz) -> None:
    one = load_data(npz(**FLOATS)).fingerprint
    assert load_data(npz(**FLOATS)).fingerprint == one
    assert load_data(npz(**FLOATS | {"y_test": np.zeros(8, int)})).fingerprint != one


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"x_tset": 1}, r"unknown array 'x_tset'\. Did you mean 'x_test'\?", id="unknown-array"),
        pytest.param({"y_test": None}, "x_test without y_test; only x_train may do without", id="x-without-y"),
        pytest.param({"x_test": np.ones((8, 6))}, r"differ in the shape of a sample: \[\(5,\), \(6,\)\]", id="shapes"),
        pytest.param({"x_train": np.full((40, 5), np.nan)}, "x_train holds NaN .* in 40 samples, .*index 0", id="nan"),
        pytest.param({"y_train": np.arange(39)}, r"y_train has shape \(39,\), but there are 40 samples", id="length"),
        pytest.param({"y_train": np.arange(40) / 2}, "y_train is float64: class indices are integers", id="floats"),
        pytest.param({"y_test": np.full(8, -1)}, "y_test holds 8 labels out of range, the first -1", id="negative"),
        pytest.param({"labels": ["a", "b"]}, "the first 2 at index 2; classes run from 0 to 1", id="too-high"),
        pytest.param({"x_test": np.ones((0, 5)), "y_test": []}, "x_test holds no samples", id="empty-split"),
        pytest.param({"x_train": np.array(3.0)}, "x_train", id="one-number"),
        pytest.param({"labels": np.array("abcd")}, "labels", id="labels-not-a-list"),
        pytest.param({"y_train": np.arange(40) % 2 * 3}, "no training sample of class '1', '2'", id="unseen-class"),
        pytest.param({"labels": list("abcde")}, "no training sample of class 'e'", id="unseen-label"),
        pytest.param(
            {"x_train": np.zeros((40, 5, 5), np.uint8), "x_test": np.zeros((8, 1, 5, 5))},
            "differ",
            id="images-and-floats",
        ),
    ],
)
def test_arrays_that_cannot_be_used_are_named(npz: MakeNpz, changed: dict[str, Any], said: str) -> None:
    arrays = {name: value for name, value in (FLOATS | changed).items() if value is not None}
    with pytest.raises(ToolError, match=said) as caught:
        load_data(npz(**arrays))
    assert "data.npz" in str(caught.value)


def test_y_without_x_is_named(npz: MakeNpz) -> None:
    arrays = {name: value for name, value in FLOATS.items() if name != "x_test"}
    with pytest.raises(ToolError, match="holds y_test without x_test"):
        load_data(npz(**arrays))


def test_an_npz_file_without_samples_is_refused(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="holds none of x_train, x_val and x_test"):
        load_data(npz(labels=["a"]))


def test_a_training_split_too_small_to_hold_validation_out_is_refused(npz: MakeNpz) -> None:
    with pytest.raises(ToolError, match="sample"):
        load_data(npz(x_train=np.ones((1, 5)), y_train=[0]))


@pytest.mark.parametrize("keep", [0, 0.01, 0.3, 0.6, 0.9, -1])
def test_an_npz_file_cut_short_is_named(npz: MakeNpz, cut: Callable[[Path, float], None], keep: float) -> None:
    path = npz(**FLOATS)
    cut(Path(path), keep)
    with pytest.raises(ToolError, match=r"cannot read .*data\.npz: .*; the file is damaged") as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


def error_of(text: str) -> str | None:
    try:
        load_data(text)
    except ToolError as error:
        return str(error)
    return None


def test_a_flipped_byte_in_a_zip_directory_is_harmless_or_named(npz: MakeNpz) -> None:
    path = Path(npz(x_test=np.ones((2, 2)), y_test=[0, 1]))
    whole = path.read_bytes()
    errors = []
    for position in range(whole.index(b"PK\x01\x02"), len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        errors.append(error_of(str(path)))
    assert any(errors)
    assert all(error is None or "data.npz" in error for error in errors)


def test_pickled_arrays_are_never_read(npz: MakeNpz) -> None:
    path = npz(x_train=np.array([{"a": 1}, None], dtype=object), y_train=[0, 1])
    with pytest.raises(ToolError, match="the file is damaged or holds Python objects"):
        load_data(path)


def test_a_bare_npy_array_under_the_suffix_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones((3, 2)))
    with pytest.raises(ToolError, match=r"data\.npz"):
        load_data(str(tmp_path / "data.npz"))


def test_a_missing_file_suggests_the_nearest(npz: MakeNpz) -> None:
    path = npz(**FLOATS)
    with pytest.raises(ToolError, match=r"dta\.npz does not exist\. Did you mean 'data\.npz'\?"):
        load_data(path.replace("data.npz", "dta.npz"))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(ToolError, match=r"data\.xlsx is not data this tool reads: a folder with train/CLASS/"):
        load_data(str(tmp_path / "data.xlsx"))


@pytest.mark.parametrize("text", ["hf:mnist"])
def test_what_is_not_supported_yet_says_so(text: str) -> None:
    with pytest.raises(ToolError, match=f"'{text}': .*not supported yet; use a folder or an .npz file"):
        load_data(text)


def test_an_unknown_prefix_suggests_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"unknown kind 'torchvison'.* Did you mean 'torchvision'\?"):
        load_data("torchvison:MNIST")


def test_an_unknown_argument_of_a_folder_suggests_the_nearest(image_folder: MakeFolder) -> None:
    with pytest.raises(ToolError, match=r"'image_sise'.* Did you mean 'image_size'\?"):
        load_data(f"{image_folder({'train/cat': 2})},image_sise=8")


def test_an_argument_of_what_takes_none_is_refused(npz: MakeNpz) -> None:
    for text in (npz(**FLOATS), "digits"):
        with pytest.raises(ToolError, match="'image_size'"):
            load_data(f"{text},image_size=16")


def test_a_folder_is_read(image_folder: MakeFolder) -> None:
    root = image_folder({"train/cat": 12, "train/dog": 8, "val/cat": 3, "val/dog": 1, "test/dog": 2})
    data = load_data(str(root))
    assert (data.labels, data.sample_shape, data.is_image) == (("cat", "dog"), (3, 8, 6), True)
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (20, 4, 2)
    assert data.split("test").labels().tolist() == [1, 1]


def test_a_folder_with_only_val_uses_it_as_test(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"train/cat": 10, "train/dog": 10, "val/cat": 3})))
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (18, 2, 3)


def test_a_folder_without_train_uses_its_only_split_as_test(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"val/cat": 3, "val/dog": 1})))
    assert (data.train, data.validation) == (None, None)
    assert len(data.split("test")) == 4


def test_a_folder_with_only_train_has_no_test_split(image_folder: MakeFolder) -> None:
    data = load_data(str(image_folder({"train/cat": 10})))
    assert data.test is None
    with pytest.raises(ToolError, match="images has no test split"):
        data.split("test")


def test_grey_images_have_one_channel(image_folder: MakeFolder) -> None:
    root = image_folder({"train/cat": 2}, mode="L")
    assert load_data(str(root)).sample_shape == (1, 8, 6)
    assert load_data(f"{root},mode=RGB").sample_shape == (3, 8, 6)


def test_images_of_mixed_size_have_no_shape_until_one_is_asked_for(image_folder: MakeFolder) -> None:
    image_folder({"train/cat": 2})
    root = image_folder({"train/cat": 1}, height=10)
    assert load_data(str(root)).sample_shape is None
    data = load_data(f"{root},image_size=4")
    assert data.sample_shape == (3, 4, 4)
    assert pixels_of(data, "train").shape[1:] == (3, 4, 4)


def test_images_of_mixed_mode_are_refused_until_one_is_asked_for(image_folder: MakeFolder) -> None:
    image_folder({"train/cat": 2})
    root = image_folder({"train/cat": 2}, mode="L")
    with pytest.raises(ToolError, match="add ',mode=RGB' or ',mode=L' to the data"):
        load_data(str(root))
    assert pixels_of(load_data(f"{root},mode=L"), "train").shape == (3, 1, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param("mode=CMYK", "mode is 'CMYK'; it is RGB or L", id="mode"),
        pytest.param("image_size=big", "image_size", id="size-not-a-number"),
        pytest.param("image_size=0", "image_size", id="no-pixels"),
        pytest.param("image_size=-4", "image_size", id="negative"),
        pytest.param("image_size=4.5", "image_size", id="fraction"),
    ],
)
def test_arguments_of_a_folder_are_checked(image_folder: MakeFolder, arguments: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(f"{image_folder({'train/cat': 2})},{arguments}")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        pytest.param({"cat": 2}, "holds none of train/, val/ and test/; images belong in", id="no-train"),
        pytest.param({"test": 2}, "test holds no class folders", id="no-classes"),
        pytest.param({"train/cat": 2, "train/dog": 0}, "class folder .*dog is empty", id="empty-class"),
        pytest.param({"train/cat": 2, "val/dog": 2}, "val/dog is a class that train/ does not have", id="new-class"),
    ],
)
def test_a_folder_laid_out_wrongly_says_where(image_folder: MakeFolder, counts: dict[str, int], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(str(image_folder(counts)))


def test_the_fingerprint_of_a_folder_follows_its_files(image_folder: MakeFolder) -> None:
    one = load_data(str(image_folder({"train/cat": 2}))).fingerprint
    other = load_data(str(image_folder({"train/cat": 3}))).fingerprint
    assert one != other


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """The root of a small data set in MNIST's own files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        targets = np.arange(count) % 10
        write_idx(raw / f"{name}-images-idx3-ubyte", np.broadcast_to(targets[:, None, None] * 20, (count, 28, 28)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", targets)
    return tmp_path


def test_a_torchvision_data_set_is_read(mnist: Path) -> None:
    data = load_data(f"torchvision:MNIST,root={mnist}")
    assert (data.sample_shape, data.is_image) == ((1, 28, 28), True)
    assert data.labels[:2] == ("0 - zero", "1 - one")
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (27, 3, 10)
    assert pixels_of(data, "test")[:, 0, 0, 0].tolist() == [20 * digit for digit in range(10)]


def test_a_misspelt_torchvision_data_set_suggests_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"torchvision has no data set 'MNITS'\. Did you mean 'MNIST'\?"):
        load_data("torchvision:MNITS")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("torchvision:FakeData", "has no train and test splits; wrap it in a FILE.py", id="no-splits"),
        pytest.param("torchvision:MNIST,rot=x", "'rot'.*; the factory takes", id="unknown-argument"),
    ],
)
def test_a_torchvision_data_set_that_cannot_be_made_says_why(text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(text)


def test_a_torchvision_data_set_that_is_not_there_says_so(tmp_path: Path) -> None:
    text = f"torchvision:MNIST,root={tmp_path},download=false"
    with pytest.raises(ToolError, match=f"cannot get {text}: Dataset not found"):
        load_data(text)


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, -1])
@pytest.mark.filterwarnings("ignore:.*not writable:UserWarning")
def test_a_torchvision_file_cut_short_is_named(mnist: Path, cut: Callable[[Path, float], None], keep: float) -> None:
    cut(mnist / "MNIST" / "raw" / "train-images-idx3-ubyte", keep)
    with pytest.raises(ToolError, match="cannot get torchvision:MNIST"):
        load_data(f"torchvision:MNIST,root={mnist}")


def test_a_factory_may_return_arrays(python_file: PythonFile) -> None:
    file = python_file(
        "import torch\ndef make(count=20):\n"
        "    y = torch.arange(count) % 2\n"
        "    return {'x_train': torch.ones(count, 3), 'y_train': y, 'labels': ['a', 'b']}\n"
    )
    data = load_data(f"{file}:make,count=30")
    assert (len(data.split("train")), data.sample_shape, data.labels) == (27, (3,), ("a", "b"))


@pytest.mark.parametrize("labels", ["['a', 'b']", "np.array(['a', 'b'])", "('a', 'b')"])
def test_a_factory_may_return_datasets(python_file: PythonFile, labels: str) -> None:
    file = python_file(
        "import numpy as np\nfrom torch.utils.data import TensorDataset\nimport torch\n"
        "def make():\n"
        "    train = TensorDataset(torch.ones(10, 3), torch.arange(10) % 2)\n"
        f"    return {{'train': train, 'test': train, 'labels': {labels}}}\n"
    )
    data = load_data(f"{file}:make")
    assert (len(data.split("train")), len(data.split("test")), data.labels) == (9, 10, ("a", "b"))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        pytest.param("3", "returned int; it must return a mapping: either x_train", id="no-mapping"),
        pytest.param("{}", "returned dict; it must return a mapping", id="nothing"),
        pytest.param("{'x_test': [[1.0]]}", "holds x_test without y_test", id="x-without-y"),
        pytest.param("{'x_train': None, 'y_train': [0]}", "x_train", id="array-is-none"),
        pytest.param("{'trian': [([1.0], 0)]}", "'trian'.* Did you mean 'train'|unknown", id="misspelt-split"),
        pytest.param("{'train': 3}", "train", id="split-is-no-dataset"),
        pytest.param("{'train': iter([([1.0], 0)])}", "train", id="split-without-length"),
        pytest.param("{'train': []}", "train.*no samples", id="empty-dataset"),
        pytest.param("{'train': [[1.0]]}", "train", id="samples-without-targets"),
        pytest.param("{'train': [([1.0], 0), ([1.0, 2.0], 0)]}", "samples of train differ in shape", id="shapes"),
        pytest.param("{'train': [([1.0], 0.5), ([1.0], 1.5)]}", "class indices are integers", id="float-targets"),
        pytest.param("{'train': [([1.0], 'cat'), ([1.0], 'dog')]}", "class indices are integers", id="text-targets"),
        pytest.param("{'labels': ['a']}", "none of", id="labels-alone"),
    ],
)
def test_a_factory_that_returns_the_wrong_thing_is_told(python_file: PythonFile, returned: str, said: str) -> None:
    file = python_file(f"def make():\n    return {returned}\n")
    with pytest.raises(ToolError, match=said) as caught:
        load_data(f"{file}:make")
    assert "users.py:make" in str(caught.value)


def test_the_fingerprint_of_a_factory_follows_its_file(python_file: PythonFile) -> None:
    source = "def make():\n    return {'x_test': [[1.0], [2.0]], 'y_test': [0, 1]}\n"
    one = load_data(f"{python_file(source)}:make").fingerprint
    assert load_data(f"{python_file(source + '# changed')}:make").fingerprint != one
