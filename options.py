"""The options that several commands share; those of one command each: command_options.py."""

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


def together(*decorators: Function) -> Callable[[Function], Function]:
    """Return one decorator that adds all of these options, in the order of --help."""

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


common_options = together(
    click.option("--json", "as_json", is_flag=True, help="Print only the report, as JSON, on stdout."),
    click.option("-v", "--verbose", is_flag=True, help="Say more, with the libraries' warnings."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the report."),
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seeds everything random.")
runtime_options = together(
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
output_options = together(
    click.option("-o", "--output", type=PATH, required=True, help="What to make."),
    click.option("--force", is_flag=True, help="Replace what stands there."),
)
DATA_HELP = (
    "digits, a folder, FILE.npz, FILE.tsv (or .csv, .jsonl) of texts, wds:SHARDS.tar, torchvision:NAME or "
    "FILE.py:FACTORY."
)
data_option = click.option("--data", required=True, help=DATA_HELP)
optional_data = click.option("--data", help=DATA_HELP)
skip_bad_option = click.option(
    "--skip-bad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Unreadable samples of --data that may be left out.",
)
init_option = click.option(
    "--init-from", metavar="MODEL", help="Start from this model's tensors of the same name and shape."
)
train_options = together(
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
        help="Pixels of padding on each side before a random crop.",
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


shape_option = click.option(
    "--input-shape",
    callback=_shapes,
    multiple=True,
    metavar="SHAPE",
    help="Shape of an input without its batch axis, where neither model nor data tells: C,H,W of floats, or "
    "int64:SIZES[,below=N] of whole numbers from 0 to N - 1 (0 and 1 by default), as in int64:128,below=30522. "
    "Repeat it for several inputs, in the order of forward.",
)
