"""The folder of a recipe's run: where each stage's output is, which stages are done, and the models they made."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from core.checkpoint import checkpoint_files, load_checkpoint
from core.data import Data
from core.external_data import data_file
from core.history import digest_of
from core.machine import determining_versions, this_machine
from core.model import Model
from core.model_reference import load_model, load_onnx_model, reference_digest, require_torch
from core.onnx_model import OnnxModel, open_onnx
from core.own_code import code_digest
from core.progress import Progress
from core.references import existing_sha256, file_sha256
from core.torch_model import TorchModel
from recipe import Recipe, Stage


class Done(BaseModel, frozen=True):
    """What a finished stage leaves in ``done.json``.

    Attributes:
        key: Digest of everything that determines the stage.
        digest: Digest of the model it made, empty when it made none; part of the key of what stands on it.
        files_digest: Of the files that hold the model and its report, so that damaged ones are made again.
        seconds: How long it took.
    """

    key: str
    digest: str
    files_digest: str
    seconds: float


@dataclass(slots=True)
class RunFolder:
    """A recipe being run into a folder; models once loaded stay in memory."""

    recipe: Recipe
    data: Data
    output: Path
    progress: Progress
    models: dict[tuple[str, int], Model] = field(default_factory=dict)

    def folder(self, stage: Stage) -> Path:
        """Where the stage's output, report and ``done.json`` are."""
        return self.output / stage.name

    def path(self, stage: Stage) -> Path:
        """Where the stage's model is: a checkpoint folder or an .onnx file."""
        return self.folder(stage) / ("model.onnx" if stage.does.makes == "onnx" else "checkpoint")

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, None when no stage is called so."""
        return next((stage for stage in self.recipe.stages if stage.name == name), None)

    def model(self, reference: str, seed: int = 0) -> Model:
        """The model that a stage's name or a reference stands for; `seed` is for fresh weights."""
        stage = self.stage(reference)
        key = (reference, 0 if stage else seed)
        if key not in self.models:
            self.models[key] = self._made(stage) if stage else load_model(reference, self.data, seed=seed)
        return self.models[key]

    def torch(self, reference: str, seed: int = 0) -> TorchModel:
        """The same, which must be a torch model."""
        return require_torch(self.model(reference, seed), reference)

    def onnx(self, reference: str) -> OnnxModel:
        """The same, which must be an ONNX file."""
        model = self.model(reference)
        return model if isinstance(model, OnnxModel) else load_onnx_model(reference)

    def _made(self, stage: Stage) -> Model:
        path = self.path(stage)
        return open_onnx(path) if stage.does.makes == "onnx" else load_checkpoint(path)

    def done(self, stage: Stage) -> Done | None:
        """What the stage left when it finished, None when it did not."""
        path = self.folder(stage) / "done.json"
        try:
            return Done.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def is_done(self, stage: Stage) -> bool:
        """Tell whether the stage finished as it stands now and its files are as it left them."""
        done = self.done(stage)
        if done is None or done.key != self.key(stage):
            return False
        return done.files_digest == self.files_digest(stage)

    def files_digest(self, stage: Stage) -> str:
        """Digest of the files that the stage left."""
        path = self.path(stage)
        model = checkpoint_files(path) if path.is_dir() else [path]
        files = [*model, *(one for one in [data_file(path)] if one.exists()), self.folder(stage) / "report.json"]
        return digest_of([file_sha256(file) if file.is_file() else None for file in files])

    def key(self, stage: Stage) -> str:
        """Digest of everything that determines the stage.

        Files and measurements are redone when this package's code is not the same; what makes a torch model, which may
        take hours or have hours of training built on it, only for another version.
        """
        return digest_of(
            [
                stage.kind,
                dataclasses.asdict(stage.config),
                {role: self.digest(role, named) for role, named in stage.read.items()},
                self.data.fingerprint,
                self.recipe.skip_bad,
                determining_versions(),
                code_digest() if stage.does.makes != "torch" else None,
                self.measured_where(stage),
            ]
        )

    def measured_where(self, stage: Stage) -> Any:
        """What a measurement depends on beside its stage's config: nothing for stages that run no file to judge it."""
        if not stage.does.is_measured:
            return None
        return [this_machine().model_dump(), self.recipe.provider, self.recipe.threads]

    def digest(self, role: str, named: str | list[str]) -> Any:
        """What a reference stands for, so that the key changes when it does."""
        if isinstance(named, list):
            return [self.digest(role, one) for one in named]
        if stage := self.stage(named):
            done = self.done(stage)
            return done.digest if done else None
        if role == "weights":
            return existing_sha256(Path(named))
        return reference_digest(named)
