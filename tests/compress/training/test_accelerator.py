"""Precision and compilation are chosen by measurement, whatever accelerate was told."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_settings_of_accelerate_change_nothing() -> None:
    script = (
        "from compress.training.accelerator import start_accelerator\n"
        "found = start_accelerator()\n"
        "print(found.mixed_precision, found.state.dynamo_plugin.backend.value.lower())"
    )
    told = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["no", "no"]
