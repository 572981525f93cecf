"""Training from shards: memory does not grow with their number."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
ONE_EPOCH = """
import json, resource, sys
from compress.training.finetune import FinetuneConfig, finetune
from core.data_reference import load_data
from core.model_reference import load_torch_model

data = load_data(sys.argv[1])
model = load_torch_model(sys.argv[2], data)
finetune(model, data, FinetuneConfig(epochs=1, batch_size=16, precision="float32", channels_last=True, compile=False))
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"samples": len(data.split("train")), "peaks": peaks}))
"""


def write_shards(folder: Path, num_shards: int) -> None:
    """Write one shard of 400 images, and so many copies of it."""
    random = np.random.default_rng(0)
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for index in range(400):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
            for suffix, contents in (("jpg", file.getvalue()), ("cls", str(index % 2).encode())):
                info = tarfile.TarInfo(f"{index}.{suffix}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
    for number in range(1, num_shards):
        shutil.copyfile(folder / "train-0.tar", folder / f"train-{number}.tar")


@pytest.mark.slow
def test_an_epoch_over_eight_times_the_shards_peaks_at_the_same_memory(tiny: str, tmp_path: Path) -> None:
    """The least of three runs each: what an allocator holds on to differs by a quarter from run to run."""
    write_shards(tmp_path, 64)
    found: dict[int, list[list[int]]] = {}
    for last in (7, 63) * 3:
        command = [sys.executable, "-c", ONE_EPOCH, f"wds:{tmp_path}/train-{{0..{last}}}.tar", f"{tiny}:cnn"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        found.setdefault(told["samples"], []).append(told["peaks"])
    assert list(found) == [2880, 8 * 2880]
    least = [[min(peaks) for peaks in zip(*runs, strict=True)] for runs in found.values()]
    for small, large in zip(*least, strict=True):
        assert large <= 1.1 * small, found
