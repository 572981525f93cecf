"""The checkpoint folder: ``model.safetensors`` and ``model.json``; loading rebuilds the source and replays the plan.

Of a text model also ``config.json`` and ``tokenizer.json``, as transformers writes them: it is rebuilt from these.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from core.errors import ToolError, did_you_mean
from core.factories import factory_sha256
from core.history import Step, digest_of
from core.input_spec import InputSpec
from core.model_source import build_module
from core.preprocessing import Preprocessing
from core.pruning_plan import PruningPlan, replay
from core.references import existing_sha256, missing_path
from core.torch_model import Source, TorchModel
from core.whole_output import refuse_overwrite, whole_folder

FORMAT_VERSION = "1.0"
PARTS = {"config.json": ("source", "config"), "tokenizer.json": ("preprocessing", "text", "tokenizer")}
"""File beside ``model.json`` -> where what it holds belongs in there."""
logger = logging.getLogger(__name__)


class CheckpointFile(BaseModel, frozen=True):
    """The contents of ``model.json``."""

    format_version: str
    name: str
    source: Source
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    plan: PruningPlan | None
    history: tuple[Step, ...]


def refuse_checkpoint(folder: Path, *, force: bool) -> None:
    """Raise `ToolError` where a checkpoint cannot take its place: before the work, not after it.

    Something stands there and `force` does not allow replacing it, or it is no checkpoint.
    """
    refuse_overwrite(folder, force=force)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").exists():
        raise ToolError(f"{folder} holds something else than a checkpoint, which replacing it would delete")


def save_checkpoint(model: TorchModel, folder: Path, *, extra_files: dict[str, str] | None = None) -> None:
    """Write a checkpoint folder whole, replacing what stood there.

    Args:
        model: What to save.
        folder: Where.
        extra_files: File name to text of what belongs beside the model: metrics, the report.

    Raises:
        ToolError: The file system refuses.
    """
    source = model.source
    if source.file is not None:
        source = source.model_copy(update={"file": _path_from(folder, source.file)})
    described = CheckpointFile(
        format_version=FORMAT_VERSION,
        name=model.name,
        source=source,
        inputs=model.inputs,
        preprocessing=model.preprocessing,
        labels=model.labels,
        plan=model.plan,
        history=model.history,
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.module.state_dict().items()}
    refuse_checkpoint(folder, force=True)
    with whole_folder(folder) as part:
        (part / "model.safetensors").write_bytes(save(_without_shared_memory(tensors)))
        values, texts = _taken_apart(described.model_dump(mode="json"))
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (part / "model.json").write_text(text, encoding="utf-8")
        for name, text in {**texts, **(extra_files or {})}.items():
            (part / name).write_text(text, encoding="utf-8")


def load_checkpoint(folder: Path) -> TorchModel:
    """Rebuild the model of a checkpoint folder.

    Raises:
        ToolError: A file is missing or damaged, the source is gone, or the weights do not fit.
    """
    described = read_checkpoint_file(folder)
    source = described.source
    if source.file is not None:
        source = _located(folder, source)
    module = build_module(source)
    if described.plan is not None:
        replay(module, described.plan)
    load_weights(module, folder / "model.safetensors")
    return TorchModel(
        name=described.name,
        module=module.eval(),
        source=source,
        inputs=described.inputs,
        preprocessing=described.preprocessing,
        labels=described.labels,
        plan=described.plan,
        history=described.history,
    )


def read_checkpoint_file(folder: Path) -> CheckpointFile:
    """Read ``model.json`` without building anything.

    Raises:
        ToolError: It is missing or damaged.
    """
    path = folder / "model.json"
    if not path.exists():
        raise ToolError(f"{folder} is not a checkpoint folder: it has no model.json")
    try:
        values = json.loads(path.read_bytes())
        described = CheckpointFile.model_validate(_put_together(values, folder) if isinstance(values, dict) else values)
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise ToolError(f"{path} is damaged: {error}") from error
        raise ToolError(f"{path} is damaged: {_first_line(error)}") from error
    if described.format_version != FORMAT_VERSION:
        raise ToolError(
            f"{path} has format version {described.format_version}, this onnxpress reads {FORMAT_VERSION}; update it"
        )
    if described.source.kind == "factory" and described.source.file is None:
        raise ToolError(f"{path} is damaged: source.file is missing")
    if described.source.kind == "hf" and described.source.config is None:
        raise ToolError(f"{folder} is damaged: it has no config.json, which its model is rebuilt from")
    return described


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files that a checkpoint is made of: two, and those of `PARTS` that are there."""
    parts = [folder / name for name in PARTS if (folder / name).is_file()]
    return [folder / "model.safetensors", folder / "model.json", *parts]


def checkpoint_digest(folder: Path) -> str:
    """Return a digest that changes with the files of a checkpoint, and with the factory's file that it is rebuilt by.

    Raises:
        ToolError: One of them is missing, or damaged.
    """
    files = [existing_sha256(file) for file in checkpoint_files(folder)]
    source = read_checkpoint_file(folder).source
    return digest_of([files, factory_sha256(_locate_factory(folder, source)) if source.file is not None else None])


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module, which must match it exactly.

    Raises:
        ToolError: The file is missing, damaged or not safetensors, or names and shapes differ.
    """
    tensors = read_tensors(path)
    expected = module.state_dict()
    unexpected = [name for name in tensors if name not in expected]
    for name in expected:
        if name not in tensors and not name.endswith("num_batches_tracked"):
            raise ToolError(f"{path} has no tensor {name!r}, which the model needs.{did_you_mean(name, unexpected)}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ToolError(f"{path} holds {name!r}, which the model does not have.{did_you_mean(name, expected)}")
        if tensor.shape != expected[name].shape:
            raise ToolError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(expected[name].shape)}"
            )
    module.load_state_dict(tensors, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ToolError: It is missing, damaged, or of another format.
    """
    if not path.exists():
        raise missing_path(path)
    if path.suffix != ".safetensors":
        raise ToolError(
            f"{path} is not a .safetensors file; convert it with safetensors.torch.save_file "
            "(pickled weights can run code when they are read, so they are not)"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ToolError(f"cannot read {path}: {error}; the file is damaged or cut short") from error


def _taken_apart(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Take what has a file of its own out of the contents of ``model.json``; return these, changed, and the files."""
    texts = {}
    for name, (*path, key) in PARTS.items():
        holder = _at(values, path)
        if holder is not None and holder[key] is not None:
            texts[name] = holder.pop(key)
    return values, texts


def _put_together(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name, (*path, key) in PARTS.items():
        holder = _at(values, path)
        if holder is not None and (folder / name).is_file():
            holder[key] = (folder / name).read_text(encoding="utf-8")
    return values


def _at(values: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    for key in path:
        inner = values.get(key)
        if not isinstance(inner, dict):
            return None
        values = inner
    return values


def _path_from(folder: Path, file: str) -> str:
    """Return the way from a folder, as it lies on the disk, to a file; from another drive than its there is none."""
    try:
        return os.path.relpath(file, folder.resolve())
    except ValueError:
        return file


def _located(folder: Path, source: Source) -> Source:
    """Return where a factory's file is and what it is now: what the module is rebuilt from."""
    file = _locate_factory(folder, source)
    now = factory_sha256(file)
    if source.file_sha256 is not None and now != source.file_sha256:
        logger.warning("%s has changed since %s was built from it", file, folder)
    return source.model_copy(update={"file": str(file), "file_sha256": now})


def _locate_factory(folder: Path, source: Source) -> Path:
    assert source.file is not None
    file = (folder.resolve() / source.file).resolve()
    if not file.exists():
        raise ToolError(
            f"{folder} was built by {source.name} in {file}, which does not exist; "
            "a checkpoint of a FILE.py:FACTORY needs that file at the same place relative to it"
        )
    return file


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clone tensors that share storage (tied weights), which the format does not express."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separate


def _first_line(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
