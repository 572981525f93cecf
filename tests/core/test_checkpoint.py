"""Checkpoint folders: bit-equal after loading, no pickle, damaged ones named, replaced whole."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, load_weights, read_checkpoint_file, read_tensors, save_checkpoint
from core.data import Data
from core.errors import ToolError
from core.history import step
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, example_inputs, torch_digest

Cut = Callable[[Path, float], None]

SAVE_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import ToolError
model = load_checkpoint(Path(sys.argv[1]))
for parameter in model.module.parameters():
    torch.nn.init.zeros_(parameter)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    save_checkpoint(model, Path(sys.argv[1]))
except ToolError as error:
    sys.stdout.write(str(error))
"""


@pytest.fixture
def plain(factory_file: Path, digits: Data) -> TorchModel:
    """A fresh network with statistics as training would leave them, and a step in its history."""
    model = load_torch_model(f"{factory_file}:cnn", digits)
    for norm in model.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return dataclasses.replace(model, history=(step("finetune", {"epochs": 3, "lr": 0.1}, parent="abc"),))


@pytest.fixture
def pruned(plain: TorchModel) -> TorchModel:
    return prune(plain, PruneConfig(pruning_ratio=0.5)).model


@pytest.fixture
def saved(plain: TorchModel, tmp_path: Path) -> Path:
    save_checkpoint(plain, tmp_path / "model")
    return tmp_path / "model"


def logits(model: TorchModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.module(*example_inputs(model, 4))
    return found


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", ["plain", "pruned"])
def test_a_loaded_model_gives_bit_equal_outputs(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: TorchModel = request.getfixturevalue(kind)
    save_checkpoint(model, tmp_path / "model")
    torch.manual_seed(99)
    loaded = load_checkpoint(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(model))
    assert not any(module.training for module in loaded.module.modules())
    for field in ("name", "source", "inputs", "preprocessing", "labels", "plan", "history"):
        assert getattr(loaded, field) == getattr(model, field), field
    assert torch_digest(loaded) == torch_digest(model)


def test_a_model_pruned_twice_is_rebuilt(pruned: TorchModel, tmp_path: Path) -> None:
    save_checkpoint(pruned, tmp_path / "once")
    twice = prune(load_checkpoint(tmp_path / "once"), PruneConfig(pruning_ratio=0.4)).model
    save_checkpoint(twice, tmp_path / "twice")
    loaded = load_checkpoint(tmp_path / "twice")
    assert torch.equal(logits(loaded), logits(twice))
    assert loaded.module[0].out_channels < pruned.module[0].out_channels


def test_a_library_model_is_rebuilt(tmp_path: Path) -> None:
    model = load_torch_model("timm:test_resnet,num_classes=4", input_shape=(3, 32, 32))
    save_checkpoint(model, tmp_path / "model")
    assert torch.equal(logits(load_checkpoint(tmp_path / "model")), logits(model))


def test_tied_weights_are_saved(python_file: Callable[[str], Path], tmp_path: Path) -> None:
    file = python_file(
        "from torch import nn\ndef tied(num_classes=5):\n"
        "    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, num_classes))\n"
        "    net[2].weight = net[0].weight\n    return net\n"
    )
    model = load_torch_model(f"{file}:tied", input_shape=(5,))
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.module[2].weight is loaded.module[0].weight


def test_the_folder_holds_tensors_and_text_only(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((saved / "model.json").read_text())["format_version"] == "1.0"
    for path in saved.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))  # a pickle, or torch's zip around one


def test_extra_files_lie_beside_the_model(plain: TorchModel, tmp_path: Path) -> None:
    save_checkpoint(plain, tmp_path / "model", extra_files={"report.json": "{}"})
    assert (tmp_path / "model" / "report.json").read_text() == "{}"


def test_saving_again_replaces_the_whole_folder(plain: TorchModel, saved: Path) -> None:
    (saved / "report.json").write_text("of the old model")
    save_checkpoint(plain, saved)
    assert not (saved / "report.json").exists()
    assert hidden(saved.parent) == []


def test_a_checkpoint_can_be_saved_over_what_it_was_loaded_from(saved: Path) -> None:
    model = load_checkpoint(saved)
    save_checkpoint(model, saved)
    assert torch.equal(logits(load_checkpoint(saved)), logits(model))


def test_a_checkpoint_moves_with_its_factory_file(plain: TorchModel, tmp_path: Path, factory_file: Path) -> None:
    (tmp_path / "here").mkdir()
    shutil.move(factory_file, tmp_path / "here" / "nets.py")
    source = plain.source.model_copy(update={"file": str(tmp_path / "here" / "nets.py")})
    save_checkpoint(dataclasses.replace(plain, source=source), tmp_path / "here" / "model")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(logits(load_checkpoint(tmp_path / "there" / "model")), logits(plain))


def test_a_checkpoint_may_be_reached_through_a_link(plain: TorchModel, tmp_path: Path) -> None:
    """The link lies deeper, or less deep, than what it leads to."""
    (tmp_path / "disk" / "far" / "away").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "far" / "away")
    save_checkpoint(plain, tmp_path / "runs" / "model")
    for folder in (tmp_path / "runs" / "model", tmp_path / "disk" / "far" / "away" / "model"):
        assert torch.equal(logits(load_checkpoint(folder)), logits(plain))


def test_a_factory_file_on_another_drive_is_named_in_full(
    plain: TorchModel, tmp_path: Path, factory_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_way(path: str, start: Path) -> str:
        raise ValueError(f"path is on mount 'C:', start on mount 'D:': {path}, {start}")

    monkeypatch.setattr("core.checkpoint.os.path.relpath", no_way)
    save_checkpoint(plain, tmp_path / "model")
    assert read_checkpoint_file(tmp_path / "model").source.file == str(factory_file)
    assert torch.equal(logits(load_checkpoint(tmp_path / "model")), logits(plain))


def test_a_checkpoint_without_its_factory_file_says_where_it_looked(saved: Path, factory_file: Path) -> None:
    factory_file.unlink()
    with pytest.raises(
        ToolError, match=rf"model was built by cnn in {factory_file}, which does not exist; a checkpoint"
    ):
        load_checkpoint(saved)


def test_a_factory_file_that_changed_is_warned_of(
    saved: Path, factory_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_checkpoint(saved)
        assert not caplog.records
        factory_file.write_text(factory_file.read_text() + "# changed\n")
        load_checkpoint(saved)
    assert f"{factory_file} has changed since {saved} was built from it" in caplog.text


def test_a_factory_that_builds_another_network_is_told(saved: Path, factory_file: Path) -> None:
    factory_file.write_text(factory_file.read_text().replace("width: int = 8", "width: int = 6"))
    with pytest.raises(
        ToolError, match=r"model\.safetensors: '0\.weight' has shape \(8, 1, 3, 3\), the model's .*\(6,"
    ):
        load_checkpoint(saved)


def test_a_factory_that_lost_a_pruned_layer_is_told(pruned: TorchModel, tmp_path: Path, factory_file: Path) -> None:
    save_checkpoint(pruned, tmp_path / "model")
    source = factory_file.read_text().replace("nn.Linear(2 * width, num_classes),", "nn.Linear(2 * width, 10)")
    factory_file.write_text(source.replace("nn.ReLU(),\n        nn.Conv2d", "nn.Conv2d"))
    with pytest.raises(ToolError, match=r"the pruning plan names the .*; its source has changed since"):
        load_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("keep", [0, 0.001, 0.1, 0.5, 0.9, -3])
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_file_cut_short_is_named(saved: Path, cut: Cut, name: str, keep: float) -> None:
    cut(saved / name, keep)
    with pytest.raises(ToolError, match=rf"model/{name}.*damaged") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ToolError, match=name.replace(".", r"\.")):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda values: values.pop("inputs"), "inputs: Field required", id="missing-field"),
        pytest.param(lambda values: values.update(labels=3), "labels: .*tuple|array", id="wrong-type"),
        pytest.param(lambda values: values["source"].update(kind="pickle"), "pickle", id="unknown-kind"),
        pytest.param(lambda values: values["source"].update(file=None), "file|nets", id="factory-without-file"),
        pytest.param(lambda values: values.update(format_version="9.0"), r"9\.0", id="future-format"),
        pytest.param(
            lambda values: values.update(plan={"shapes": {"0.weight": [-1]}}), "0.weight", id="negative-shape"
        ),
    ],
)
def test_a_damaged_description_is_named(saved: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    rewrite(saved / "model.json", change)
    with pytest.raises(ToolError, match=said):
        load_checkpoint(saved)


def test_a_folder_without_description_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"is not a checkpoint folder: it has no model\.json"):
        read_checkpoint_file(tmp_path)


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(without("0.weight"), "has no tensor '0.weight', which the model needs", id="missing"),
        pytest.param(
            lambda tensors: tensors.update({"fc.weight": tensors.pop("2.weight")}),
            r"has no tensor '2\.weight', which the model needs\. Did you mean 'fc\.weight'\?",
            id="renamed",
        ),
        pytest.param(
            lambda tensors: tensors.update({"0.wieght": torch.zeros(1)}),
            r"holds '0\.wieght', which the model does not have\. Did you mean '0\.weight'\?",
            id="unexpected",
        ),
        pytest.param(
            lambda tensors: tensors.update({"2.bias": torch.zeros(4)}),
            r"'2\.bias' has shape \(4,\), the model's has \(3,\)",
            id="wrong-shape",
        ),
        pytest.param(lambda tensors: tensors.clear(), "has no tensor '0.weight'", id="empty"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ToolError, match=rf"w\.safetensors:? {said}"):
        load_weights(module, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_weights_of_an_older_torch_may_lack_the_batch_counter(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items() if name != "num_batches_tracked"}
    save_file(tensors, tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    assert module.running_var.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.npz"])
def test_other_formats_are_refused_unread(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ToolError, match=rf"{name} is not a \.safetensors file; convert it with safetensors\.torch"):
        read_tensors(tmp_path / name)


def test_a_pickle_under_the_suffix_is_not_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ToolError, match=r"cannot read .*w\.safetensors: .*; the file is damaged"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_folder_under_the_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(ToolError, match=r"cannot read .*w\.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("limit_bytes", [pytest.param(0, id="nothing-fits", marks=pytest.mark.slow), 1000])
def test_a_full_disk_leaves_the_old_checkpoint(saved: Path, plain: TorchModel, limit_bytes: int) -> None:
    assert (saved / "model.safetensors").stat().st_size > 1000
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, saved, str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {saved}: File too large (")
    assert hidden(saved.parent) == []
    assert torch.equal(logits(load_checkpoint(saved)), logits(plain))


def test_saving_where_a_file_stands_in_the_way_is_refused(plain: TorchModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ToolError, match=r"cannot write .*/file/model: "):
        save_checkpoint(plain, tmp_path / "file" / "model")


def test_saving_and_loading_warn_of_nothing(plain: TorchModel, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(plain, tmp_path / "model")
        load_checkpoint(tmp_path / "model")
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(plain.module.state_dict())
