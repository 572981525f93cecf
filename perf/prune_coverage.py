"""Which architectures can be pruned: each is cut, run, exported, verified and reloaded from its checkpoint.

Usage: python perf/prune_coverage.py [--runs runs/prune-coverage] [--only timm:resnet18,timm:vgg11] [--json]

A third of the channels of every layer goes. Where the tool names a module to leave whole, that is ignored in a further
attempt, as a user would. What the folder has of the same code is not tried again. Exits 3 when fewer than 90 % of the
list come through, or not all that everybody knows.
"""

import argparse
import json
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bars import at_least, bars_table
from results_file import markdown_table, measured_here, page, publish, trees
from tried_apart import Row, as_if_trained, filled, fit_batch_norm, once, tried_apart

from compress.pruning.prune import PruneConfig, PruneReport, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import ToolError
from core.history import digest_of
from core.machine import package_versions
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, example_inputs
from export.to_onnx import ExportConfig, export

LEAST_SHARE = 0.9
RATIO = 1 / 3
ATTEMPTS = 24
LIMIT_SECONDS = 300
ATOL = 1e-3  # random weights round off more than trained ones do
FAMILIES: dict[str, tuple[str, ...]] = {
    "residual": (
        "timm:resnet18",
        "timm:resnet50",
        "timm:resnext50_32x4d",
        "timm:seresnet50",
        "timm:wide_resnet50_2",
        "timm:resnetv2_50",
        "timm:res2net50_26w_4s",
        "timm:skresnet18",
        "timm:resnest14d",
        "timm:ecaresnet26t",
        "timm:hrnet_w18_small",
        "timm:dla34",
        "timm:cspresnet50",
        "timm:cspdarknet53",
        "timm:darknet53",
        "timm:selecsls42b",
        "timm:hgnetv2_b0",
        "torchvision:resnet18",
        "torchvision:wide_resnet50_2",
    ),
    "plain, dense and inception": (
        "timm:vgg11",
        "timm:vgg16_bn",
        "timm:repvgg_a0",
        "timm:densenet121",
        "timm:inception_v3",
        "timm:inception_v4",
        "timm:legacy_xception",
        "torchvision:alexnet",
        "torchvision:squeezenet1_0",
        "torchvision:squeezenet1_1",
        "torchvision:googlenet",
        "torchvision:densenet121",
    ),
    "mobile": (
        "timm:mobilenetv2_100",
        "timm:mobilenetv3_small_100",
        "timm:mobilenetv3_large_100",
        "timm:mobilenetv4_conv_small",
        "timm:mnasnet_100",
        "timm:semnasnet_100",
        "timm:efficientnet_b0",
        "timm:tf_efficientnet_lite0",
        "timm:tf_efficientnetv2_b0",
        "timm:mixnet_s",
        "timm:fbnetc_100",
        "timm:lcnet_100",
        "timm:tinynet_e",
        "timm:rexnet_100",
        "timm:ghostnet_100",
        "timm:repvit_m0_9",
        "timm:edgenext_xx_small",
        "torchvision:mobilenet_v3_small",
        "torchvision:shufflenet_v2_x1_0",
    ),
    "found by search": (
        "timm:regnetx_004",
        "timm:regnety_004",
        "timm:hardcorenas_a",
        "torchvision:regnet_y_400mf",
    ),
    "convolutional of the transformers' time": (
        "timm:convnext_tiny",
        "timm:convnextv2_nano",
        "timm:inception_next_atto",
        "timm:poolformer_s12",
        "timm:fastvit_t8",
        "torchvision:convnext_tiny",
    ),
    "transformers": (
        "timm:deit_tiny_patch16_224",
        "timm:vit_small_patch16_224",
        "timm:vit_small_patch16_dinov3",
        "timm:beit_base_patch16_224",
        "timm:swin_tiny_patch4_window7_224",
        "timm:pvt_v2_b0",
        "timm:twins_svt_small",
        "timm:xcit_nano_12_p16_224",
        "timm:mobilevit_s",
        "timm:mobilevitv2_050",
        "timm:efficientformer_l1",
        "timm:levit_128s",
        "torchvision:vit_b_16",
        "torchvision:swin_t",
    ),
    "mixers": (
        "timm:mixer_s32_224",
        "timm:resmlp_12_224",
        "timm:gmlp_ti16_224",
    ),
}
KNOWN = (
    "resnet18",
    "resnet50",
    "mobilenetv3",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "regnet",
    "densenet",
    "convnext_tiny",
    "deit_tiny",
    "vit_small",
    "swin_tiny",
    "mobilevit",
    "ghostnet",
    "vgg16_bn",
    "squeezenet",
    "inception_v3",
)
"""How the names of those begin that everybody knows."""


def main() -> None:
    """Try what is not done, write docs/results/prune-coverage.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/prune-coverage"))
    parser.add_argument("--only", help="models to try, separated by commas; prints them and writes no results")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.only:
        for model in given.only.split(","):
            print(json.dumps(_tried(model), indent=2))
        return
    rows = [{"family": family, **_once(model, given.runs)} for family, models in FAMILIES.items() for model in models]
    failed = [row["model"].partition(":")[2] for row in rows if row["failed"] is not None]
    known = [name for name in KNOWN if not any(one.startswith(name) for one in failed)]
    result = measured_here(
        "prune-coverage",
        "python perf/prune_coverage.py",
        rows=rows,
        bars=[
            at_least(f"share of {len(rows)}", 1 - len(failed) / len(rows), LEAST_SHARE),
            at_least(f"of the {len(KNOWN)} that everybody knows", len(known), len(KNOWN)),
            at_least("architectures", len(rows), 60),
        ],
    )
    publish(result, _markdown(result), as_json=given.json)


def _once(model: str, runs: Path) -> Row:
    code = trees("core", "compress", "export", "perf/tried_apart.py")
    key = digest_of([RATIO, package_versions(), code])
    return once(model, key, runs, lambda name: tried_apart(__file__, _nothing(name), LIMIT_SECONDS))


def _nothing(model: str) -> Row:
    return {"model": model, "ignored": [], "params_ratio": None, "macs_ratio": None, "failed": None}


def _tried(name: str) -> Row:
    def fill(row: Row) -> None:
        model = load_torch_model(name, None, None, seed=0)
        as_if_trained(model)
        pruned, report = _pruned(model, row["ignored"])
        row["params_ratio"] = report.params[0] / report.params[1]
        row["macs_ratio"] = report.macs_ratio
        with tempfile.TemporaryDirectory() as scratch:
            export(pruned, Path(scratch) / "pruned.onnx", ExportConfig(atol=ATOL))
            _require_same(pruned, Path(scratch) / "checkpoint")

    return filled(_nothing(name), fill)


def _pruned(model: TorchModel, ignored: list[str]) -> tuple[TorchModel, PruneReport]:
    """Prune, and leave whole what the errors name, which is added to what is `ignored`."""
    paths = {path for path, _ in model.module.named_modules()}
    attempts = 0
    while True:
        attempts += 1
        try:
            result = prune(model, PruneConfig(pruning_ratio=RATIO, allocation="uniform", ignore=tuple(ignored)))
        except ToolError as error:
            named = [path for path in re.findall(r"--ignore (\S+)", str(error)) if path in paths]
            if not set(named) - set(ignored) or attempts == ATTEMPTS:
                raise
            ignored += [path for path in named if path not in ignored]
        else:
            fit_batch_norm(result.model)
            return result.model, result.report


def _require_same(pruned: TorchModel, folder: Path) -> None:
    save_checkpoint(pruned, folder)
    again = load_checkpoint(folder)
    inputs = example_inputs(pruned, 2)
    with torch.no_grad():
        if not torch.allclose(pruned.module(*inputs), again.module(*inputs), rtol=1e-4, atol=1e-5):
            raise ToolError("the checkpoint does not give the same model back")


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "family": lambda row: row["family"],
        "model": lambda row: row["model"],
        "parameters": lambda row: "" if row["params_ratio"] is None else f"{row['params_ratio']:.2f}x fewer",
        "MACs": lambda row: "" if row["macs_ratio"] is None else f"{row['macs_ratio']:.2f}x fewer",
        "left whole": lambda row: ", ".join(row["ignored"]),
        "failed": lambda row: (row["failed"] or "").replace("\n", " ").replace("|", "/")[:300],
    }
    return page(
        "Architectures that `prune` takes",
        result,
        "Random weights, none of them nothing, batch norm fitted to noise. A third of the channels of every layer "
        f"removed; run, exported, verified against torch at batch 1, 2 and 7 (atol {ATOL:g}), reloaded from the "
        "checkpoint. Left whole: what `prune` named to be ignored.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
