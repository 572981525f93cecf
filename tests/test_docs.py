"""The documentation says what the code does."""

import ast
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cli import main

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
README = (ROOT / "README.md").read_text()
FLAGS = re.DOTALL | re.MULTILINE
FENCED = re.compile(r"^```\w+\n.*?^```$", FLAGS)  # in another language than the shell's


def test_the_command_reference_is_current() -> None:
    from make_cli_reference import REFERENCE, reference

    assert REFERENCE.read_text() == reference(), "run `make docs`"


def test_the_settings_reference_is_current_and_complete() -> None:
    from make_settings_reference import REFERENCE, reference

    assert REFERENCE.read_text() == reference(), "run `make docs`"
    assert "|  |\n" not in reference(), "a setting has no meaning"


def test_click_is_as_new_as_the_options_need() -> None:
    """`click.ParamType` takes a parameter since 8.4; with an older one no command would begin."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [click] = [Requirement(one) for one in dependencies if one.startswith("click")]
    assert list(click.specifier.filter(["8.2.0", "8.3.3", "8.4.0", "8.5.1"])) == ["8.4.0", "8.5.1"]


def shown_commands() -> list[list[str]]:
    names = [one.name for one in (ROOT / "docs").glob("*.md") if one.name != "cli.md"]  # which click writes
    pages = [README, *((ROOT / "docs" / name).read_text() for name in sorted(names))]
    blocks = [block for page in pages for block in re.findall(r"^```\n(.*?)^```$", FENCED.sub("", page), FLAGS)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    starts = [re.search(r"(?:^|--no-python )onnxpress (.*)", line) for line in lines]
    return [shlex.split(start[1], comments=True) for start in starts if start]


@pytest.mark.parametrize("arguments", shown_commands(), ids=lambda arguments: arguments[0])
def test_the_commands_shown_parse(arguments: list[str]) -> None:
    if "..." in arguments:
        return
    command = main.commands[arguments[0]]
    command.make_context(arguments[0], arguments[1:]).close()


def test_the_readme_names_every_command() -> None:
    assert set(re.findall(r"^\| `(\w+) ", README, re.MULTILINE)) == set(main.commands)


@pytest.mark.parametrize(
    "page", sorted(one.relative_to(ROOT) for one in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))), ids=str
)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()] == []


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.(?:py|toml))`", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


MAY_IMPORT = {
    "cli": {"invocation", "option_rules", "command_options", "options", "runner", "stages", "recipe"},
    "invocation": {"interruption", "terminal"},
    "option_rules": {"command_options"},
    "command_options": {"options"},
    "interruption": set(),
    "options": set(),
    "terminal": set(),
    "runner": {"stages", "run_folder", "recipe"},
    "stages": {"run_folder", "recipe"},
    "run_folder": {"recipe"},
    "recipe": {"stage_kinds"},
    "stage_kinds": set(),
}


def test_every_file_on_top_is_a_layer() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize(("module", "may_import"), list(MAY_IMPORT.items()))
def test_the_files_on_top_import_one_way(module: str, may_import: set[str]) -> None:
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported & set(MAY_IMPORT) <= may_import
