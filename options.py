"""The options of the commands: those that several share, and the long lists of single ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from core.input_spec import parse_input_spec

Function = Callable[..., Any]
PATH = click.Path(path_type=Path)
RATIO = click.FloatRange(0, 1)
POSITIVE = click.FloatRange(0, min_open=True)
FACTOR = click.FloatRange(1, min_open=True)


def _together(*decorators: Function) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def comma_list(kind: click.ParamType[Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return the callback of an option that takes several values, separated by commas."""

    def parse(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Any, ...]:
        parts = value.split(",") if value or parameter.default else ()  # none only where none is the default
        return tuple(kind.convert(part.strip(), parameter, context) for part in parts)

    return parse


common_options = _together(
    click.option("--json", "as_json", is_flag=True, help="Print only the report, as JSON, on stdout."),
    click.option("-v", "--verbose", is_flag=True, help="Say more, with the libraries' warnings."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the report."),
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seeds everything random.")
runtime_options = _together(
    click.option(
        "--provider", default="cpu", show_default=True, help="cpu, cuda, or the name ONNX Runtime has for a provider."
    ),
    click.option(
        "--threads",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Threads of an ONNX Runtime session; 0 takes all cores.",
    ),
)
output_options = _together(
    click.option("-o", "--output", type=PATH, required=True, help="What to make."),
    click.option("--force", is_flag=True, help="Replace what stands there."),
)
DATA_HELP = (
    "digits, a folder, FILE.npz, FILE.tsv (or .csv, .jsonl) of texts, wds:SHARDS.tar, torchvision:NAME or "
    "FILE.py:FACTORY."
)
data_option = click.option("--data", required=True, help=DATA_HELP)
optional_data = click.option("--data", help=DATA_HELP)
init_option = click.option(
    "--init-from", metavar="MODEL", help="Start from this model's tensors of the same name and shape."
)
train_options = _together(
    click.option(
        "--epochs", type=click.IntRange(1), default=10, show_default=True, help="Passes over the training split."
    ),
    click.option(
        "--batch-size", type=click.IntRange(2), default=128, show_default=True, help="Samples an optimizer step."
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "lbfgs", "cg"]),
        default="sgd",
        show_default=True,
        help="sgd has Nesterov momentum 0.9; lbfgs and cg see all samples at once.",
    ),
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        default=0.05,
        show_default=True,
        help="Highest learning rate; after a warm-up epoch a cosine takes it to 0.",
    ),
    click.option(
        "--label-smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Share of the target spread over all classes.",
    ),
    click.option(
        "--crop-padding",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Pixels a side of padding before a random crop.",
    ),
    click.option("--flip/--no-flip", default=False, show_default=True, help="Mirror half of the images."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="auto takes what a short trial measures to be faster.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Run the student through torch.compile; by default a long run tries whether that is faster.",
    ),
    click.option(
        "--activation",
        type=click.Choice(["relu", "relu6", "leaky-relu", "hardswish", "silu", "gelu"]),
        help="Put this activation in place of the model's before training.",
    ),
    click.option(
        "--skip-bad",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Unreadable samples that may be left out.",
    ),
    click.option(
        "--track",
        default="",
        metavar="NAMES",
        callback=comma_list(click.Choice(["tensorboard", "mlflow"])),
        help="Send metrics to some of tensorboard,mlflow.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting of such a stage, as docs/settings.md lists them; repeatable.",
    ),
)

PRUNING_TARGETS = ("speedup", "latency_ms", "macs_ratio", "params_ratio", "pruning_ratio")
prune_options = _together(
    click.option(
        "--speedup",
        type=FACTOR,
        help="Target: how many times faster ONNX Runtime is to run it, measured; the usual choice.",
    ),
    click.option("--latency-ms", type=POSITIVE, help="Target: what ONNX Runtime is to take for a batch, measured."),
    click.option("--macs-ratio", type=FACTOR, help="Target: how many times fewer multiply-accumulates."),
    click.option("--params-ratio", type=FACTOR, help="Target: how many times fewer parameters."),
    click.option(
        "--pruning-ratio",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Target: share of channels to remove.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "int8"]),
        default="float32",
        show_default=True,
        help="What the file will be deployed in; latencies are measured in it.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Batch that latencies are measured at.",
    ),
    click.option(
        "--allocation",
        type=click.Choice(["latency", "global", "uniform", "isomorphic"]),
        help="How the cut is spread: latency takes least damage per measured millisecond, global ranks all channels "
        "together, uniform takes the same share of each layer, isomorphic ranks among layers of like kind. Default: "
        "latency for a measured target, else global.",
    ),
    click.option(
        "--importance",
        type=click.Choice(["magnitude", "bn", "lamp", "fpgm", "taylor", "hessian", "random"]),
        default="magnitude",
        show_default=True,
        help="Which channels of a layer go first; taylor and hessian need labelled --data.",
    ),
    click.option(
        "--round-to",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Keep channel counts at multiples of this.",
    ),
    click.option(
        "--max-pruning-ratio",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="Share of one layer's channels that is never exceeded.",
    ),
    click.option(
        "--prune-heads",
        is_flag=True,
        help="Take whole attention heads, in place of channels of every head; with --allocation uniform.",
    ),
    click.option("--ignore", multiple=True, metavar="MODULE", help="Leave this module whole; repeatable."),
    click.option("--baseline", metavar="MODEL", help="Count factors from this model, as when pruning in steps."),
    click.option(
        "--sensitivity",
        is_flag=True,
        help="Instead of pruning: measure what each layer and block bears, and write the plot to OUTPUT.",
    ),
)


quantize_options = _together(
    click.option(
        "--precision",
        type=click.Choice(["int8", "int4", "float16", "bfloat16"]),
        default="int8",
        show_default=True,
        help="int4 is for transformers' matrices, the floats for GPUs.",
    ),
    click.option(
        "--activation-type", type=click.Choice(["uint8", "int8"]), help="Default: what is fast on this machine."
    ),
    click.option("--weight-type", type=click.Choice(["uint8", "int8"]), help="Default: what is fast on this machine."),
    click.option(
        "--per-channel/--per-tensor",
        default=None,
        help="One weight scale per channel, or one in all. Default: what is fast.",
    ),
    click.option(
        "--form", type=click.Choice(["qdq", "qoperator", "dynamic"]), help="Default: what is fast on this machine."
    ),
    click.option(
        "--portable",
        "reduce_range",
        flag_value=True,
        default=None,
        help="7-bit weights: as right on x86 processors without VNNI, whose int8 multiply saturates.",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        help="Points of accuracy that may be lost.",
    ),
    click.option(
        "--calibration-method",
        type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
        help="How a range follows from what was seen. Default: minmax; where forms are tried, the others after it.",
    ),
    click.option(
        "--calibration-samples",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        help="Training samples to look at.",
    ),
    click.option(
        "--exclude", "nodes_to_exclude", multiple=True, metavar="NODE", help="Leave this node in float; repeatable."
    ),
    click.option(
        "--sensitivity",
        is_flag=True,
        help="Instead of quantizing: plot, to OUTPUT, what each layer loses.",
    ),
    click.option(
        "--qat", is_flag=True, help="Train a torch MODEL to bear int8, itself the teacher, where it loses too much."
    ),
    click.option("--epochs", type=click.IntRange(1), help="Of --qat; 5 unless given."),
    click.option(
        "--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate of --qat; 0.001 unless given."
    ),
    click.option("--seed", type=int, help="Seeds everything random in --qat; 0 unless given."),
)


def _shapes(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...] | None:
    found = []
    for value in values:
        try:
            found.append(parse_input_spec(value))
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is neither C,H,W, like 3,224,224, nor int64:SIZES, like int64:128,below=30522"
            ) from None
    return tuple(found) or None


def _returns(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from core.answers import is_known

    if not is_known(value):
        raise click.BadParameter(f"{value!r} is not logits, probabilities or top-K with a number, like top-5")
    return value


export_options = _together(
    click.option(
        "--input",
        type=click.Choice(["float32", "uint8"]),
        default="float32",
        show_default=True,
        help="What the file takes: float32 (N, C, H, W), normalised before, or raw uint8 images (N, H, W, C) of the "
        "model's size, which it normalises itself.",
    ),
    click.option(
        "--returns",
        default="logits",
        show_default=True,
        callback=_returns,
        metavar="logits|probabilities|top-K",
        help="What it returns; top-5 are the five highest probabilities and their classes.",
    ),
    click.option(
        "--opset", type=click.IntRange(18, 23), default=20, show_default=True, help="Version of the ONNX operator set."
    ),
    click.option("--atol", type=click.FloatRange(0), default=1e-4, show_default=True, help="Absolute tolerance."),
    click.option("--rtol", type=click.FloatRange(0), default=1e-3, show_default=True, help="Relative tolerance."),
)

sweep_options = _together(
    click.option(
        "--provider",
        "providers",
        default="cpu",
        show_default=True,
        callback=comma_list(click.STRING),
        help="cpu, cuda, or the name ONNX Runtime has for a provider; several: cpu,cuda.",
    ),
    click.option(
        "--batch-size",
        "batch_sizes",
        default="1",
        show_default=True,
        callback=comma_list(click.IntRange(1)),
        help="Samples a run; several: 1,8,32.",
    ),
    click.option(
        "--sequence-length",
        type=click.IntRange(1),
        help="Tokens of the made-up texts that latency is measured on. Default: the most that the model reads.",
    ),
    click.option(
        "--threads",
        default="0",
        show_default=True,
        callback=comma_list(click.IntRange(0)),
        help="Threads of a session; 0 takes all cores this process may use; several: 1,2.",
    ),
)
shape_option = click.option(
    "--input-shape",
    callback=_shapes,
    multiple=True,
    metavar="SHAPE",
    help="Shape of an input without its batch axis, where neither model nor data tells: C,H,W of floats, or "
    "int64:SIZES[,below=N] of whole numbers from 0 to N - 1 (0 and 1 by default), as in int64:128,below=30522. "
    "Repeat it for several inputs, in the order of forward.",
)
