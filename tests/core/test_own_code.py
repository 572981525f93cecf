"""This package's own modules, and what of them a stage's result rests on."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from core.own_code import OWN_MODULES, STAGE_MODULES

ROOT = Path(__file__).parent.parent.parent


def test_our_own_modules_are_all_known() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_top = {name.partition(".")[0] for name in setuptools["packages"]}
    assert sorted(OWN_MODULES) == sorted([*on_top, *setuptools["py-modules"]])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The modules alone, without what else a checkout holds."""
    for name in OWN_MODULES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / f"{name}.py", tmp_path / f"{name}.py")
    return tmp_path


def digest(root: Path) -> str:
    script = "import sys; from core.own_code import code_digest; sys.stdout.write(code_digest())"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env={}, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_digest_follows_the_code_that_stages_run(copied: Path) -> None:
    before = digest(copied)
    (copied / "terminal.py").write_text("# only shows")
    assert digest(copied) == before
    (copied / STAGE_MODULES[0] / "latency.py").write_text("# computes otherwise")
    changed = digest(copied)
    assert changed != before
    (copied / "stages.py").write_text("# computes otherwise")
    assert digest(copied) != changed
