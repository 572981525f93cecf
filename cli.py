"""The command line: parse, one library call, render. Nothing heavy is imported before a command runs."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from command_options import (
    bench_options,
    distill_options,
    export_options,
    find_lr_option,
    prune_options,
    quantize_options,
    run_options,
    verify_options,
)
from invocation import Cli, render, session
from option_rules import qat_settings, refuse_tracking, require_pruning_target, require_server_limit
from options import (
    PATH,
    common_options,
    data_option,
    init_option,
    optional_data,
    output_options,
    runtime_options,
    seed_option,
    shape_option,
    skip_bad_option,
    train_options,
)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxpress")
def main() -> None:
    """From a trained model to a smaller, faster ONNX file, with proof measured on ONNX Runtime.

    MODEL is timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, FILE.py:FACTORY, a checkpoint folder or an .onnx file;
    arguments follow commas: timm:resnet18,num_classes=10,weights=FILE.safetensors.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 ran and missed a limit.
    """


@main.command()
@click.argument("model")
@data_option
@skip_bad_option
@init_option
@train_options
@output_options
@seed_option
@common_options
@find_lr_option
def finetune(
    model: str,
    data: str,
    init_from: str | None,
    output: Path,
    force: bool,
    skip_bad: int,
    track: tuple[str, ...],
    find_lr: bool,
    **given: Any,
) -> None:
    """Train MODEL on labelled data; keep its best epoch.

    \b
    onnxpress finetune timm:resnet18 --data photos/ --epochs 20 -o runs/resnet18
    onnxpress finetune timm:resnet18 --data photos/ --find-lr -o lr.html
    """
    refuse_tracking(track, find_lr=find_lr)
    with session(given) as (options, progress):
        from compress.training.finetune import FinetuneConfig, finetune
        from compress.training.state import partial_folder
        from compress.training.trackers import tracking
        from core.checkpoint import refuse_checkpoint
        from core.data_reference import load_data
        from core.typed_config import with_settings
        from core.whole_output import refuse_overwrite
        from stages import drop_state, find_learning_rate, save_trained, start_model

        refuse = refuse_overwrite if find_lr else refuse_checkpoint
        refuse(output, force=force)
        config = with_settings(FinetuneConfig, options)
        loaded = load_data(data, skip_bad)
        start = start_model(model, init_from, loaded, config.seed)
        if find_lr:
            report: Any = find_learning_rate(start, loaded, config, output, progress)
        else:
            with tracking(track, output, asdict(config)) as on_epoch:
                result = finetune(
                    start, loaded, config, workspace=partial_folder(output), progress=progress, on_epoch=on_epoch
                )
            save_trained(result.model, result.report, output)
            drop_state(output)
            report = result.report
    render(report, given)


@main.command()
@click.argument("student")
@distill_options
@data_option
@skip_bad_option
@init_option
@train_options
@output_options
@seed_option
@runtime_options
@common_options
def distill(
    student: str,
    teachers: tuple[str, ...],
    data: str,
    init_from: str | None,
    teacher_cache: Path | None,
    output: Path,
    force: bool,
    skip_bad: int,
    track: tuple[str, ...],
    **given: Any,
) -> None:
    """Train STUDENT on a teacher's logits and the labels; keep its best epoch.

    \b
    onnxpress distill timm:resnet18 --teacher runs/resnet50 --data photos/ --epochs 20 -o runs/student
    """
    with session(given) as (options, progress):
        from compress.distillation.config import DistillConfig
        from compress.distillation.distill import distill
        from compress.training.state import partial_folder
        from compress.training.trackers import tracking
        from core.checkpoint import refuse_checkpoint
        from core.data_reference import load_data
        from core.model_reference import load_model
        from core.typed_config import with_settings
        from stages import drop_state, save_trained, start_model

        refuse_checkpoint(output, force=force)
        config = with_settings(DistillConfig, options)
        loaded = load_data(data, skip_bad)
        with tracking(track, output, asdict(config)) as on_epoch:
            result = distill(
                start_model(student, init_from, loaded, config.seed),
                [load_model(teacher, loaded) for teacher in teachers],
                loaded,
                config,
                workspace=partial_folder(output),
                teacher_cache=teacher_cache,
                progress=progress,
                on_epoch=on_epoch,
            )
        save_trained(result.model, result.report, output)
        drop_state(output)
    render(result.report, given)


@main.command()
@click.argument("model")
@prune_options
@shape_option
@output_options
@seed_option
@runtime_options
@common_options
def prune(
    model: str,
    data: str | None,
    skip_bad: int,
    input_shape: tuple[Any, ...] | None,
    baseline: str | None,
    sensitivity: bool,
    output: Path,
    force: bool,
    **given: Any,
) -> None:
    """Remove channels and residual blocks from MODEL until it is as fast as you ask.

    \b
    onnxpress prune runs/student --speedup 2 --threads 1 --data photos/ -o runs/pruned
    onnxpress prune runs/student --sensitivity --data photos/ -o sensitivity.html
    """
    require_pruning_target(given, sensitivity=sensitivity, data=data)
    with session(given) as (options, progress):
        from compress.pruning.prune import PruneConfig, prune
        from compress.pruning.ranking import RankingConfig
        from core.checkpoint import refuse_checkpoint
        from core.data_reference import load_data
        from core.model_reference import load_torch_model
        from core.typed_config import field_names
        from core.whole_output import refuse_overwrite
        from stages import find_sensitivity, measuring, save_trained

        (refuse_overwrite if sensitivity else refuse_checkpoint)(output, force=force)
        provider, threads = options.pop("provider"), options.pop("threads")
        loaded = load_data(data, skip_bad) if data else None
        start = load_torch_model(model, loaded, input_shape, options["seed"])
        if sensitivity and loaded is not None:
            ranking = RankingConfig(**{name: options[name] for name in options if name in field_names(RankingConfig)})
            report: Any = find_sensitivity(start, ranking, loaded, output, progress)
        else:
            config = PruneConfig(**options)
            with measuring(provider, threads, config.batch_size, config.precision, loaded) as measure:
                whole = load_torch_model(baseline, loaded, input_shape) if baseline else None
                result = prune(start, config, data=loaded, measuring=measure, baseline=whole, progress=progress)
            save_trained(result.model, result.report, output)
            report = result.report
    render(report, given)


@main.command()
@click.argument("model")
@export_options
@shape_option
@output_options
@common_options
def export(
    model: str, data: str | None, input_shape: tuple[Any, ...] | None, output: Path, force: bool, **given: Any
) -> None:
    """Write MODEL as an .onnx file, verified against it at batch 1, 2 and 7.

    \b
    onnxpress export runs/student -o student.onnx
    onnxpress export runs/student --input uint8 --returns top-5 -o student.onnx
    """
    with session(given) as (options, _):
        from core.data_reference import load_data
        from core.external_data import refuse_overwrite_onnx
        from core.model_reference import load_torch_model
        from export.to_onnx import ExportConfig, export

        refuse_overwrite_onnx(output, force=force)
        loaded = load_torch_model(model, load_data(data) if data else None, input_shape)
        result = export(loaded, output, ExportConfig(**options), force=force)
    render(result.report, given)


@main.command()
@click.argument("model")
@data_option
@skip_bad_option
@quantize_options
@output_options
@runtime_options
@common_options
def quantize(
    model: str,
    data: str,
    skip_bad: int,
    sensitivity: bool,
    qat: bool,
    epochs: int | None,
    lr: float | None,
    seed: int | None,
    output: Path,
    force: bool,
    **given: Any,
) -> None:
    """Quantize MODEL.onnx to int8, calibrated on training samples, in the form that measures fastest here.

    Of forms within 2 % of the fastest that lose at most --max-drop, one that loses about as little as any is kept.

    Types, scales and form given by hand are obeyed and nothing is tried; so is another precision. With --qat, MODEL is
    a torch model, which is exported first, and trained to bear int8 where calibration alone loses too much.

    \b
    onnxpress quantize student.onnx --data photos/ -o student.int8.onnx
    onnxpress quantize student.onnx --sensitivity --data photos/ -o sensitivity.html
    onnxpress quantize runs/student --qat --max-drop 0.2 --data photos/ -o student.int8.onnx
    """
    training: dict[str, Any] = qat_settings(
        given["precision"], sensitivity=sensitivity, qat=qat, epochs=epochs, lr=lr, seed=seed
    )
    with session(given) as (options, progress):
        from compress.distillation.config import QAT_DEFAULTS, DistillConfig
        from compress.quantization.config import QuantizeConfig
        from core.data_reference import load_data
        from core.external_data import refuse_overwrite_onnx
        from core.model_reference import load_onnx_model, load_torch_model
        from core.whole_output import refuse_overwrite
        from stages import find_int8_sensitivity, quantize_measured, quantize_trained

        (refuse_overwrite if sensitivity else refuse_overwrite_onnx)(output, force=force)
        loaded, threads = load_data(data, skip_bad), options.pop("threads")
        config = QuantizeConfig(**options)
        if qat:
            how = DistillConfig(quantization_aware=True, **QAT_DEFAULTS | training)
            start = load_torch_model(model, loaded, seed=how.seed)
            report: Any = quantize_trained(start, loaded, output, config, how, threads, progress, force=force).report
        elif sensitivity:
            report = find_int8_sensitivity(load_onnx_model(model), loaded, config, output, progress)
        else:
            file = load_onnx_model(model)
            report = quantize_measured(file, loaded, output, config, threads, progress, force=force).report
    render(report, given)


@main.command()
@click.argument("candidate")
@verify_options
@optional_data
@skip_bad_option
@seed_option
@runtime_options
@common_options
def verify(candidate: str, reference: str, data: str | None, skip_bad: int, **given: Any) -> None:
    """Compare CANDIDATE with a reference on the same inputs; exit 3 when it is too far off.

    A limit that you give replaces the usual ones; where you give only one of --atol and --rtol, the other is 0.

    \b
    onnxpress verify student.int8.onnx --reference student.onnx --data photos/ --min-agreement 98
    """
    with session(given) as (options, _):
        from core.data_reference import load_data
        from core.model_reference import load_model
        from export.verify import VerifyConfig, require_verified, verify

        loaded = load_data(data, skip_bad) if data else None
        report = verify(load_model(reference, loaded), load_model(candidate, loaded), VerifyConfig(**options), loaded)
    render(report, given)
    require_verified(report)


@main.command()
@click.argument("models", nargs=-1, required=True)
@bench_options
@common_options
def bench(
    models: tuple[str, ...],
    data: str | None,
    skip_bad: int,
    providers: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    require_placement: float | None,
    attack_source: str | None,
    html: Path | None,
    old: Path | None,
    **given: Any,
) -> None:
    """Measure several MODELS interleaved; the first is the baseline.

    An .onnx file runs in ONNX Runtime, any other model in torch.

    \b
    onnxpress bench teacher.onnx student.onnx student.int8.onnx --data photos/ --threads 1
    onnxpress bench student.int8.onnx --json > today.json
    onnxpress bench student.int8.onnx --compare yesterday.json
    """
    require_server_limit(given["scenarios"], given["slo_ms"])
    with session(given) as (options, progress):
        from bench.compare import BenchConfig, sweep
        from bench.extras import ExtrasConfig, full_bench
        from bench.gate import require_placement as require_placed
        from bench.html_report import refuse_report, write_html
        from bench.regression import compare_reports, load_report, require_no_regression
        from core.data_reference import load_data
        from core.model_reference import load_model, load_torch_model

        before = load_report(old) if old else None
        if html:
            refuse_report(html)
        loaded = load_data(data, skip_bad) if data else None
        extras = ExtrasConfig(**{name: options.pop(name) for name in ("corruptions", "attack", "scenarios", "slo_ms")})
        source = load_torch_model(attack_source, loaded) if attack_source else None
        settings = sweep(BenchConfig(**options), providers, batch_sizes, threads)
        report = full_bench([load_model(model, loaded) for model in models], settings, extras, loaded, source, progress)
        if html:
            write_html(report, html)
        compared = compare_reports(before, report) if before else None
    render(compared or report, given)
    if compared:
        require_no_regression(compared.regression)
    if require_placement is not None:
        require_placed(report, require_placement)


@main.command()
@click.argument("recipe", type=PATH)
@run_options
@common_options
def run(recipe: Path, output: Path | None, dry_run: bool, overrides: tuple[str, ...], **given: Any) -> None:
    """Run RECIPE.toml, skipping stages that are done; exit 3 when its gate is missed.

    \b
    onnxpress run digits
    onnxpress run my.toml --set student.epochs=5 --set gate.max_drop=0.5
    """
    with session(given) as (_, progress):
        from bench.gate import require_bars
        from recipe import load_recipe
        from runner import plan
        from runner import run as run_recipe

        loaded = load_recipe(recipe, overrides)
        folder = output or Path("runs") / loaded.name
        if dry_run:
            render(plan(loaded, folder), given)
            return
        report = run_recipe(loaded, folder, progress=progress)
    render(report, given)
    require_bars(report.bars)


@main.command()
@click.argument("model")
@optional_data
@shape_option
@common_options
def inspect(model: str, data: str | None, input_shape: tuple[Any, ...] | None, **given: Any) -> None:
    """Say what MODEL is: inputs, operators, parameters, MACs, size, history.

    \b
    onnxpress inspect student.int8.onnx
    """
    with session(given):
        from core.data_reference import load_data
        from core.describe import describe
        from core.model_reference import load_model

        report = describe(load_model(model, load_data(data) if data else None, input_shape))
    render(report, given)


if __name__ == "__main__":
    sys.exit(main())
