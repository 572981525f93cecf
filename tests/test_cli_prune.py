"""The command prune: its targets, exit 3 with what was tried, plots and steps."""

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import stages
from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.layer_shape import LayerShape
from core.measuring import Measuring, Timed
from core.torch_model import TorchModel, num_params

Onnxpress = Callable[..., Result]


def test_a_cut_stays_though_it_cannot_be_timed(onnxpress: Onnxpress, tiny: str, tmp_path: Path) -> None:
    result = onnxpress(
        "prune", f"{tiny}:untraceable", "--macs-ratio", "1.5", "--data", "digits", "-o", str(tmp_path / "cut"), "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["measured_speedup"] is None
    assert "how fast the pruned model is cannot be measured: torch.export cannot trace" in result.stderr
    assert "def forward" not in result.stderr
    assert load_checkpoint(tmp_path / "cut").plan


@pytest.mark.parametrize("options", [[], ["--pruning-ratio", "0.5", "--speedup", "2"]], ids=["none", "both"])
def test_prune_wants_one_target(onnxpress: Onnxpress, options: list[str]) -> None:
    result = onnxpress("prune", "timm:resnet18", "-o", "out", *options)
    assert result.exit_code == 2
    assert "give one of --speedup, --latency-ms, --macs-ratio, --params-ratio and --pruning-ratio" in result.stderr


def test_a_target_out_of_reach_exits_3_with_what_was_tried(onnxpress: Onnxpress, tiny: str) -> None:
    result = onnxpress("prune", f"{tiny}:cnn", "--macs-ratio", "1000", "--input-shape", "1,8,8", "-o", "out")
    assert result.exit_code == 3
    lines = result.stderr.strip().splitlines()
    start = next(index for index, line in enumerate(lines) if "1000x fewer MACs is out of reach" in line)
    assert lines[start + 2].split() == ["pruning", "ratio", "reached", "params"]
    assert len(lines) > start + 6
    assert not Path("out").exists()


def test_a_speed_out_of_reach_exits_3_with_the_closest_and_what_was_tried(
    onnxpress: Onnxpress, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes by parameters."""

    def models(first: TorchModel, second: TorchModel) -> Timed:
        before, after = (num_params(model.module) / 1000 for model in (first, second))
        return Timed(before, after, before / after)

    def layers(shapes: Sequence[LayerShape]) -> list[float]:
        return [math.prod((shape.in_channels, shape.out_channels, *shape.kernel)) / 1000 for shape in shapes]

    monkeypatch.setattr(stages, "measuring", lambda *_: nullcontext(Measuring(models, layers)))
    result = onnxpress("prune", f"{tiny}:cnn", "--speedup", "1000", "--data", "digits", "-o", "out", "--quiet")
    assert (result.exit_code, result.stdout) == (3, "")
    error, _, header, _, *rows = result.stderr.strip().splitlines()
    said = re.fullmatch(
        r"Error: 1000x the speed is out of reach: ([\d.]+)x is the closest, with (\d+) parameters, \d+ blocks left "
        r"out and \d+ groups narrowed; raise max_pruning_ratio 0\.9, ignore fewer modules, or distil a smaller student",
        error,
    )
    assert said, error
    columns = re.split(r" {2,}", header.strip())
    assert columns == ["predicted speedup", "measured speedup", "latency ms", "params", "damage"]
    tried = [dict(zip(columns, map(float, row.split()), strict=True)) for row in rows]
    closest = max(tried, key=lambda one: one["measured speedup"])
    assert (f"{closest['measured speedup']:.2f}", f"{closest['params']:.0f}") == said.groups()
    assert len(tried) > 1
    assert not Path("out").exists()


def test_what_pruning_costs_is_plotted(onnxpress: Onnxpress, trained: TorchModel) -> None:
    save_checkpoint(trained, Path("trained"))
    result = onnxpress("prune", "trained", "--sensitivity", "--data", "digits", "-o", "plot.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert "3.conv1" in result.stdout
    assert "3.conv1" in Path("plot.html").read_text()


def test_pruning_in_steps_counts_from_the_baseline(onnxpress: Onnxpress, trained: TorchModel) -> None:
    save_checkpoint(trained, Path("trained"))
    first = prune(trained, PruneConfig(macs_ratio=1.3))
    save_checkpoint(first.model, Path("first"))
    np.savez("unlabelled.npz", x_train=np.zeros((64, 8, 8), np.uint8))
    arguments = ["--macs-ratio", 2, "--baseline", "trained", "--data", "unlabelled.npz", "--threads", 1, "--json"]
    result = onnxpress("prune", "first", *arguments, "-o", "second")
    assert result.exit_code == 0, result.stderr
    second = json.loads(result.stdout)
    assert first.report.macs[0] / second["macs"][1] >= 2 > second["macs_ratio"]
    assert second["accuracy"] is None  # it has no labels
