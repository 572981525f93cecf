"""What each kind of stage does, and what one folder's work is handed of another's: speed measured, files verified.

The CLI's commands and a recipe's stages are made of these; only this file and `runner` see all folders.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bench.compare import bench
from bench.latency import measure_against
from bench.layer_latency import layer_latencies
from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.distillation.teachers import cache_description
from compress.pruning.prune import PruneConfig, prune
from compress.pruning.ranking import RankingConfig
from compress.pruning.sensitivity import SensitivityReport, pruning_sensitivity, sensitivity_plot
from compress.quantization.config import QuantizeConfig, layout_asked
from compress.quantization.int8_layouts import fast_layout, require_int8_kernels
from compress.quantization.int8_sensitivity import int8_sensitivity_plot
from compress.quantization.int8_trial import CLOSE, FASTER
from compress.quantization.quantize import Int8SensitivityReport, QuantizeReport, quantization_sensitivity, quantize
from compress.training.finetune import FinetuneConfig, finetune
from compress.training.init_from import init_from
from compress.training.loop import TrainReport, metrics_lines
from compress.training.lr_range_test import LrRangeReport, lr_range_plot, lr_range_test
from compress.training.state import discard_state, partial_folder
from core.checkpoint import save_checkpoint
from core.data import Data
from core.errors import GateMissedError, ToolError
from core.history import digest_of, step
from core.layer_shape import LayerShape
from core.measuring import Measuring, Timed
from core.model import Model
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.processes import is_main_process
from core.progress import Progress
from core.references import file_sha256
from core.result import Report, Result
from core.torch_model import TorchModel, torch_digest
from core.whole_output import require_writable, scratch_folder, whole_file
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, VerifyReport, require_verified, verify
from recipe import Stage
from run_folder import RunFolder

logger = logging.getLogger(__name__)

Measured = TypeVar("Measured", bound=Report)

CALIBRATION_SAMPLES = 32  # of files that are only timed


class WeightsReport(Report, frozen=True):
    """A model whose given weights were taken instead of training it."""

    weights_sha256: str
    validation_accuracy: float | None


@contextmanager
def measuring(provider: str, threads: int, batch_size: int, precision: str, data: Data | None) -> Iterator[Measuring]:
    """Yield what times torch models, and layers, as files of that precision on ONNX Runtime.

    A model timed again is not exported again.

    Raises:
        ToolError: int8 is asked for without data to calibrate it on.
        GateMissedError: It is asked for on a provider where it is not fast.
    """
    types = None
    if precision == "int8":
        if data is None:
            raise ToolError("int8 is calibrated on samples; give --data")
        require_int8_kernels(provider)
        types = fast_layout()
    files: dict[str, OnnxModel] = {}
    with scratch_folder() as scratch:

        def exported(model: TorchModel) -> OnnxModel:
            digest = torch_digest(model)
            if digest not in files:
                file = export(model, scratch / f"{len(files)}.onnx", ExportConfig()).model
                if precision == "int8" and data is not None:
                    config = QuantizeConfig(provider=provider, calibration_samples=CALIBRATION_SAMPLES)
                    file = quantize(file, data, scratch / f"{len(files)}-int8.onnx", config).model
                files[digest] = file
            return files[digest]

        def models(first: TorchModel, second: TorchModel) -> Timed:
            files = exported(first), [exported(second)]
            [timed] = measure_against(*files, provider=provider, threads=threads, batch_size=batch_size)
            return timed

        def layers(shapes: Sequence[LayerShape]) -> list[float]:
            return layer_latencies(
                shapes,
                provider=provider,
                threads=threads,
                batch_size=batch_size,
                types=(types.activation_type, types.weight_type) if types else None,
            )

        yield Measuring(models, layers)


def onnx_speedups(provider: str, threads: int) -> Callable[[OnnxModel, Sequence[OnnxModel]], list[float]]:
    """Return the function that measures the speedups of files over a first on ONNX Runtime, side by side.

    They run at batch 1, or at the one that they take.
    """

    def measured(first: OnnxModel, others: Sequence[OnnxModel]) -> list[float]:
        batch_size = first.fixed_batch or 1
        half_width = CLOSE / 2  # two candidates are compared through the baseline, so each ratio gets half
        timed = measure_against(
            first, others, provider=provider, threads=threads, batch_size=batch_size, half_width=half_width
        )
        return [one.speedup for one in timed]

    return measured


def verify_on(data: Data | None, config: VerifyConfig) -> Callable[[OnnxModel, OnnxModel], VerifyReport]:
    """Return the function that compares a file with its reference and raises when it is too far off."""
    return lambda reference, candidate: require_verified(verify(reference, candidate, config, data))


def start_model(reference: str, donor: str | None, data: Data, seed: int) -> TorchModel:
    """Load the model that training starts from, with the donor's tensors where one is named."""
    model = load_torch_model(reference, data, seed=seed)
    return init_from(model, load_torch_model(donor, data)) if donor else model


def save_trained(model: TorchModel, report: Report, output: Path) -> None:
    """Write a checkpoint with its report, and with its metrics where it was trained.

    The state that an interrupted run goes on from stays, for `drop_state` once all that is to follow is written. Where
    several processes trained it, the main one writes.
    """
    if not is_main_process():
        return
    extra = {"report.json": report.model_dump_json(indent=2) + "\n"}
    if isinstance(report, TrainReport):
        extra["metrics.jsonl"] = metrics_lines(report.metrics)
    save_checkpoint(model, output, extra_files=extra)


def drop_state(output: Path) -> None:
    """Remove what an interrupted run would go on from."""
    if is_main_process():
        discard_state(partial_folder(output))


def find_learning_rate(
    model: TorchModel, data: Data, config: FinetuneConfig, output: Path, progress: Progress
) -> LrRangeReport:
    """Run the learning-rate range test and write its plot."""
    return _plotted(output, lambda: lr_range_test(model, data, config, progress=progress), lr_range_plot)


def find_sensitivity(
    model: TorchModel, config: RankingConfig, data: Data, output: Path, progress: Progress
) -> SensitivityReport:
    """Measure what each layer bears and write the plot."""
    return _plotted(output, lambda: pruning_sensitivity(model, config, data, progress), sensitivity_plot)


def find_int8_sensitivity(
    model: OnnxModel, data: Data, config: QuantizeConfig, output: Path, progress: Progress
) -> Int8SensitivityReport:
    """Measure what each layer loses in int8 and write the plot.

    Raises:
        ToolError: The plot would replace the file, or cannot be written.
    """
    if output.exists() and any(output.samefile(file) for file in model.files):
        raise ToolError(f"{output} is the file to look at, which stays; choose another --output")
    return _plotted(
        output,
        lambda: quantization_sensitivity(model, data, config, progress),
        lambda report: int8_sensitivity_plot(report.layers),
    )


def _plotted(output: Path, measure: Callable[[], Measured], plot: Callable[[Measured], str]) -> Measured:
    """Measure once it is known that the plot can be written, and write it."""
    require_writable(output)
    report = measure()
    with whole_file(output) as part:
        part.write_text(plot(report), encoding="utf-8")
    return report


def quantize_measured(
    model: OnnxModel,
    data: Data,
    output: Path,
    config: QuantizeConfig,
    threads: int,
    progress: Progress,
    *,
    baseline: OnnxModel | None = None,
    force: bool = False,
) -> Result[OnnxModel, QuantizeReport]:
    """Quantize a file with its speed and parity measured on ONNX Runtime."""
    return quantize(
        model,
        data,
        output,
        config,
        baseline=baseline,
        verify=verify_on(data, VerifyConfig(provider=config.provider, threads=threads)),
        measure_speedups=onnx_speedups(config.provider, threads),
        progress=progress,
        force=force,
    )


def quantize_trained(
    model: TorchModel,
    data: Data,
    output: Path,
    config: QuantizeConfig,
    training: DistillConfig,
    threads: int,
    progress: Progress,
    *,
    force: bool = False,
) -> Result[OnnxModel, QuantizeReport]:
    """Export and quantize a model; where that loses too much, train it first to bear it, with itself as the teacher.

    Args:
        model: Left untouched.
        data: Trains, calibrates and scores.
        output: The file to make.
        config: How to quantize.
        training: How to train; quantization-aware. Without labels, the model's own answers alone are learnt from.
        threads: Threads of what is measured.
        progress: Told of every step.
        force: Replace an existing file.

    Raises:
        GateMissedError: Nothing is faster, or what is loses too much after training too.
    """
    with scratch_folder() as scratch:
        whole = export(model, scratch / "float32.onnx", ExportConfig()).model
        try:
            return quantize_measured(whole, data, output, config, threads, progress, force=force)
        except GateMissedError as missed:
            scored = [row for row in missed.tried if row["speedup"] is not None and row["drop"] is not None]
            if missed.tried and not any(row["speedup"] >= FASTER for row in scored):
                raise
            logger.info("%s: %s; training for %d epochs", model.name, missed, training.epochs)
        if training.reduce_range is None:
            training = dataclasses.replace(training, reduce_range=layout_asked(config).reduce_range)
        if not data.split("train").is_labelled:
            training = dataclasses.replace(training, kd_ratio=1.0)
        workspace = partial_folder(output)
        trained = distill(model, model, data, training, workspace=workspace, progress=progress).model
        file = export(trained, scratch / "trained.onnx", ExportConfig()).model
        made = quantize_measured(file, data, output, config, threads, progress, baseline=whole, force=force)
        drop_state(output)
    return Result(made.model, made.report.model_copy(update={"trained_epochs": training.epochs}))


def _run_training(current: RunFolder, stage: Stage) -> tuple[Model, Report]:
    output = current.path(stage)
    workspace = partial_folder(output)
    if "weights" in stage.references:
        model, taken = _take_weights(current, stage)
        save_trained(model, taken, output)
        return model, taken
    start = current.torch(stage.references["model"], stage.config.seed)
    if "init_from" in stage.references:
        start = init_from(start, current.torch(stage.references["init_from"]))
    if stage.kind == "finetune":
        result = finetune(start, current.data, stage.config, workspace=workspace, progress=current.progress)
    else:
        named = stage.references["teacher"]
        teachers = [current.model(teacher) for teacher in (named if isinstance(named, list) else [named])]
        result = distill(
            start,
            teachers,
            current.data,
            stage.config,
            workspace=workspace,
            teacher_cache=_teacher_cache(current, stage, start, teachers),
            progress=current.progress,
        )
    save_trained(result.model, result.report, output)
    return result.model, result.report


def _teacher_cache(current: RunFolder, stage: Stage, student: TorchModel, teachers: Sequence[Model]) -> Path | None:
    """Return the folder of what these teachers say of this data, so augmented: other logits lie beside it."""
    named = stage.references.get("teacher_cache")
    if named is None:
        return None
    description = cache_description(student, teachers, current.data, stage.config)
    return current.output / str(named) / digest_of(description)[:12]


def _take_weights(current: RunFolder, stage: Stage) -> tuple[TorchModel, WeightsReport]:
    """Load the given weights instead of training."""
    weights = Path(stage.references["weights"])
    model = load_torch_model(f"{stage.references['model']},weights={weights}", current.data)
    sha256 = file_sha256(weights)
    done = step("weights", {"file": weights.name, "sha256": sha256}, parent="")
    report = WeightsReport(
        stage="weights",
        weights_sha256=sha256,
        validation_accuracy=_accuracy_if_labelled(model, current.data),
    )
    return dataclasses.replace(model, history=(done,)), report


def _accuracy_if_labelled(model: TorchModel, data: Data) -> float | None:
    return accuracy(*predict(model, data, "validation")) if data.split("validation").is_labelled else None


def _run_prune(current: RunFolder, stage: Stage) -> tuple[Model, Report]:
    config: PruneConfig = stage.config
    recipe = current.recipe
    with measuring(recipe.provider, recipe.threads, config.batch_size, config.precision, current.data) as measure:
        result = prune(
            current.torch(stage.references["model"]),
            config,
            data=current.data,
            measuring=measure,
            baseline=current.torch(stage.references["baseline"]) if "baseline" in stage.references else None,
            progress=current.progress,
        )
    save_trained(result.model, result.report, current.path(stage))
    return result.model, result.report


def _run_export(current: RunFolder, stage: Stage) -> tuple[Model, Report]:
    result = export(current.torch(stage.references["model"]), current.path(stage), stage.config, force=True)
    return result.model, result.report


def _run_quantize(current: RunFolder, stage: Stage) -> tuple[Model, Report]:
    result = quantize_measured(
        current.onnx(stage.references["model"]),
        current.data,
        current.path(stage),
        stage.config,
        current.recipe.threads,
        current.progress,
        force=True,
    )
    return result.model, result.report


def _run_verify(current: RunFolder, stage: Stage) -> tuple[None, Report]:
    reference, candidate = (current.model(stage.references[role]) for role in ("reference", "model"))
    return None, require_verified(verify(reference, candidate, stage.config, current.data))


def _run_bench(current: RunFolder, stage: Stage) -> tuple[None, Report]:
    models = [dataclasses.replace(current.model(name), name=name) for name in stage.references["models"]]
    return None, bench(models, [stage.config], current.data, current.progress)


RUN_STAGE: dict[str, Callable[[RunFolder, Stage], tuple[Model | None, Report]]] = {
    "finetune": _run_training,
    "distill": _run_training,
    "prune": _run_prune,
    "export": _run_export,
    "quantize": _run_quantize,
    "verify": _run_verify,
    "bench": _run_bench,
}
