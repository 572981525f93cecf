"""The strings users name things with."""

import hashlib
from pathlib import Path

import pytest

from core.errors import ToolError
from core.references import Reference, existing_sha256, file_sha256, missing_path, parse_reference

PREFIXES = ("timm", "torchvision", "hf")


@pytest.mark.parametrize(
    ("text", "kind", "name", "file"),
    [
        pytest.param("timm:resnet18", "timm", "resnet18", None, id="prefix"),
        pytest.param("hf:org/name", "hf", "org/name", None, id="slash-in-name"),
        pytest.param("nets.py:cnn", "factory", "cnn", Path("nets.py"), id="factory"),
        pytest.param("a/b/nets.py:cnn", "factory", "cnn", Path("a/b/nets.py"), id="factory-in-folder"),
        pytest.param(r"C:\nets.py:cnn", "factory", "cnn", Path(r"C:\nets.py"), id="factory-on-windows"),
        pytest.param("hf:C:/models/bert", "hf", "C:/models/bert", None, id="windows-drive-behind-prefix"),
        pytest.param("hf:runs/12:30/bert", "hf", "runs/12:30/bert", None, id="colon-in-name"),
        pytest.param("runs/12:30/model.onnx", "path", "runs/12:30/model.onnx", None, id="colon-in-path"),
        pytest.param("12:30/nets.py:cnn", "factory", "cnn", Path("12:30/nets.py"), id="colon-in-folder"),
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


def test_a_missing_path_in_a_missing_folder_has_no_suggestion(tmp_path: Path) -> None:
    assert str(missing_path(tmp_path / "no" / "a.onnx")) == f"{tmp_path}/no/a.onnx does not exist."


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest() == existing_sha256(tmp_path / "a")


def test_the_digest_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="gone does not exist"):
        existing_sha256(tmp_path / "gone")
