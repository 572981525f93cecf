"""Placement and profile as ONNX Runtime's profiler saw them."""

from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bench.compare import BenchConfig, bench
from bench.gate import require_placement
from bench.placement import placement
from bench.process_cost import process_cost
from bench.profile import NodeTime, profile
from core.errors import GateMissedError, ToolError
from core.onnx_model import OnnxModel, open_onnx
from core.sessions import made_up_inputs


def test_every_node_of_the_optimised_graph_is_timed_once(exported: OnnxModel) -> None:
    nodes = profile(exported, "cpu", 1, 1)
    assert 1 < len(nodes) <= len(onnx.load(exported.path).graph.node)
    assert len({node.name for node in nodes}) == len(nodes)
    assert {"Conv"} < {node.operator for node in nodes} | {"FusedConv"}
    assert all(node.ms >= 0 for node in nodes)


def test_a_profile_that_is_cut_short_is_one_line(exported: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.profile.Path.read_text", lambda *_, **__: '[{"cat": "Node", ')
    with pytest.raises(ToolError, match=r"profile of .*\.onnx is cut short: is there room for temporary files"):
        profile(exported, "cpu", 1, 1)


def test_without_a_temporary_folder_it_is_one_line(exported: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(ToolError, match=r"cannot write temporary files: .* or name another folder in TMPDIR"):
        profile(exported, "cpu", 1, 1)


def test_on_the_cpu_everything_is_placed(exported: OnnxModel) -> None:
    nodes = profile(exported, "cpu", 1, 1)
    found = placement(nodes, "cpu")
    assert found.nodes == {"CPUExecutionProvider": len(nodes)}
    assert (found.placed_ratio, found.fell_back, found.copies) == (1.0, {}, 0)


def test_what_fell_back_and_what_was_copied_is_counted() -> None:
    nodes = tuple(
        NodeTime(name=name, operator=operator, provider=provider, ms=0.1)
        for name, operator, provider in (
            ("a", "Conv", "CPUExecutionProvider"),
            ("b", "Conv", "CPUExecutionProvider"),
            ("copy", "MemcpyToHost", "CUDAExecutionProvider"),
            ("c", "QLinearConv", "OtherExecutionProvider"),
            ("d", "Relu", "CPUExecutionProvider"),
        )
    )
    found = placement(nodes, "cpu")
    assert found.nodes == {"CPUExecutionProvider": 3, "OtherExecutionProvider": 1}
    assert (found.placed_ratio, found.fell_back, found.copies) == (0.75, {"QLinearConv": 1}, 1)


def test_the_gate_closes_when_a_node_ran_elsewhere(exported: OnnxModel) -> None:
    report = bench([exported], [BenchConfig(iterations=10, rounds=1, max_rounds=1, threads=1)])
    require_placement(report, 1.0)
    assert report.rows[0].placement is not None
    fallen = report.rows[0].placement.model_copy(update={"placed_ratio": 0.75, "fell_back": {"QLinearConv": 1}})
    row = report.rows[0].model_copy(update={"placement": fallen})
    with pytest.raises(
        GateMissedError, match=r"75.0 % of its nodes ran on CPUExec.*100 % are required.*QLinearConv \(1\)"
    ):
        require_placement(report.model_copy(update={"rows": (row,)}), 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_an_operator_without_cuda_kernel_falls_back_and_closes_the_gate(tmp_path: Path) -> None:
    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Det", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "det", [tensor("x", shape=["N", 4, 4])], [tensor("z", shape=["N"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "det.onnx")
    config = BenchConfig(provider="cuda", iterations=10, rounds=1, max_rounds=1)
    report = bench([open_onnx(tmp_path / "det.onnx")], [config])
    assert report.rows[0].placement is not None
    assert report.rows[0].placement.fell_back == {"Det": 1}
    assert report.rows[0].placement.copies >= 1
    with pytest.raises(GateMissedError, match=r"are required; elsewhere ran Det \(1\)"):
        require_placement(report, 1.0)


def test_a_process_of_its_own_says_what_the_model_costs(exported: OnnxModel) -> None:
    found = process_cost(exported.path, "CPUExecutionProvider", 1, made_up_inputs(exported, 1))
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert found.peak_rss_bytes > found.empty_rss_bytes > 10 * 2**20
    assert found.peak_rss_bytes < 500 * 2**20  # this process, with torch in it, is not counted


def test_a_process_that_fails_is_told_with_what_it_said(exported: OnnxModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.path.read_bytes()[:-100])
    with pytest.raises(ToolError, match=r"could not measure broken.onnx in a process of its own \(exit code 1\): .+"):
        process_cost(broken, "CPUExecutionProvider", 1, made_up_inputs(exported, 1))
