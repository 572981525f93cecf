"""The lineage of a model: which steps made it, from what, with which packages."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from core.machine import package_versions


class Step(BaseModel, frozen=True):
    """One stage that a model went through.

    Attributes:
        stage: The verb: ``finetune``, ``distill``, ``prune``, ``export``, ``quantize``.
        config: The stage's configuration as it ran.
        versions: Package name to installed version.
        parent: Digest of the model that went in.
        data: Fingerprint of the data that was read, or None when the stage reads none.
        teachers: Digests of the models that taught, for ``distill``.
    """

    stage: str
    config: dict[str, Any]
    versions: dict[str, str]
    parent: str
    data: str | None = None
    teachers: tuple[str, ...] = ()


History = tuple[Step, ...]


def step(
    stage: str, config: dict[str, Any], *, parent: str, data: str | None = None, teachers: tuple[str, ...] = ()
) -> Step:
    """Make the history entry of a stage that runs now, with the packages installed now.

    The config is held as JSON holds it, so that an entry equals itself after a trip through a file.
    """
    plain = json.loads(json.dumps(config))
    return Step(stage=stage, config=plain, versions=package_versions(), parent=parent, data=data, teachers=teachers)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
