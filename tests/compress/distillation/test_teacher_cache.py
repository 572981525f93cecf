"""A teacher's answers kept on disk: the same losses, fewer runs, and refused where they would be wrong."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import StopHereError

from compress.distillation import teachers as teachers_module
from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.distillation.teacher_cache import TeacherCache
from core.data import Data
from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel

SETTINGS = {"epochs": 4, "batch_size": 64, "crop_padding": 1, "flip": True, "augmentations": 2}


def curve(student: TorchModel, teacher: Any, data: Data, cache: Path | None, **settings: Any) -> list[float]:
    config = DistillConfig(**{**SETTINGS, **settings})
    metrics = distill(student, teacher, data, config, teacher_cache=cache).report.metrics
    return [entry["train_loss"] for entry in metrics]


@pytest.fixture
def num_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many batches teachers were run on while training."""
    count = [0]
    original = teachers_module.logits_of

    def counted(*arguments: Any, **options: Any) -> Any:
        run = original(*arguments, **options)

        def answer(inputs: torch.Tensor) -> torch.Tensor:
            count[0] += 1
            return run(inputs)

        return answer

    monkeypatch.setattr(teachers_module, "logits_of", counted)
    return lambda: count[0]


def test_the_losses_are_those_without_a_cache(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    uncached = curve(untrained, trained, few_digits, None)
    assert num_runs() == 4 * 4
    cached = curve(untrained, trained, few_digits, tmp_path / "cache")
    assert num_runs() == 4 * 4 + 2 * 4  # two augmentations, once each
    assert cached == pytest.approx(uncached, rel=1e-6)
    again = curve(untrained, trained, few_digits, tmp_path / "cache", lr=0.05)
    assert num_runs() == 4 * 4 + 2 * 4
    assert again == pytest.approx(uncached, rel=1e-6)


def test_in_bfloat16_too_the_losses_are_those_without_a_cache(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    before = num_runs()
    uncached, cached, again = (
        curve(untrained, trained, few_digits, cache, precision="bfloat16", kd_ratio=1.0)
        for cache in (None, tmp_path / "cache", tmp_path / "cache")
    )
    assert num_runs() == before + 4 * 4 + 2 * 4  # what was said in float32 is not taken for it
    assert cached == pytest.approx(uncached, rel=1e-6)
    assert again == pytest.approx(uncached, rel=1e-6)


def test_what_a_file_says_is_shared_by_runs_of_any_precision(
    untrained: TorchModel, exported: OnnxModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    curve(untrained, exported, few_digits, tmp_path / "cache")
    before = num_runs()
    curve(untrained, exported, few_digits, tmp_path / "cache", precision="bfloat16")
    assert num_runs() == before


def test_another_student_and_batch_size_share_it(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    before = num_runs()
    cached = curve(untrained, trained, few_digits, tmp_path / "cache", batch_size=32, method="dist")
    assert num_runs() == before
    assert cached == pytest.approx(curve(untrained, trained, few_digits, None, batch_size=32, method="dist"), rel=1e-5)


def test_two_teachers_share_a_cache(
    untrained: TorchModel, trained: TorchModel, exported: OnnxModel, few_digits: Data, tmp_path: Path
) -> None:
    pair = [trained, exported]
    cached = curve(untrained, pair, few_digits, tmp_path / "cache", teacher_weights=(1.0, 3.0))
    assert cached == pytest.approx(curve(untrained, pair, few_digits, None, teacher_weights=(1.0, 3.0)), rel=1e-5)


def test_a_run_that_was_cut_off_goes_on_with_what_is_there(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    def stop(description: str, done: int, total: int, unit: str) -> None:
        if done == 3:
            raise StopHereError

    config = DistillConfig(**SETTINGS)
    with pytest.raises(StopHereError):
        distill(untrained, trained, few_digits, config, teacher_cache=tmp_path / "cache", progress=stop)
    assert num_runs() == 3
    cached = curve(untrained, trained, few_digits, tmp_path / "cache")
    assert num_runs() == 3 + 1 + 4
    assert cached == pytest.approx(curve(untrained, trained, few_digits, None), rel=1e-6)


def test_a_full_cache_stops_growing_and_the_teacher_runs_again(
    untrained: TorchModel,
    trained: TorchModel,
    few_digits: Data,
    tmp_path: Path,
    num_runs: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    one_variant = 256 * (4 * 10 + 1)
    cached = curve(untrained, trained, few_digits, tmp_path / "cache", teacher_cache_gb=1.5 * one_variant / 1e9)
    assert num_runs() == 4 + 2 * 4
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("variant-*")) == one_variant
    assert [record.message for record in caplog.records if "is full" in record.message] != []
    assert cached == pytest.approx(curve(untrained, trained, few_digits, None), rel=1e-6)


def test_without_augmentation_the_teacher_runs_once(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache", crop_padding=0, flip=False, augmentations=0)
    assert num_runs() == 4


def test_what_a_kill_left_half_written_does_not_block(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".teacher-cache.{gone.pid}.part.json").write_text("{")
    TeacherCache(tmp_path, {"data": "x"}, num_samples=1, num_outputs=1, limit_bytes=10)


def test_changed_data_is_refused(untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    changed = dataclasses.replace(few_digits, fingerprint="changed")
    with pytest.raises(ToolError, match=r"was made with another data .*; name another folder or remove it"):
        curve(untrained, trained, changed, tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "what"), [({"seed": 1}, "seed"), ({"crop_padding": 2}, "augmentation")], ids=["seed", "augmentation"]
)
def test_another_augmentation_is_refused(
    settings: dict[str, Any], what: str, untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    with pytest.raises(ToolError, match=f"was made with another {what}"):
        curve(untrained, trained, few_digits, tmp_path / "cache", **settings)


def test_another_teacher_is_refused(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    with pytest.raises(ToolError, match="was made with another teacher"):
        curve(trained, untrained, few_digits, tmp_path / "cache")


def test_other_packages_and_another_kind_of_device_are_refused(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    versions = teachers_module.determining_versions() | {"torch": "1.0"}
    with monkeypatch.context() as patched:
        patched.setattr(teachers_module, "determining_versions", lambda: versions)
        with pytest.raises(ToolError, match=r"was made with another torch \(.*, now 1\.0\)"):
            curve(untrained, trained, few_digits, tmp_path / "cache")
    description = tmp_path / "cache" / "teacher-cache.json"
    description.write_text(description.read_text().replace('"kind of device": "', '"kind of device": "not-'))
    with pytest.raises(ToolError, match=r"was made with another kind of device \(not-"):
        curve(untrained, trained, few_digits, tmp_path / "cache")


def test_a_torch_teacher_is_cached_whatever_the_provider(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path, num_runs: Callable[[], int]
) -> None:
    curve(untrained, trained, few_digits, tmp_path / "cache")
    before = num_runs()
    curve(untrained, trained, few_digits, tmp_path / "cache", provider="cuda")
    assert num_runs() == before


def test_a_run_goes_on_with_more_room_for_its_cache(
    untrained: TorchModel, trained: TorchModel, few_digits: Data, tmp_path: Path
) -> None:
    def stop(entry: dict[str, Any]) -> None:
        if entry["epoch"] == 2:
            raise StopHereError

    config, folders = DistillConfig(**SETTINGS), {"teacher_cache": tmp_path / "cache", "workspace": tmp_path / "run"}
    whole = curve(untrained, trained, few_digits, None)
    with pytest.raises(StopHereError):
        distill(untrained, trained, few_digits, config, **folders, on_epoch=stop)
    seen: list[int] = []
    more = dataclasses.replace(config, teacher_cache_gb=2 * config.teacher_cache_gb)
    report = distill(
        untrained, trained, few_digits, more, **folders, on_epoch=lambda entry: seen.append(entry["epoch"])
    ).report
    assert seen == [3, 4]
    assert [entry["train_loss"] for entry in report.metrics] == pytest.approx(whole, rel=1e-6)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ToolError, match="is no teacher cache and not empty; name another folder"):
        TeacherCache(tmp_path, {}, num_samples=1, num_outputs=1, limit_bytes=10)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_description_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "teacher-cache.json").write_text(text)
    with pytest.raises(ToolError, match=r"teacher cache"):
        TeacherCache(tmp_path, {"data": "x"}, num_samples=1, num_outputs=1, limit_bytes=10)


def test_a_row_is_known_only_once_it_is_written(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "c", {"data": "x"}, num_samples=5, num_outputs=2, limit_bytes=1000)
    rows = torch.tensor([3, 1])
    assert not cache.read(0, rows)[1].any()
    cache.write(0, rows, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    reopened = TeacherCache(tmp_path / "c", {"data": "x"}, num_samples=5, num_outputs=2, limit_bytes=1000)
    logits, known = reopened.read(0, torch.tensor([0, 1, 3]))
    assert known.tolist() == [False, True, True]
    assert logits[1:].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert json.loads((tmp_path / "c" / "teacher-cache.json").read_text()) == {"data": "x"}


@pytest.mark.parametrize("left", [None, 3], ids=["missing", "cut short"])
def test_logits_that_are_gone_are_not_known(left: int | None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"num_samples": 2, "num_outputs": 2, "limit_bytes": 1000}
    TeacherCache(tmp_path, {}, **given).write(0, torch.tensor([0, 1]), torch.ones(2, 2))
    (logits,) = tmp_path.glob("*.logits")
    kept = logits.read_bytes()[:left]
    logits.unlink()
    if left:
        logits.write_bytes(kept)
    assert not TeacherCache(tmp_path, {}, **given).read(0, torch.tensor([0, 1]))[1].any()


def _refused(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("fallocate", [None, _refused], ids=["macOS", "NFS"])
def test_a_system_that_cannot_reserve_space_writes_zeros(
    fallocate: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallocate:
        monkeypatch.setattr(os, "posix_fallocate", fallocate)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr("compress.distillation.teacher_cache.CHUNK_BYTES", 7)
    cache = TeacherCache(tmp_path / "c", {}, num_samples=5, num_outputs=2, limit_bytes=1000)
    cache.write(0, torch.tensor([4]), torch.tensor([[1.0, 2.0]]))
    logits, known = cache.read(0, torch.arange(5))
    assert (known.tolist(), logits[4].tolist()) == ([False] * 4 + [True], [1.0, 2.0])
    assert {path.name[14:]: path.stat().st_size for path in (tmp_path / "c").glob("v*")} == {"logits": 40, "known": 5}


def test_a_cache_that_found_no_room_goes_on_where_there_is_some(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system does not limit the size of files")
    cache = TeacherCache(tmp_path / "c", {}, num_samples=500, num_outputs=2, limit_bytes=10_000)
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(ToolError, match=f"cannot write the teacher cache {tmp_path}/c: File too large"):
            cache.read(0, torch.arange(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cache.write(0, torch.tensor([4]), torch.tensor([[1.0, 2.0]]))
    assert cache.read(0, torch.arange(5))[1].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hints": ("at:3=3",)}, "a teacher cache holds logits only, and hints compare features"),
        ({"mixup": 0.2}, "a teacher cache holds what a teacher says of single samples, mixup and cutmix make new"),
    ],
    ids=["hints", "mixup"],
)
def test_what_a_cache_cannot_hold_is_refused(
    settings: dict[str, Any],
    message: str,
    untrained: TorchModel,
    trained: TorchModel,
    few_digits: Data,
    tmp_path: Path,
) -> None:
    with pytest.raises(ToolError, match=message):
        curve(untrained, trained, few_digits, tmp_path / "cache", **settings)
