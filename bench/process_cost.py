"""What a model costs a process that does nothing else: memory, time to load, time of the first run.

Run as a script, this file is that process.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import BaseModel

from core.errors import ToolError
from core.whole_output import scratch_folder

CUDA = "CUDAExecutionProvider"


class ProcessCost(BaseModel, frozen=True):
    """What a process of its own measured.

    Attributes:
        load_ms: Time to open the session, in milliseconds.
        first_run_ms: Time of the first run.
        peak_rss_bytes: Most memory the process held at a time.
        empty_rss_bytes: What it held before it opened the model: Python, NumPy, ONNX Runtime and the inputs.
    """

    load_ms: float
    first_run_ms: float
    peak_rss_bytes: int
    empty_rss_bytes: int


def process_cost(path: Path, provider_name: str, threads: int, inputs: Sequence[np.ndarray]) -> ProcessCost:
    """Start a process that opens a model and runs it once.

    Args:
        path: The .onnx file.
        provider_name: ONNX Runtime's name of a provider that can be used.
        threads: Threads of the session.
        inputs: One array an input.

    Raises:
        ToolError: The process ended before it answered.
    """
    with scratch_folder() as scratch:
        arrays = scratch / "inputs.npz"
        np.savez(arrays, *inputs)
        command = [sys.executable, "-P", "-m", "bench.process_cost"]
        path_to_us = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*command, str(path), provider_name, str(threads), str(arrays)],
            capture_output=True,
            text=True,
            env=path_to_us,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing; most often that is want of memory"]
        raise ToolError(
            f"could not measure {path.name} in a process of its own (exit code {done.returncode}): {said[-1]}"
        )
    return ProcessCost.model_validate_json(done.stdout.splitlines()[-1])


def _measure(path: str, provider_name: str, threads: int, arrays: str) -> ProcessCost:
    inputs = list(np.load(arrays).values())
    if provider_name == CUDA:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    empty = _peak_rss_bytes()
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=[provider_name], enable_fallback=0)
    loaded = time.perf_counter()
    session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))
    ran = time.perf_counter()
    return ProcessCost(
        load_ms=1000 * (loaded - started),
        first_run_ms=1000 * (ran - loaded),
        peak_rss_bytes=_peak_rss_bytes(),
        empty_rss_bytes=empty,
    )


def _peak_rss_bytes() -> int:
    """Return the most memory this process held; getrusage alone would count its parent's before the exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]).model_dump()) + "\n")
