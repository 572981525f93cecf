"""Shards as WebDataset lays them out: read by place, checked, and named when something is wrong."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.training.finetune import FinetuneConfig, finetune
from core.batches import batches
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.preprocessing import Preprocessing
from core.shards import index_shards, shard_paths

MakeShard = Callable[..., Path]


def png(value: int, size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shard(tmp_path: Path) -> MakeShard:
    """``shard("a.tar", {"x.png": b"...", "x.cls": b"1"})`` writes a shard of these files."""

    def make(name: str, files: Mapping[str, bytes]) -> Path:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, contents in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
        return tmp_path / name

    return make


def samples(first: int, count: int, *, labelled: bool = True) -> dict[str, bytes]:
    """So many one-coloured images; the colour is the number."""
    files = {}
    for number in range(first, first + count):
        files[f"dir/{number:04}.png"] = png(number)
        if labelled:
            files[f"dir/{number:04}.cls"] = str(number % 2).encode()
    return files


def colours(data: Data, split: str = "train") -> dict[int, int]:
    """Colour to class of every sample."""
    found = {}
    for (inputs,), targets in batches(data.split(split), Preprocessing(image_size=(6, 5), channels=3), 4):
        found |= dict(zip(inputs[:, 0, 0, 0].int().tolist(), targets.tolist(), strict=True))
    return found


def test_every_sample_is_read_from_its_place(shard: MakeShard, tmp_path: Path) -> None:
    for number in range(3):
        shard(f"train-{number:03}.tar", samples(10 * number, 7))
    data = load_data(f"wds:{tmp_path}/train-{{000..002}}.tar")
    expected = {10 * number + index: (10 * number + index) % 2 for number in range(3) for index in range(7)}
    assert colours(data) | colours(data, "validation") == expected
    assert (data.labels, data.sample_shape) == (("0", "1"), (3, 6, 5))


def test_splits_and_labels_are_named(shard: MakeShard, tmp_path: Path) -> None:
    train, test = shard("a.tar", samples(0, 6)), shard("b.tar", samples(6, 4))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    data = load_data(f"wds:{train},val={test},test={test},labels={tmp_path / 'names.txt'}")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [6, 4, 4]
    assert data.labels == ("cat", "dog")


def test_files_of_other_kinds_are_passed_over(shard: MakeShard) -> None:
    files = {"1.json": b"{}", "1.png": png(1), "1.cls": b"0", "2.cls": b"1", "2.png": png(2), "2.txt": b"two"}
    places, targets = index_shards([shard("a.tar", files)])
    assert targets.tolist() == [0, 1]
    assert (places[:, 2] == [len(png(1)), len(png(2))]).all()


def test_a_name_with_dots_ends_at_its_first(shard: MakeShard) -> None:
    places, targets = index_shards([shard("a.tar", {"a.b/1.rgb.png": png(1), "a.b/1.png": png(2), "a.b/1.cls": b"0"})])
    assert (len(places), targets.tolist()) == (1, [0])


def test_shards_without_classes_have_no_labels(shard: MakeShard) -> None:
    data = load_data(f"wds:{shard('a.tar', samples(0, 8, labelled=False))}")
    assert not data.split("train").is_labelled
    assert data.labels == ()


def test_patterns_stand_for_files(shard: MakeShard, tmp_path: Path) -> None:
    paths = [shard(f"t-{number:02}.tar", samples(0, 1)) for number in (8, 9, 10)]
    assert list(shard_paths(f"{tmp_path}/t-{{08..10}}.tar")) == paths
    assert list(shard_paths(f"{tmp_path}/t-*.tar")) == paths
    assert list(shard_paths(str(paths[0]))) == paths[:1]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("t-{0..3}.tar", r"there is no shard .*t-2\.tar; 2 of the 4 of .* are missing"),
        ("u-*.tar", "no shards match"),
        ("none.tar", r"there is no shard .*none\.tar"),
    ],
)
def test_missing_shards_are_named(pattern: str, message: str, shard: MakeShard, tmp_path: Path) -> None:
    shard("t-0.tar", samples(0, 1))
    shard("t-1.tar", samples(0, 1))
    with pytest.raises(ToolError, match=message):
        shard_paths(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.cls": b"0"}, "the sample '1' has no image; its files must stand together"),
        ({"1.png": png(1), "1.cls": b"cat"}, r"1\.cls holds 'cat'; it is a class index, such as 3"),
        ({"1.png": png(1), "1.cls": b"9" * 5000}, r"1\.cls holds '9+'; it is a class index, such as 3"),
        ({"1.png": png(1), "1.cls": b"0", "2.png": png(2)}, "1 of 2 samples have no class, the first .*: 2; give each"),
        ({"notes.txt": b""}, "the sample 'notes' has no image"),
        ({}, "holds no images; a sample is KEY.jpg"),
    ],
    ids=["no image", "no number", "garbage", "some classes", "text only", "empty"],
)
def test_a_shard_laid_out_wrongly_says_where(files: dict[str, bytes], message: str, shard: MakeShard) -> None:
    with pytest.raises(ToolError, match=message):
        index_shards([shard("a.tar", files)])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.55, 0.8])
def test_a_damaged_shard_is_named_with_the_last_sample_read(keep: float, shard: MakeShard) -> None:
    path = shard("a.tar", samples(0, 6))
    contents = path.read_bytes()[: 6 * 2 * 1024]
    path.write_bytes(contents[: int(len(contents) * keep)])
    with pytest.raises(ToolError, match=rf"cannot read the shard {path} after (its start|dir/000\d\.\w+): .*; replace"):
        index_shards([path])


@pytest.mark.parametrize("header", [b"\0" * 512, b"\xff" * 100], ids=["zeroed", "overwritten"])
def test_a_header_damaged_in_mid_file_is_not_taken_for_the_end(header: bytes, shard: MakeShard) -> None:
    path = shard("a.tar", samples(0, 6))
    contents = bytearray(path.read_bytes())
    contents[4 * 1024 : 4 * 1024 + len(header)] = header  # each file is a header and a block
    path.write_bytes(contents)
    message = "after dir/0001.cls: what stands at byte 4096 is no header, and more follows; replace"
    with pytest.raises(ToolError, match=rf"cannot read the shard {path} {message}"):
        index_shards([path])


@pytest.mark.parametrize("end", [4 * 1024, 4 * 1024 + 100], ids=["between files", "in a header"])
def test_a_shard_cut_between_two_files_is_not_complete(end: int, shard: MakeShard) -> None:
    path = shard("a.tar", samples(0, 6))
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ToolError, match=rf"cannot read the shard {path} after dir/0001.cls: .*; replace it"):
        index_shards([path])


def with_a_broken_image(shard: MakeShard) -> Path:
    return shard("a.tar", samples(0, 20) | {"dir/0003.png": png(3)[:40]})


def test_a_broken_image_is_named_with_its_shard(shard: MakeShard) -> None:
    path = with_a_broken_image(shard)
    data = load_data(f"wds:{path}")
    with pytest.raises(ToolError, match=rf"cannot read the image {path}: dir/0003.png: .*; replace or remove it"):
        colours(data) | colours(data, "validation")


def test_a_broken_image_may_be_skipped(shard: MakeShard) -> None:
    data = load_data(f"wds:{with_a_broken_image(shard)}", skip_bad=1)
    assert len(colours(data) | colours(data, "validation")) == 19


def test_a_shard_that_is_gone_since_it_was_indexed_is_named(shard: MakeShard) -> None:
    path = shard("a.tar", samples(0, 8))
    data = load_data(f"wds:{path}")
    path.unlink()
    with pytest.raises(ToolError, match=rf"cannot read sample \d of the shard {path}: .*No such file or directory"):
        colours(data)


@pytest.mark.parametrize("left", [0, 700])
def test_a_shard_that_is_cut_since_it_was_indexed_is_named(left: int, shard: MakeShard) -> None:
    path = shard("a.tar", samples(0, 8))
    data = load_data(f"wds:{path}")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ToolError, match=rf"cannot read the image {path}: "):
        colours(data)


def test_a_batch_of_broken_images_only_is_passed_over(shard: MakeShard) -> None:
    files = samples(0, 20) | {f"dir/{number:04}.png": b"no image" for number in range(20, 28)}
    files |= {f"dir/{number:04}.cls": b"0" for number in range(20, 28)}
    ordered = dict(sorted(files.items(), key=lambda item: item[0]))
    data = load_data(f"wds:{shard('a.tar', ordered)},val={shard('b.tar', samples(30, 2))}", skip_bad=8)
    assert len(colours(data)) == 20
    assert len(data.split("train").skipped) == 8


def test_what_is_wrong_with_the_model_is_no_bad_sample(shard: MakeShard) -> None:
    data = load_data(f"wds:{shard('a.tar', samples(0, 8))}", skip_bad=100)
    with pytest.raises(ToolError, match="the images have 3 channels, the model takes 1"):
        list(batches(data.split("train"), Preprocessing(image_size=(6, 5), channels=1), 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mode=CMYK", "mode is 'CMYK'; it is RGB or L"),
        ("num_classes=1", "num_classes is 1, and the shards hold class 1"),
        ("labels=none.txt", "none.txt"),
        ("image_size=0", "image_size is 0; it is a number of pixels"),
        ("tset=b.tar", "unknown argument 'tset'; .* Did you mean 'test'?"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: str, message: str, shard: MakeShard) -> None:
    with pytest.raises(ToolError, match=message):
        load_data(f"wds:{shard('a.tar', samples(0, 4))},{arguments}")


def test_a_model_is_trained_on_shards_but_not_by_what_reads_them_all(shard: MakeShard, tiny: str) -> None:
    files = {}
    for number in range(40):
        files |= {f"{number}.png": png(200 * (number % 2) + number), f"{number}.cls": str(number % 2).encode()}
    data = load_data(f"wds:{shard('a.tar', files)}")
    model = load_torch_model(f"{tiny}:cnn", data)
    assert finetune(model, data, FinetuneConfig(epochs=3, batch_size=8)).report.validation_accuracy == 100
    with pytest.raises(
        ToolError, match="cg reads all samples several times an iteration, and these are not held in memory"
    ):
        finetune(model, data, FinetuneConfig(optimizer="cg"))


def test_class_names_are_utf_8_text(shard: MakeShard, tmp_path: Path) -> None:
    path = shard("a.tar", samples(0, 4))
    (tmp_path / "names.txt").write_bytes("\ufeffK\u00e4tzchen\nHund\n".encode())  # as Windows's editor saves it
    assert load_data(f"wds:{path},labels={tmp_path}/names.txt").labels == ("K\u00e4tzchen", "Hund")
    (tmp_path / "names.txt").write_bytes("K\u00e4tzchen\nHund\n".encode("latin-1"))
    with pytest.raises(ToolError, match=r"names\.txt is not UTF-8 text: .*; save it as UTF-8"):
        load_data(f"wds:{path},labels={tmp_path}/names.txt")


def test_the_fingerprint_tells_splits_and_labels_apart(shard: MakeShard, tmp_path: Path) -> None:
    """The same shards in other splits, and the same file of other class names, are other data."""
    for number in range(2):
        shard(f"x-{number}.tar", samples(4 * number, 4))
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    rest = f"val={tmp_path}/x-1.tar,labels={names}"
    found = {load_data(f"wds:{tmp_path}/x-{which}.tar,{rest}").fingerprint for which in ("{0..1}", "0")}
    names.write_text("dog\ncat\n")
    found.add(load_data(f"wds:{tmp_path}/x-0.tar,{rest}").fingerprint)
    assert len(found) == 3


def test_the_fingerprint_follows_the_files(shard: MakeShard) -> None:
    first = load_data(f"wds:{shard('a.tar', samples(0, 4))}").fingerprint
    assert load_data(f"wds:{shard('a.tar', samples(0, 6))}").fingerprint != first


def test_decoding_gives_the_pixels(shard: MakeShard) -> None:
    data = load_data(f"wds:{shard('a.tar', samples(7, 4))}")
    (images,) = data.split("train").samples.fetch([0, 3], Preprocessing(image_size=(6, 5), channels=3))
    assert torch.equal(images[:, 0, 0, 0], torch.tensor([7, 10], dtype=torch.uint8))
