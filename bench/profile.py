"""Where the time goes, node by node, as ONNX Runtime's own profiler sees it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.errors import ToolError
from core.onnx_model import OnnxModel
from core.sessions import made_up_inputs, open_session, run_session
from core.whole_output import scratch_folder

RUNS = 20


class NodeTime(BaseModel, frozen=True):
    """One node of the graph as it ran, after ONNX Runtime's own rewriting; the time is the median of its runs."""

    name: str
    operator: str
    provider: str
    ms: float


def profile(model: OnnxModel, provider: str, threads: int, batch_size: int) -> tuple[NodeTime, ...]:
    """Run a model under ONNX Runtime's profiler and return its nodes in the order they ran.

    Raises:
        ToolError: The model cannot run there.
    """
    inputs = made_up_inputs(model, batch_size)
    with scratch_folder() as scratch:
        session = open_session(model.path, provider, threads, profile_to=scratch / "profile")
        for _ in range(RUNS):
            run_session(session, *inputs)
        written = Path(session.end_profiling()).read_text(encoding="utf-8")
    try:
        return _nodes(json.loads(written))
    except ValueError as error:
        raise ToolError(
            f"ONNX Runtime's profile of {model.path.name} is cut short: is there room for temporary files? ({error})"
        ) from error


def _nodes(events: list[dict[str, Any]]) -> tuple[NodeTime, ...]:
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            args = event["args"]
            key = (event["name"].removesuffix("_kernel_time"), args["op_name"], args["provider"])
            times[key].append(event["dur"] / 1000)
    return tuple(
        NodeTime(name=name, operator=operator, provider=provider, ms=sorted(found)[len(found) // 2])
        for (name, operator, provider), found in times.items()
    )
