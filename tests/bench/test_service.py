"""LoadGen runs for moments here: what its figures say of each other is tested, not how fast a model is."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import service
from bench.intervals import P99_SAMPLES
from bench.loadgen_process import WARMUP, Request, loadgen
from bench.service import ServiceConfig, ServiceReport, highest_rate, measure_service
from core.errors import InvalidValueError, ToolError
from core.onnx_model import OnnxModel

SECONDS = 0.2
SLO_MS = 200.0


@pytest.fixture(scope="module")
def report(exported: OnnxModel) -> Iterator[ServiceReport]:
    config = ServiceConfig(
        scenarios=("single-stream", "offline", "server"), slo_ms=SLO_MS, seconds=SECONDS, batch_size=8, threads=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "TOLERANCE", SLO_MS / 1000 / SECONDS)  # fewer and shorter trials
        yield measure_service(exported, config)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary folders are made in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def processes_naming(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(folder) in " ".join(process.info["cmdline"] or [])]


def test_the_report_says_what_was_measured(report: ServiceReport, exported: OnnxModel) -> None:
    assert (report.stage, report.name, report.sha256) == ("service", exported.name, exported.sha256)
    assert report.loadgen[0].isdigit()


def test_single_stream_gives_percentiles(report: ServiceReport) -> None:
    found = report.single_stream
    assert found is not None
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.queries >= P99_SAMPLES


def test_offline_gives_a_throughput_over_its_least_duration(report: ServiceReport) -> None:
    assert report.offline is not None
    assert report.offline.batch_size == 8
    assert report.offline.seconds >= SECONDS
    assert report.offline.samples_per_second * report.offline.seconds >= 8 * WARMUP


def test_the_servers_rate_is_the_highest_that_met_the_slo(report: ServiceReport) -> None:
    server = report.server
    assert server is not None
    met = {trial.rate: trial.p99_ms for trial in server.trials if trial.ok}
    assert server.slo_ms == SLO_MS
    assert server.rate == max(met, default=None)  # None on a machine too busy for any rate
    assert server.p99_ms == (met[server.rate] if server.rate else None)
    assert max(met, default=0) <= min((trial.rate for trial in server.trials if not trial.ok), default=math.inf)
    assert all(trial.ok == (trial.p99_ms <= SLO_MS) for trial in server.trials)
    assert all(trial.queries >= P99_SAMPLES for trial in server.trials)
    assert all(trial.completed_rate < 1.2 * trial.rate for trial in server.trials)


def test_the_server_is_tried_at_what_single_stream_suggests_first(report: ServiceReport) -> None:
    assert report.single_stream is not None
    assert report.server is not None
    assert report.server.trials[0].rate == pytest.approx(1000 / report.single_stream.p50_ms)


@pytest.mark.slow
def test_an_impossible_slo_gives_no_rate_and_nothing_is_left_behind(
    exported: OnnxModel, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[Any, ...]] = []
    config = ServiceConfig(scenarios=("server",), slo_ms=1e-6, seconds=SECONDS, threads=1)
    report = measure_service(exported, config, lambda *step: seen.append(step))
    assert report.server == service.Server(slo_ms=1e-6, rate=None, p99_ms=None, trials=())
    assert report.single_stream is not None
    assert report.offline is None
    assert seen[0] == ("single-stream", 0, 1, "runs")
    assert seen[-1] == ("server", service.MAX_TRIALS, service.MAX_TRIALS, "trials")
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []
    assert processes_naming(temporary) == []


@pytest.mark.parametrize("limit", [1, 1.01, 0.4, 0.1, 1 / 16, 3, 19])
def test_the_search_comes_close_from_below(limit: float) -> None:
    tried = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit * 70

    found = highest_rate(meets, 70)
    assert found is not None
    assert limit * 70 / (1 + service.TOLERANCE) <= found <= limit * 70
    assert tried[0] == 70
    assert len(tried) <= service.MAX_TRIALS


def test_the_search_ends_where_every_rate_misses_or_meets() -> None:
    tried: list[float] = []
    assert highest_rate(lambda rate: bool(tried.append(rate)), 16) is None
    assert tried == [16, 8, 4, 2, 1]
    assert highest_rate(lambda rate: True, 1) == 2 ** (service.MAX_TRIALS - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scenarios": ("serve",)}, r"unknown scenario 'serve'. Did you mean 'server'\? It is one of single-stream"),
        ({"scenarios": ()}, "scenarios is empty; give some of single-stream, offline, server"),
        ({"scenarios": ("server",)}, "the server scenario needs slo_ms"),
        ({"slo_ms": 5.0}, "slo_ms is 5.0, but only the server scenario takes one; add server"),
        ({"scenarios": ("server",), "slo_ms": 0.0}, "slo_ms is 0.0; it must be positive"),
        ({"threads": -1}, "threads is -1; it must not be negative"),
        ({"seconds": 0.0}, "seconds is 0.0; it must be positive"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
    ],
)
def test_a_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        ServiceConfig(**fields)


def test_without_loadgen_the_message_says_what_to_install(exported: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(ToolError, match="pip install mlcommons-loadgen"):
        measure_service(exported, ServiceConfig())


def test_an_error_in_loadgens_process_comes_back(exported: OnnxModel) -> None:
    with pytest.raises(ToolError, match=r"unknown provider 'cdua'. Did you mean 'cuda'"):
        measure_service(exported, ServiceConfig(provider="cdua", seconds=SECONDS))


@pytest.mark.slow
def test_a_bug_in_loadgens_process_keeps_its_traceback(exported: OnnxModel) -> None:
    request = Request(scenario="bogus", seconds=SECONDS, seed=0, batch_size=1)
    with (
        loadgen(exported.path, "cpu", 1) as run,
        pytest.raises(RuntimeError, match=r"(?s)exit code 1:\nTraceback.*KeyError: 'bogus'"),
    ):
        run(request)


def test_a_killed_process_is_told_as_such(exported: OnnxModel, temporary: Path) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 120
        while not list(temporary.glob("*/mlperf_log_detail.txt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in processes_naming(temporary):
            process.kill()

    timer = threading.Thread(target=kill)
    with pytest.raises(ToolError, match="was ended by SIGKILL; SIGKILL is most often want of memory"):
        measure_service(exported, ServiceConfig(seconds=1000), lambda *_: timer.start())


@pytest.mark.slow
def test_ctrl_c_ends_both_processes_at_once(exported: OnnxModel, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from core.onnx_model import open_onnx\n"
        "from bench.service import ServiceConfig, measure_service\n"
        "measure_service(open_onnx(Path(sys.argv[1])), ServiceConfig(seconds=1000, threads=1))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(exported.path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/mlperf_log_detail.txt")) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before LoadGen ran"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert stderr.strip().endswith("KeyboardInterrupt")
    assert stderr.count("Traceback") == 1
    assert list(tmp_path.glob("onnxpress-*")) == []
    assert processes_naming(tmp_path) == []
