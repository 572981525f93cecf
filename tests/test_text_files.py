"""Text files are UTF-8 on every system: Windows's own encoding reads and writes something else."""

import ast
from pathlib import Path

import pytest

from core.own_code import OWN_MODULES

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for name in OWN_MODULES
    for path in (ROOT.joinpath(name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / f"{name}.py"])
)


def without_encoding(source: str) -> list[int]:
    """Return the lines of calls that read or write text and leave its encoding to the system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        is_text = name in ("read_text", "write_text") or (name == "open" and modes in ([], ["r"], ["w"], ["a"]))
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_module = isinstance(owner, ast.Name) and owner.id in ("Image", "tarfile")
        if is_text and not is_module and "encoding" not in [one.arg for one in node.keywords]:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_file_is_utf_8(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("call", ["path.read_text()", "path.write_text('a')", "path.open('w')", "open(path)"])
def test_a_call_that_leaves_the_encoding_open_is_found(call: str) -> None:
    assert without_encoding(call) == [1]
    assert without_encoding(f"{call[:-1]}, encoding='utf-8')".replace("(, ", "(")) == []
