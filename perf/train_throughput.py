"""Images per second of distilling one student, against a plain loop, the peers' loops, and the ceiling.

Usage: python perf/train_throughput.py --data cifar10.npz --teacher-weights resnet56.safetensors
    [--teacher-file int8.onnx] [--turns 5] [--steps 20] [--json]

ResNet-56 teaches ResNet-20, batch 128, crop and flip. All take turns of so many steps in one process, and the median of
the turns' rates counts. The ceiling is the student's bare forward and backward on one made-up batch, run as the trial
chose, without teacher, data or optimizer. Peers that are not installed are left out and named.
All run on the CPU. Exits 3 when the cached loop makes less than 4x the plain loop's rate, or less than 80 % of the
ceiling's.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bars import at_least, bars_table
from peer_loops import BATCH, KD_RATIO, TEMPERATURE, Steps, plain_loop, timm_loop, torchdistill_loop
from results_file import markdown_table, measured_here, mistakes_told, page, publish
from torch import Tensor

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distillation_loss
from compress.distillation.teacher_cache import TeacherCache
from compress.distillation.teachers import RunTeachers, cached_teacher_runner, teacher_runner
from compress.training.speed_trial import choose_execution
from compress.training.step import TrainBatch, epoch_batches, prepare_loop, train_mode, train_step
from core.data import Data
from core.data_reference import load_data
from core.model_reference import load_onnx_model, load_torch_model
from core.outputs import logits_in
from core.predict import frozen_copy
from core.torch_model import TorchModel, example_inputs

LEAST_SPEEDUP, LEAST_OF_CEILING = 4.0, 0.8
FACTORY = "recipes/cifar_resnet.py"
CONFIG = DistillConfig(
    batch_size=BATCH, temperature=TEMPERATURE, kd_ratio=KD_RATIO, crop_padding=4, flip=True, augmentations=1
)
TYPICAL_STEPS = 60_000  # 170 epochs of CIFAR-10: what the trial is told, so that it tries everything

PLAIN, CACHED, CEILING = "plain loop", "onnxpress, teacher cached", "ceiling: bare forward and backward"


def main() -> None:
    """Measure, write docs/results/train-throughput.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher-weights", required=True)
    parser.add_argument("--teacher-file", help="the teacher as an .onnx file, for one more row")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    if torch.accelerator.is_available():
        sys.exit("this compares loops on a CPU, and onnxpress would take the GPU: hide it with CUDA_VISIBLE_DEVICES=")
    with mistakes_told(), tempfile.TemporaryDirectory() as scratch:
        result = _measured(given, Path(scratch))
    publish(result, _markdown(result), as_json=given.json)


def _measured(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    data = load_data(given.data)
    student = load_torch_model(f"{FACTORY}:resnet20", data)
    teacher = load_torch_model(f"{FACTORY}:resnet56,weights={given.teacher_weights}", data)
    execution, tried = choose_execution(student, CONFIG, TYPICAL_STEPS)
    run_teachers = teacher_runner((teacher,), data, student.preprocessing, provider="cpu", threads=0)
    contenders: dict[str, Steps] = {
        PLAIN: plain_loop(student, teacher, data),
        CACHED: _ours(student, data, execution, _filled(run_teachers, teacher, scratch, data, execution)),
        "onnxpress, teacher at every step": _ours(student, data, execution, run_teachers),
        CEILING: _ceiling(student, execution),
    }
    if given.teacher_file:
        file = teacher_runner(
            (load_onnx_model(given.teacher_file),), data, student.preprocessing, provider="cpu", threads=0
        )
        contenders["onnxpress, teacher as an int8 file at every step"] = _ours(student, data, execution, file)
    left_out = []
    for name, make in {"timm": timm_loop, "torchdistill": torchdistill_loop}.items():
        if importlib.util.find_spec(name) is None:
            left_out.append(name)
        else:
            contenders[name] = make(student, teacher, data)
    rates = _interleaved(contenders, given.turns, given.steps)
    return measured_here(
        "train-throughput",
        f"python perf/train_throughput.py --data DATA --teacher-weights WEIGHTS --teacher-file FILE "
        f"--turns {given.turns} --steps {given.steps}",
        chosen=asdict(execution),
        tried=[one.model_dump() for one in tried],
        left_out=left_out,
        rows=[
            {
                "loop": name,
                "images_per_second": statistics.median(found),
                "lowest": min(found),
                "highest": max(found),
                "to_plain": _median_ratio(found, rates[PLAIN]),
            }
            for name, found in rates.items()
        ],
        bars=[
            at_least("speedup over the plain loop", _median_ratio(rates[CACHED], rates[PLAIN]), LEAST_SPEEDUP),
            at_least("share of the ceiling", _median_ratio(rates[CACHED], rates[CEILING]), LEAST_OF_CEILING),
        ],
    )


def _median_ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the turns of one rate to another of the same turn."""
    return statistics.median(rate / other for rate, other in zip(rates, others, strict=True))


def _interleaved(contenders: dict[str, Steps], turns: int, steps: int) -> dict[str, list[float]]:
    """Return the images per second of each turn of each; the first steps, which compile, do not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        for _ in range(3):
            next(contender)
    for turn in range(turns):
        for name, contender in contenders.items():
            next(contender)
            started = time.perf_counter()
            for _ in range(steps):
                next(contender)
            rates[name].append(steps * BATCH / (time.perf_counter() - started))
            print(f"turn {turn + 1}/{turns}: {name}: {rates[name][-1]:.0f} images/s", file=sys.stderr)
    return rates


def _ours(student: TorchModel, data: Data, execution: Any, run_teachers: RunTeachers) -> Steps:
    def loss(outputs: object, batch: TrainBatch) -> Tensor:
        return distillation_loss(logits_in(outputs), run_teachers(batch).logits, batch.targets, CONFIG)

    loop = prepare_loop(student, data.split("train"), CONFIG, execution, loss)
    train_mode(loop)
    while True:
        for batch in epoch_batches(loop, 0):
            train_step(loop, batch)
            yield


def _filled(run_teachers: RunTeachers, teacher: TorchModel, scratch: Path, data: Data, execution: Any) -> RunTeachers:
    """Return the cached teacher; the cache holds something for every sample, as after the first epoch."""
    split = data.split("train")
    cache = TeacherCache(scratch, {}, num_samples=len(split), num_outputs=len(data.labels), limit_bytes=1 << 30)
    said = torch.randn(len(split), len(data.labels))
    cache.write(0, torch.arange(len(split)), said, in_bfloat16=execution.use_bfloat16)
    return cached_teacher_runner(run_teachers, cache, (teacher,))


def _ceiling(student: TorchModel, execution: Any) -> Steps:
    layout = execution.memory_format
    module = frozen_copy(student, "cpu").to(memory_format=layout).requires_grad_(True).train()
    run: Callable[[Tensor], Tensor] = torch.compile(module) if execution.compile else module
    inputs = example_inputs(student, BATCH)[0].contiguous(memory_format=layout)
    teacher, targets = torch.randn(BATCH, len(student.labels)), torch.arange(BATCH) % len(student.labels)
    while True:
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=execution.use_bfloat16):
            logits = run(inputs)
        torch.autograd.backward(distillation_loss(logits.float(), (teacher,), targets, CONFIG))
        yield


def _markdown(result: dict[str, Any]) -> str:
    columns = {
        "loop": lambda row: row["loop"],
        "images/s": lambda row: f"{row['images_per_second']:.0f}",
        "turns": lambda row: f"{row['lowest']:.0f} to {row['highest']:.0f}",
        "to the plain loop": lambda row: f"{row['to_plain']:.2f}x",
    }
    chosen = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in result["chosen"].items())
    tried = {
        "precision": lambda one: one["precision"],
        "channels last": lambda one: "yes" if one["channels_last"] else "no",
        "compiled": lambda one: "yes" if one["compile"] else "no",
        "ms a step": lambda one: f"{one['step_ms']:.0f}" if one["step_ms"] else one["reason"],
    }
    parts = [
        "Batch 128, crop and flip; the median of interleaved turns.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
        f"The trial chose {chosen}; it tried:\n",
        markdown_table(result["tried"], tried),
    ]
    if result["left_out"]:
        parts.append(f"Not installed, and so not measured: {', '.join(result['left_out'])}.\n")
    return page("Distilling ResNet-20 from ResNet-56: images per second", result, *parts)


if __name__ == "__main__":
    main()
