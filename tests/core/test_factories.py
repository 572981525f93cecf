"""The Python files that users name factories by, and the neighbours that these import."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import ToolError
from core.factories import (
    accepted,
    call_factory,
    factory_sha256,
    imported_files,
    load_factory,
)
from core.model_reference import load_torch_model, reference_digest
from core.references import file_sha256
from core.torch_model import torch_digest

LINEAR = """
from torch import nn
from layers import WIDTH

def net(num_classes=3):
    return nn.Linear(WIDTH, num_classes)
"""


def write(folder: Path, sources: dict[str, str]) -> Path:
    """Write Python files by their names, and return the first."""
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return folder / next(iter(sources))


def test_a_factory_is_loaded_and_called(factory_file: Path) -> None:
    module = call_factory(load_factory(factory_file, "mlp"), {"num_features": 7}, "nets.py:mlp")
    assert module[0].in_features == 7


def test_a_misspelt_factory_suggests_the_nearest(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"nets\.py has no function 'cmn'\. Did you mean 'cnn'\?"):
        load_factory(factory_file, "cmn")


def test_a_name_that_is_not_callable_is_no_factory(python_file: Callable[[str], Path]) -> None:
    with pytest.raises(ToolError, match="has no function 'width'"):
        load_factory(python_file("width = 3"), "width")


def test_a_misspelt_file_suggests_the_nearest(factory_file: Path) -> None:
    with pytest.raises(ToolError, match=r"net\.py does not exist\. Did you mean 'nets\.py'\?"):
        load_factory(factory_file.with_name("net.py"), "cnn")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("import nowhere_to_be_found", "ModuleNotFoundError: No module named", id="missing-import"),
        pytest.param("def f(:", "SyntaxError: ", id="syntax"),
        pytest.param("1 / 0", "ZeroDivisionError: division by zero", id="raises"),
        pytest.param("import sys\nsys.exit(3)", "SystemExit: 3", id="exits"),
        pytest.param("\0", "", id="not-python"),
    ],
)
def test_a_file_that_fails_on_import_says_why(python_file: Callable[[str], Path], source: str, said: str) -> None:
    with pytest.raises(ToolError, match=rf"cannot import .*users\.py: {said}"):
        load_factory(python_file(source), "f")


def test_a_file_with_a_dataclass_and_postponed_annotations_is_imported(python_file: Callable[[str], Path]) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    width: int = 3\n"
        "def width():\n    return Config().width\n"
    )
    assert load_factory(python_file(source), "width")() == 3


def test_the_source_of_what_a_file_defines_can_be_read(factory_file: Path) -> None:
    assert "num_features" in inspect.getsource(load_factory(factory_file, "mlp"))


def test_arguments_that_a_factory_does_not_take_are_named(factory_file: Path) -> None:
    factory = load_factory(factory_file, "mlp")
    with pytest.raises(ToolError, match=r"'nets.py:mlp': .*'depth'; the factory takes \(num_classes: int = 3"):
        call_factory(factory, {"depth": 3}, "nets.py:mlp")


def test_a_missing_required_argument_is_named(python_file: Callable[[str], Path]) -> None:
    factory = load_factory(python_file("def f(width):\n    return width"), "f")
    with pytest.raises(ToolError, match="missing a required argument: 'width'"):
        call_factory(factory, {}, "users.py:f")


def test_a_type_error_inside_the_factory_stays_a_bug(python_file: Callable[[str], Path]) -> None:
    factory = load_factory(python_file("def f():\n    return 1 + 'a'"), "f")
    with pytest.raises(TypeError, match="unsupported operand"):
        call_factory(factory, {}, "users.py:f")


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        pytest.param("def f(num_classes): ...", {"num_classes": 10}, id="some"),
        pytest.param("def f(**options): ...", {"num_classes": 10, "in_chans": 1}, id="any"),
        pytest.param("def f(): ...", {}, id="none"),
    ],
)
def test_only_accepted_defaults_are_passed(
    python_file: Callable[[str], Path], source: str, taken: dict[str, int]
) -> None:
    assert accepted(load_factory(python_file(source), "f"), {"num_classes": 10, "in_chans": 1}) == taken


@pytest.fixture
def reads_neighbours() -> str:
    """A file whose factory reads a module beside it, and one in a folder without ``__init__.py``, when it is called."""
    return "import layers\n\ndef width():\n    from layers import A\n    from parts.more import B\n    return A, B\n"


def test_neighbours_of_one_name_are_each_its_own_factory_s(tmp_path: Path, reads_neighbours: str) -> None:
    files = [
        write(
            tmp_path / name, {"nets.py": reads_neighbours, "layers.py": f"A = {width}", "parts/more.py": f"B = {width}"}
        )
        for name, width in (("a", 3), ("b", 5))
    ]
    made = [load_factory(file, "width") for file in files]
    assert [one() for one in made] == [(3, 3), (5, 5)]
    assert load_factory(files[0], "width")() == (3, 3)
    assert {one.__module__ for one in made} <= set(sys.modules)
    assert len({one.__module__ for one in made}) == 2


def test_neighbours_may_be_called_as_our_own_modules_are(tmp_path: Path) -> None:
    import core.errors

    source = (
        "import options\nfrom core.parts import A\n\ndef width():\n    import core.parts\n    return core.parts.A\n"
    )
    file = write(tmp_path, {"nets.py": source, "options.py": "", "core/__init__.py": "", "core/parts.py": "A = 3"})
    assert load_factory(file, "width")() == 3
    assert sys.modules["core.errors"] is core.errors
    assert "core.parts" not in sys.modules


def test_what_a_user_adds_to_the_path_stays(tmp_path: Path) -> None:
    library = write(tmp_path / "library", {"shared.py": "WIDTH = 3"}).parent
    source = f"import sys\nsys.path.insert(0, {str(library)!r})\n\ndef width():\n    from shared import WIDTH\n"
    file = write(tmp_path, {"nets.py": f"{source}    return WIDTH\n"})
    try:
        assert load_factory(file, "width")() == 3
    finally:
        sys.path.remove(str(library))


def test_a_file_imports_its_neighbours_through_one_another(tmp_path: Path) -> None:
    sources = {
        "nets.py": "import os, parts.deep\nfrom layers import *\n",
        "layers.py": "def f():\n    from parts import other\n",
        "parts/__init__.py": "",
        "parts/below.py": "from . import beside\nfrom .... import nowhere\nimport nets\n",
        "parts/beside.py": "",
        "parts/deep.py": "from .below import x\n",
        "parts/other.py": "def f(:",
    }
    write(tmp_path, sources | {"unused.py": "", "parts/unused.py": ""})
    found = [one.relative_to(tmp_path).as_posix() for one in imported_files(tmp_path / "nets.py")]
    assert found == sorted(sources)


def test_the_digest_of_a_factory_follows_what_it_imports(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone", {"nets.py": "WIDTH = 3"})
    assert factory_sha256(alone) == file_sha256(alone)
    file = write(tmp_path, {"nets.py": LINEAR, "layers.py": "WIDTH = 5"})
    before = factory_sha256(file)
    write(tmp_path, {"unused.py": ""})
    assert factory_sha256(file) == before
    write(tmp_path, {"layers.py": "WIDTH = 5  # changed"})
    assert factory_sha256(file) != before


@pytest.mark.parametrize("name", ["nets.py", "layers.py"])
def test_the_digests_of_a_checkpoint_follow_its_factory(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, {"nets.py": LINEAR, "layers.py": "WIDTH = 5\n"})
    model = load_torch_model(f"{file}:net", input_shape=(5,))
    save_checkpoint(model, tmp_path / "model")
    before = reference_digest(str(tmp_path / "model")), torch_digest(load_checkpoint(tmp_path / "model"))
    assert before[1] == torch_digest(model)
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
    after = reference_digest(str(tmp_path / "model")), torch_digest(load_checkpoint(tmp_path / "model"))
    assert before[0] != after[0]
    assert before[1] != after[1]
