"""Points that a file loses: exact to the sample, on whole batches."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixed_batch import with_fixed_batch

from compress.quantization.int8_score import drop_against, num_scored
from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.onnx_model import OnnxModel, open_onnx


@pytest.mark.parametrize(("batch_size", "expected"), [(5, 140), (7, 140), (144, 144)])
def test_a_fixed_batch_is_scored_on_whole_batches(
    exported: OnnxModel, digits: Data, tmp_path: Path, batch_size: int, expected: int
) -> None:
    fixed = with_fixed_batch(exported, tmp_path, batch_size)
    assert num_scored(exported, digits) == len(digits.split("validation")) == 144
    assert num_scored(fixed, digits) == expected
    assert drop_against(fixed, digits, "cpu")(fixed) == 0


def test_a_batch_of_more_than_there_are_is_told(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    fixed = with_fixed_batch(exported, tmp_path, 145)
    with pytest.raises(ToolError, match="batch fixed at 145, more than the 144 samples of validation; export it with"):
        drop_against(fixed, digits, "cpu")


def test_a_drop_is_exact_to_the_sample(tmp_path: Path) -> None:
    """7 of 1,000 more are wrong: 0.7 points and not a bit more, so that a limit of 0.7 lets it pass."""
    samples, targets = np.tile(np.float32([1, 0]), (1000, 1)), np.zeros(1000, np.int64)
    samples[:7, 1], targets[:7], targets[-1] = 1.5, 1, 1
    names = {f"{axis}_{split}": of for split in ("train", "val") for axis, of in (("x", samples), ("y", targets))}
    np.savez(tmp_path / "pairs.npz", **names)
    files = []
    for name, weights in (("whole", "1, 1"), ("halved", "1, 0.5")):
        graph = f"g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {{{weights}}}> {{ y = Mul(x, w) }}"
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}')
        onnx.save(model, tmp_path / f"{name}.onnx")
        files.append(open_onnx(tmp_path / f"{name}.onnx"))
    assert drop_against(files[0], load_data(str(tmp_path / "pairs.npz")), "cpu")(files[1]) == 0.7
