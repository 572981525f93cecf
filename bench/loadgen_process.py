"""MLPerf LoadGen in a process of its own, which is this module's `main`.

LoadGen cannot be stopped once it runs; a process can, and Ctrl-C kills it. The two processes talk in JSON lines.
"""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.intervals import P99_SAMPLES
from core.errors import ToolError
from core.input_spec import at_length
from core.onnx_model import OnnxModel, open_onnx
from core.sessions import Array, made_up_inputs, open_session, run_session
from core.whole_output import scratch_folder

SCENARIOS = {"single-stream": "SingleStream", "offline": "Offline", "server": "Server"}
WARMUP = 10  # untimed runs before each run of LoadGen


class Request(BaseModel, frozen=True):
    """One run of LoadGen.

    Attributes:
        scenario: A key of `SCENARIOS`.
        seconds: Its least duration.
        seed: Of its random numbers.
        batch_size: Samples the session takes at once.
        sequence_length: Tokens of a text; None takes the most that the model reads.
        rate: Samples a second: the server's load; for the others, how many LoadGen prepares.
        slo_ns: The server's SLO in nanoseconds.
    """

    scenario: str
    seconds: float
    seed: int
    batch_size: int
    sequence_length: int | None = None
    rate: float = 1.0
    slo_ns: int = 0


Run = Callable[[Request], dict[str, Any]]
"""Has LoadGen run a request; returns its figures by LoadGen's own keys, and its version."""


@contextmanager
def loadgen(path: Path, provider: str, threads: int) -> Iterator[Run]:
    """Start LoadGen's process with a session on the model; yield what has it run a request.

    Args:
        path: The .onnx file.
        provider: Where its session runs.
        threads: Of the session; 0 takes the cores this process may use.

    Raises:
        ToolError: From a request: the session could not be opened there, or the process was killed.
        RuntimeError: From a request: the process ended by an error of ours.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        said = folder / "stderr.txt"
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.loadgen_process", path.resolve(), provider, str(threads), folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(said.open("wb")),
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which ends the other
            )
        )
        stack.callback(child.kill)
        assert child.stdin is not None
        assert child.stdout is not None
        requests, replies = child.stdin, child.stdout

        def run(request: Request) -> dict[str, Any]:
            requests.write(request.model_dump_json() + "\n")
            requests.flush()
            reply = replies.readline()
            if not reply:
                raise _ended(child.wait(), said.read_text(encoding="utf-8", errors="replace"))
            if error := json.loads(reply):
                raise ToolError(error)
            return _logged_figures(folder)

        yield run


def _ended(exit_code: int, said: str) -> Exception:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return ToolError(f"the process that runs LoadGen was ended by {name}; SIGKILL is most often want of memory")
    return RuntimeError(f"the process that runs LoadGen ended with exit code {exit_code}:\n{said}")


def _logged_figures(folder: Path) -> dict[str, Any]:
    """Return what the last run's log calls a result, by LoadGen's own keys, and LoadGen's version."""
    lines = (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    records = [
        json.loads(line.removeprefix(":::MLLOG "))
        for line in lines
        if '"key": "result_' in line or '"key": "loadgen_version"' in line
    ]
    return {record["key"]: record["value"] for record in records}


def main(path: str, provider: str, threads: str, folder: str) -> None:
    """Run LoadGen for each request, a JSON line on stdin; answer each with a JSON line: null or what went wrong."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply

    def reply(error: str | None) -> None:
        replies.write(json.dumps(error) + "\n")
        replies.flush()

    try:
        model = open_onnx(Path(path))
        session = open_session(model.path, provider, int(threads))
        for line in sys.stdin:
            request = Request.model_validate_json(line)
            _run_loadgen(session, request_inputs(model, request), request, folder)
            reply(None)
    except ToolError as error:
        reply(str(error))


def request_inputs(model: OnnxModel, request: Request) -> tuple[Array, ...]:
    """Make up what every query of a request asks about.

    Raises:
        ToolError: The model cannot take such inputs.
    """
    length = request.sequence_length
    asked = model if length is None else replace(model, declared=at_length(model.declared, length, model.name))
    return made_up_inputs(asked, request.batch_size)


def _run_loadgen(session: Any, inputs: tuple[Array, ...], request: Request, folder: str) -> None:
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, SCENARIOS[request.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = math.ceil(1000 * request.seconds)
    settings.min_query_count = WARMUP * request.batch_size if request.scenario == "offline" else P99_SAMPLES
    settings.single_stream_expected_latency_ns = math.ceil(1e9 / request.rate)
    settings.offline_expected_qps = request.rate
    settings.server_target_qps = request.rate
    settings.server_target_latency_ns = request.slo_ns
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = request.seed

    output = lg.LogOutputSettings()
    output.outdir = folder
    log = lg.LogSettings()
    log.log_output = output
    log.enable_trace = False

    for _ in range(WARMUP):
        run_session(session, *inputs)
    waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
    worker = threading.Thread(target=_answer, args=(session, inputs, request.batch_size, waiting))
    worker.start()
    system = lg.ConstructSUT(waiting.put, lambda: None)
    samples = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)  # every query asks for the same made-up input
    lg.StartTestWithLogSettings(system, samples, settings, log, f"{folder}/no-audit.config")
    waiting.put(None)
    worker.join()
    lg.DestroyQSL(samples)
    lg.DestroySUT(system)


def _answer(
    session: Any,
    inputs: tuple[Array, ...],
    batch_size: int,
    waiting: "queue.SimpleQueue[list[Any] | None]",
) -> None:
    """Answer what waits, batch by batch, until None comes; a last partial batch is run whole."""
    import mlperf_loadgen as lg

    feed = dict(zip([value.name for value in session.get_inputs()], inputs, strict=True))
    try:
        while (samples := waiting.get()) is not None:
            for first in range(0, len(samples), batch_size):
                session.run(None, feed)
                batch = samples[first : first + batch_size]
                lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in batch])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # LoadGen would wait for the answers for ever


if __name__ == "__main__":
    main(*sys.argv[1:])
