"""Which precision, memory layout and compilation train a student fastest here: measured, not guessed."""

import copy
import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel

from compress.training.accelerator import start_accelerator
from compress.training.config import TrainConfig, part_size
from core.machine import has_bfloat16
from core.outputs import logits_in
from core.preprocessing import Tensors
from core.processes import num_processes
from core.torch_model import TorchModel, example_inputs

logger = logging.getLogger(__name__)

WORTH_A_TRIAL_SECONDS = 60.0  # a run shorter than this gains nothing by looking
WORTH_COMPILING_SECONDS = 600.0  # compiling takes a minute, and its gain must pay that back
LEAST_GAIN = 0.05  # share of a step's time by which a choice must beat the plain one
TIMED_STEPS = 5


@dataclass(frozen=True, slots=True)
class Execution:
    """How a student is run.

    Attributes:
        precision: ``float32`` or ``bfloat16`` (autocast).
        channels_last: Whether images and kernels lie in memory channels last.
        compile: Whether torch.compile runs it.
    """

    precision: Literal["float32", "bfloat16"]
    channels_last: bool
    compile: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and kernels lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def use_bfloat16(self) -> bool:
        """Whether it runs under bfloat16 autocast."""
        return self.precision == "bfloat16"


class TimedExecution(BaseModel, frozen=True):
    """One way that was tried.

    Attributes:
        precision: ``float32`` or ``bfloat16``.
        channels_last: Whether images lay in memory channels last.
        compile: Whether torch.compile ran it.
        step_ms: Forward and backward of one batch, the best of five, in ms; None where it failed.
        reason: Why it failed.
    """

    precision: str
    channels_last: bool
    compile: bool
    step_ms: float | None
    reason: str | None = None


def choose_execution(
    student: TorchModel, config: TrainConfig, num_steps: int
) -> tuple[Execution, tuple[TimedExecution, ...]]:
    """Choose how to run a student, and return what was tried on the way.

    What the config fixes is not tried; where it asks for compiling, precision and layout are chosen without. The rest
    is timed on copies of the student, forward and backward of made-up batches, and kept only where it beats the plain
    way (float32, eager, images channels last) by `LEAST_GAIN`, and compiled the best uncompiled way; a run too short to
    repay the trial takes the plain way.

    Args:
        student: What is to be trained.
        config: Its batch size, and the choices made already.
        num_steps: How many steps the run will take.
    """
    accelerator = start_accelerator()
    candidates = _candidates(student, config, accelerator.device)
    found = (candidates[0], ()) if len(candidates) == 1 else _measured(student, config, num_steps, candidates)
    # Processes must not choose differently.
    first: tuple[Execution, tuple[TimedExecution, ...]] = broadcast_object_list([found])[0]
    return first


def _measured(
    student: TorchModel, config: TrainConfig, num_steps: int, candidates: list[Execution]
) -> tuple[Execution, tuple[TimedExecution, ...]]:
    stopwatch = _Stopwatch(student, part_size(config), start_accelerator().device)
    eager = list(dict.fromkeys(replace(one, compile=False) for one in candidates))
    chosen, *others = eager
    tried = {chosen: stopwatch.time(chosen)}
    if _seconds(tried[chosen], num_steps) >= WORTH_A_TRIAL_SECONDS:
        tried |= {one: stopwatch.time(one) for one in others}
        chosen = _best(tried, chosen)
    compiled = [one for one in candidates if one.compile and one.precision == chosen.precision]  # which takes long
    if compiled and _seconds(tried[chosen], num_steps) >= WORTH_COMPILING_SECONDS:
        tried |= {one: stopwatch.time(one) for one in compiled}
        chosen = _best(tried if config.compile is None else {one: tried[one] for one in compiled}, chosen)
    if config.compile:
        chosen = replace(chosen, compile=True)
    logger.info("trains in %s: %s", _words(chosen), ", ".join(f"{_words(one)} {_figure(tried[one])}" for one in tried))
    return chosen, tuple(tried.values())


def _candidates(student: TorchModel, config: TrainConfig, device: torch.device) -> list[Execution]:
    """Return the ways the config leaves open, the plain one first."""
    is_image = student.preprocessing.kind == "image"
    layouts = [config.channels_last] if config.channels_last is not None else [True, False] if is_image else [False]
    if config.precision != "auto":
        precisions: list[Literal["float32", "bfloat16"]] = [config.precision]
    else:
        precisions = ["float32", "bfloat16"] if _multiplies_bfloat16(device) else ["float32"]
    compiles = [config.compile] if config.compile is not None else [False, True]
    has_lengths = any(spec.symbols for spec in student.inputs)  # every one of which would be compiled anew
    if config.compile is None and (has_lengths or num_processes() > 1):
        compiles = [False]  # several processes: their exchange is not in a step that is timed here
    return [
        Execution(precision, layout, compiled)
        for compiled in compiles
        for precision in precisions
        for layout in layouts
    ]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and has_bfloat16()


class _Stopwatch:
    """Times forward and backward of one batch, on a copy of the student."""

    def __init__(self, student: TorchModel, batch_size: int, device: torch.device) -> None:
        self._student = student
        self._inputs = tuple(one.to(device) for one in example_inputs(student, batch_size))
        self._device = device

    def time(self, execution: Execution) -> TimedExecution:
        layout = execution.memory_format
        module = copy.deepcopy(self._student.module).to(self._device).to(memory_format=layout).train()
        inputs = tuple(tensor.contiguous(memory_format=layout) for tensor in self._inputs)
        found: dict[str, Any] = asdict(execution)
        random_state = torch.get_rng_state()
        try:
            run: Any = torch.compile(module) if execution.compile else module
            self._step(run, inputs, execution)  # the first compiles, and allocates
            seconds = min(self._step(run, inputs, execution) for _ in range(TIMED_STEPS))
            return TimedExecution(**found, step_ms=1000 * seconds)
        except Exception as error:  # whatever a compiler or a kernel fails with, the plain way remains
            logger.debug("%s failed", _words(execution), exc_info=True)
            return TimedExecution(
                **found, step_ms=None, reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
        finally:
            torch.set_rng_state(random_state)

    def _step(self, run: Any, inputs: Tensors, execution: Execution) -> float:
        started = time.perf_counter()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=execution.use_bfloat16):
            logits = logits_in(run(*inputs))
        torch.autograd.backward(logits.float().square().mean())
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter() - started


def _best(tried: dict[Execution, TimedExecution], plain: Execution) -> Execution:
    """Return the fastest, where it beats the plain way by `LEAST_GAIN`."""
    worked = {execution: one.step_ms for execution, one in tried.items() if one.step_ms is not None}
    if not worked:
        return plain
    fastest = min(worked, key=worked.__getitem__)
    return fastest if plain not in worked or worked[fastest] < (1 - LEAST_GAIN) * worked[plain] else plain


def _seconds(tried: TimedExecution, num_steps: int) -> float:
    return float("inf") if tried.step_ms is None else num_steps * tried.step_ms / 1000


def _words(execution: Execution) -> str:
    layout = " channels last" if execution.channels_last else ""
    return f"{execution.precision}{layout}{' compiled' if execution.compile else ''}"


def _figure(tried: TimedExecution) -> str:
    return "failed" if tried.step_ms is None else f"{tried.step_ms:.0f} ms"
