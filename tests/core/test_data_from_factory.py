"""Data from a user's function: arrays or datasets, and what it may not return."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.data_reference import load_data
from core.errors import ToolError

PythonFile = Callable[[str], Path]


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
        pytest.param("{'x_train': None, 'y_train': [0]}", "x_train is one value, not an array", id="array-is-none"),
        pytest.param("{'trian': [([1.0], 0)]}", "'trian'.* Did you mean 'train'|unknown", id="misspelt-split"),
        pytest.param("{'train': 3}", "train is not a map-style data set of", id="split-is-no-dataset"),
        pytest.param(
            "{'train': iter([([1.0], 0)])}", "train is not a map-style data set of", id="split-without-length"
        ),
        pytest.param("{'train': []}", "train.*no samples", id="empty-dataset"),
        pytest.param(
            "{'train': [[1.0]]}",
            r"train is not a map-style data set of \(sample, class index\)",
            id="samples-without-targets",
        ),
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
