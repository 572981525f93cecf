"""Weights that do not fit into an .onnx file lie beside it, and the two are one model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import core.external_data
from core.errors import ToolError
from core.external_data import (
    copy_onnx,
    data_file,
    refuse_overwrite_onnx,
    refuse_replacing,
    weights_bytes,
    whole_onnx,
    write_onnx,
)
from core.onnx_model import open_onnx, read_proto
from core.references import file_sha256
from core.sessions import made_up_inputs, open_session, run_session

MakeProto = Callable[..., onnx.ModelProto]


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let protobuf's limit be that of a model of a few weights."""
    monkeypatch.setattr(core.external_data, "PROTOBUF_LIMIT_BYTES", 10)
    monkeypatch.setattr(core.external_data, "STAYS_BYTES", 10)


@pytest.fixture
def split(linear_proto: MakeProto, tmp_path: Path, small_limit: None) -> Path:
    """A file whose weights lie beside it."""
    write_onnx(linear_proto(), tmp_path / "split.onnx")
    return tmp_path / "split.onnx"


def test_weights_are_counted_without_reading_them(linear_proto: MakeProto, split: Path) -> None:
    assert weights_bytes(linear_proto()) == 5 * 3 * 4
    assert weights_bytes(read_proto(split, weights=False)) == 5 * 3 * 4


def test_a_small_model_is_one_file(linear_proto: MakeProto, tmp_path: Path) -> None:
    write_onnx(linear_proto(), tmp_path / "model.onnx")
    assert not data_file(tmp_path / "model.onnx").exists()
    assert open_onnx(tmp_path / "model.onnx").data_files == ()


def test_what_does_not_fit_lies_beside_and_computes_the_same(
    linear_proto: MakeProto, split: Path, tmp_path: Path
) -> None:
    onnx.save(linear_proto(), tmp_path / "whole.onnx")
    whole, model = open_onnx(tmp_path / "whole.onnx"), open_onnx(split)
    assert model.data_files == (tmp_path / "split.onnx.data",)
    assert model.size_bytes == split.stat().st_size + 60
    inputs = made_up_inputs(whole, 4)
    outputs = [run_session(open_session(one.path), *inputs) for one in (whole, model)]
    np.testing.assert_array_equal(*(one["y"] for one in outputs))


def test_weights_may_lie_in_a_folder_below(split: Path) -> None:
    (split.parent / "weights").mkdir()
    data_file(split).rename(split.parent / "weights" / "split.bin")
    proto = onnx.load(split, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "weights/split.bin"
    split.write_bytes(proto.SerializeToString())
    model = open_onnx(split)
    assert model.data_files == (split.parent / "weights" / "split.bin",)
    assert len(run_session(open_session(split), *made_up_inputs(model, 4))["y"]) == 4


def test_the_digest_covers_the_weights(split: Path) -> None:
    before = open_onnx(split).sha256
    assert before != file_sha256(split)
    contents = bytearray(data_file(split).read_bytes())
    contents[0] ^= 1
    data_file(split).write_bytes(contents)
    assert open_onnx(split).sha256 != before


def test_a_copy_has_weights_of_its_own(split: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    copy_onnx(split, open_onnx(split).data_files, tmp_path / "other" / "copy.onnx")
    model = open_onnx(tmp_path / "other" / "copy.onnx")
    assert model.data_files == (tmp_path / "other" / "copy.onnx.data",)
    weights = [numpy_helper.to_array(read_proto(one).graph.initializer[0]) for one in (split, model.path)]
    np.testing.assert_array_equal(*weights)


def test_a_copy_of_one_file_is_the_same_bytes(linear_proto: MakeProto, tmp_path: Path) -> None:
    onnx.save(linear_proto(), tmp_path / "a.onnx")
    copy_onnx(tmp_path / "a.onnx", (), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_missing_weights_are_named(split: Path) -> None:
    data_file(split).unlink()
    with pytest.raises(ToolError, match=r"split\.onnx: its weights are in split\.onnx\.data, which is not beside it"):
        open_onnx(split)


def test_weights_cut_short_are_named(split: Path) -> None:
    data_file(split).write_bytes(data_file(split).read_bytes()[:-1])
    with pytest.raises(ToolError, match=r"should reach to byte 60, and the file has 59; it is damaged or cut short"):
        open_onnx(split)


@pytest.mark.parametrize("name", ["a.onnx", "a.onnx.data"])
def test_neither_file_is_overwritten_without_force(linear_proto: MakeProto, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ToolError, match=rf"{name} exists already; pass --force"):
        refuse_overwrite_onnx(tmp_path / "a.onnx", force=False)
    with (
        pytest.raises(ToolError, match=rf"{name} exists already; pass --force"),
        whole_onnx(tmp_path / "a.onnx", force=False) as part,
    ):
        write_onnx(linear_proto(), part)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("name", ["split.onnx", "other.onnx"])
def test_no_file_of_the_model_that_is_read_is_replaced(split: Path, name: str) -> None:
    """Neither itself, nor its weights by those of another file, which may stand where that would have them."""
    model = open_onnx(split)
    data_file(split.with_name("other.onnx")).symlink_to(data_file(split))
    with pytest.raises(ToolError, match=rf"{name}.* is a file of the model to read, which stays; choose another --out"):
        refuse_replacing(model.files, split.with_name(name))
    refuse_replacing(model.files, split.with_name("third.onnx"))


def test_one_file_replaces_two(split: Path, linear_proto: MakeProto) -> None:
    with whole_onnx(split) as part:
        onnx.save(linear_proto(), part)
    assert [one.name for one in split.parent.iterdir()] == ["split.onnx"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_fails_leaves_both_files_as_they_were(
    split: Path, linear_proto: MakeProto, error: type[BaseException]
) -> None:
    before = {one.name: one.read_bytes() for one in split.parent.iterdir()}

    def fail(part: Path) -> None:
        write_onnx(linear_proto(num_classes=4), part)
        raise error

    with pytest.raises(error), whole_onnx(split) as part:
        fail(part)
    assert {one.name: one.read_bytes() for one in split.parent.iterdir()} == before


@pytest.mark.usefixtures("small_limit")
def test_two_files_replace_one(linear_proto: MakeProto, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with whole_onnx(tmp_path / "a.onnx") as part:
        write_onnx(linear_proto(), part)
        assert (tmp_path / "a.onnx").read_text() == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert open_onnx(tmp_path / "a.onnx").data_files
