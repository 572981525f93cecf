"""Sending a run's metrics to experiment trackers, through accelerate's."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker

from compress.training.accelerator import start_accelerator
from compress.training.loop import OnEpoch
from core.errors import ToolError


@contextmanager
def tracking(names: Sequence[str], output: Path, settings: Mapping[str, Any]) -> Iterator[OnEpoch | None]:
    """Yield the function that sends an epoch's metrics to the trackers; None where there are none.

    Args:
        names: ``tensorboard``, which writes under ``runs/`` beside the output, and ``mlflow``, which goes where
            MLFLOW_TRACKING_URI says.
        output: What the run makes; its name is the run's.
        settings: The run's configuration, noted as its parameters.

    Raises:
        ToolError: A tracker's package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ToolError(
                f"--track {name} needs the package {name}; pip install -e '.[track]' in the clone of onnxpress"
            )
    if not names:
        yield None
        return
    start_accelerator()
    plain = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in settings.items()}
    with contextlib.ExitStack() as open_trackers:
        trackers = []
        for name in names:
            tracker: Any = (
                TensorBoardTracker(output.name, output.parent / "runs")
                if name == "tensorboard"
                else MLflowTracker("onnxpress", run_name=output.name)
            )
            tracker.start()
            open_trackers.callback(tracker.finish)
            tracker.store_init_configuration(plain)
            trackers.append(tracker)

        def send(entry: dict[str, Any]) -> None:
            for tracker in trackers:
                tracker.log({name: value for name, value in entry.items() if name != "epoch"}, step=entry["epoch"])

        yield send
