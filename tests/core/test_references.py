"""The strings users name things with, and the factory files among them."""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ToolError
from core.references import (
    Reference,
    accepted,
    call_factory,
    existing_sha256,
    file_sha256,
    load_factory,
    missing_path,
    parse_reference,
)

PREFIXES = ("timm", "torchvision", "hf")


@pytest.mark.parametrize(
    ("text", "kind", "name", "file"),
    [
        pytest.param("timm:resnet18", "timm", "resnet18", None, id="prefix"),
        pytest.param("hf:org/name", "hf", "org/name", None, id="slash-in-name"),
        pytest.param("nets.py:cnn", "factory", "cnn", Path("nets.py"), id="factory"),
        pytest.param("a/b/nets.py:cnn", "factory", "cnn", Path("a/b/nets.py"), id="factory-in-folder"),
        pytest.param(r"C:\nets.py:cnn", "factory", "cnn", Path(r"C:\nets.py"), id="factory-on-windows"),
        pytest.param("folder/model.onnx", "path", "folder/model.onnx", None, id="path"),
        pytest.param(r"C:\model.onnx", "path", r"C:\model.onnx", None, id="windows-drive"),
        pytest.param("digits", "path", "digits", None, id="word"),
    ],
)
def test_a_reference_is_parsed(text: str, kind: str, name: str, file: Path | None) -> None:
    assert parse_reference(text, PREFIXES) == Reference(text, kind, name, {}, file)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("relu", "relu"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_arguments_are_typed(written: str, value: object) -> None:
    (made,) = parse_reference(f"timm:net,key={written}", PREFIXES).arguments.values()
    assert made == value
    assert type(made) is type(value)


def test_several_arguments_are_kept_in_order() -> None:
    arguments = parse_reference("timm:net, a=1 ,b=x", PREFIXES).arguments
    assert list(arguments.items()) == [("a", 1), ("b", "x")]


@pytest.mark.parametrize("pair", ["pretrained", "=3", ""])
def test_an_argument_that_is_no_pair_is_quoted(pair: str) -> None:
    with pytest.raises(ToolError, match=rf"'timm:net,{pair}': '{pair}' is not key=value"):
        parse_reference(f"timm:net,{pair}", PREFIXES)


def test_an_unknown_prefix_suggests_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"unknown kind 'tim'; known are timm:, .*FILE\.py.* Did you mean 'timm'\?"):
        parse_reference("tim:resnet18", PREFIXES)


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


def test_a_missing_path_in_a_missing_folder_has_no_suggestion(tmp_path: Path) -> None:
    assert str(missing_path(tmp_path / "no" / "a.onnx")) == f"{tmp_path}/no/a.onnx does not exist."


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest() == existing_sha256(tmp_path / "a")


def test_the_digest_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="gone does not exist"):
        existing_sha256(tmp_path / "gone")
