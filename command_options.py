"""The options of one command each; those that several share: options.py, which go together: option_rules.py."""

import click

from options import DATA_HELP, FACTOR, PATH, POSITIVE, RATIO, comma_list, skip_bad_option, together

find_lr_option = click.option(
    "--find-lr", is_flag=True, help="Instead of training: test which --lr suits, and write the plot to OUTPUT."
)

distill_options = together(
    click.option(
        "--teacher", "teachers", required=True, multiple=True, help="Any model, an .onnx file included; repeatable."
    ),
    click.option(
        "--method",
        type=click.Choice(["kd", "ls", "dkd", "dist"]),
        default="kd",
        show_default=True,
        help="kd (Hinton), ls (logit standardization), dkd (decoupled) or dist (correlations).",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=4.0,
        show_default=True,
        help="T, which softens both distributions.",
    ),
    click.option(
        "--kd-ratio",
        type=RATIO,
        default=0.9,
        show_default=True,
        help="Share of the teacher's loss; the rest is the labels'. With 1 no labels are needed.",
    ),
    click.option(
        "--hint",
        "hints",
        multiple=True,
        metavar="METHOD:STUDENT=TEACHER",
        help="Compare two modules' outputs too, as in fitnet:layer3=layer3; fitnet, at or rkd; repeatable.",
    ),
    click.option(
        "--teacher-cache",
        type=PATH,
        help="Folder that keeps what the teacher says of a sample; with --set augmentations=N it runs N times for "
        "each.",
    ),
)

PRUNING_TARGETS = ("speedup", "latency_ms", "macs_ratio", "params_ratio", "pruning_ratio")
prune_options = together(
    click.option("--data", help=f"For the latency allocation, statistics and accuracies: {DATA_HELP}"),
    skip_bad_option,
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


def _returns(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from core.answers import is_known

    if not is_known(value):
        raise click.BadParameter(f"{value!r} is not logits, probabilities or top-K with a number, like top-5")
    return value


export_options = together(
    click.option("--data", help=f"Tells a fresh model its classes and input: {DATA_HELP}"),
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

quantize_options = together(
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

verify_options = together(
    click.option("--reference", required=True, help="What is right: any model."),
    click.option(
        "--atol", type=click.FloatRange(0), help="Absolute tolerance; 1e-4 for float32 files unless a limit is given."
    ),
    click.option(
        "--rtol", type=click.FloatRange(0), help="Relative tolerance; 1e-3 for float32 files unless a limit is given."
    ),
    click.option(
        "--min-sqnr-db",
        type=float,
        help="Least signal-to-noise ratio, dB; 10 for int8 and int4 files, 35 for float16, 20 for bfloat16 unless a "
        "limit is given.",
    ),
    click.option(
        "--min-agreement", type=click.FloatRange(0, 100), help="Least share of equal top-1 classes, in percent."
    ),
)

bench_options = together(
    click.option("--data", help=f"Measure accuracy on its test split too: {DATA_HELP}"),
    skip_bad_option,
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
    click.option(
        "--iterations",
        type=click.IntRange(1),
        default=700,
        show_default=True,
        help="Least timed runs of each model, fewer where --max-seconds is too short; a p99 needs 662.",
    ),
    click.option(
        "--max-seconds",
        type=click.FloatRange(0, min_open=True),
        default=120.0,
        show_default=True,
        help="Time that a setting's timing takes at most, though its speedups are not sharp; one round is always run.",
    ),
    click.option(
        "--torch",
        "torch_modes",
        default="eager",
        show_default=True,
        callback=comma_list(click.Choice(["eager", "compiled"])),
        help="How models that are torch modules run; both: eager,compiled.",
    ),
    click.option(
        "--require-placement", type=RATIO, help="Exit 3 when a smaller share of a model's nodes runs on the provider."
    ),
    click.option("--corruptions", is_flag=True, help="Accuracy under noise, blur, brightness, JPEG and shifts too."),
    click.option("--attack", type=click.Choice(["fgsm"]), help="Accuracy under a small adversarial step too."),
    click.option(
        "--attack-source",
        metavar="MODEL",
        help="Torch model whose gradients the attack follows; default the first given.",
    ),
    click.option(
        "--scenario",
        "scenarios",
        default="",
        metavar="NAMES",
        callback=comma_list(click.Choice(["single-stream", "offline", "server"])),
        help="Service figures through MLPerf LoadGen: some of single-stream,offline,server.",
    ),
    click.option("--slo-ms", type=click.FloatRange(0, min_open=True), help="What the server's p99 must stay within."),
    click.option("--report", "html", type=PATH, help="Write the report as one HTML file that opens offline."),
    click.option("--compare", "old", type=PATH, help="Exit 3 when a figure regressed against this report of --json."),
)

run_options = together(
    click.option("-o", "--output", type=PATH, help="Folder of the run; default runs/NAME."),
    click.option("--dry-run", is_flag=True, help="Print the plan and what is done already."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override STAGE.KEY, gate.KEY or a KEY above the stages; repeatable.",
    ),
)
