"""This package's own code: what its modules are called, and a digest of those that a stage's result rests on."""

import hashlib
from functools import cache
from pathlib import Path

STAGE_MODULES = ("bench", "compress", "core", "export", "stages")
OWN_MODULES = (
    *STAGE_MODULES,
    *("cli", "command_options", "interruption", "invocation", "option_rules", "options"),
    *("recipe", "recipes", "run_folder", "runner", "stage_kinds", "terminal"),
)


@cache
def code_digest() -> str:
    """Return the SHA-256 over what stages run: a version alone does not tell one commit from the next."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in STAGE_MODULES:
        for path in [root / f"{name}.py"] if (root / f"{name}.py").exists() else sorted((root / name).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
