"""Which architectures can be exported: each is traced, simplified and verified against torch at batch 1, 2 and 7.

Usage: python perf/export_coverage.py [--runs runs/export-coverage] [--only timm:resnet18,timm:vgg11] [--json]

Each in a process of its own, with a limit of memory and of time. What the folder has of the same code is not tried
again. Exits 3 when the list is shorter than 40 or fewer than 90 % of it come through.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bars import at_least, bars_table
from results_file import markdown_table, measured_here, page, publish, trees
from tried_apart import Row, as_if_trained, filled, once, tried_apart

from core.history import digest_of
from core.machine import package_versions
from core.model_reference import load_torch_model
from core.torch_model import num_params
from export.to_onnx import ExportConfig, export

LEAST_SHARE = 0.9
LEAST_ARCHITECTURES = 40
LIMIT_SECONDS = 900
LIMIT_BYTES = 12 * 2**30
ATOL = 1e-3  # random weights round off more than trained ones do
SMALL = (3, 64, 64)
MIDDLE = (3, 128, 128)
OWN = None
"""The input that the architecture declares."""
FAMILIES: dict[str, dict[str, tuple[int, ...] | None]] = {
    "residual": {
        "timm:resnet18": SMALL,
        "timm:resnet50": SMALL,
        "timm:resnext50_32x4d": SMALL,
        "timm:seresnet50": SMALL,
        "timm:resnetv2_50": SMALL,
        "timm:res2net50_26w_4s": SMALL,
        "timm:skresnet18": SMALL,
        "timm:hrnet_w18_small": SMALL,
        "timm:dla34": SMALL,
        "timm:cspresnet50": SMALL,
        "timm:darknet53": SMALL,
        "timm:regnetx_002": SMALL,
        "timm:regnety_002": SMALL,
    },
    "plain, dense and inception": {
        "timm:vgg11": MIDDLE,
        "timm:vgg11_bn": MIDDLE,
        "timm:repvgg_a0": SMALL,
        "timm:densenet121": SMALL,
        "timm:inception_v3": MIDDLE,
        "timm:inception_v4": MIDDLE,
        "timm:legacy_xception": MIDDLE,
    },
    "mobile": {
        "timm:mobilenetv2_050": SMALL,
        "timm:mobilenetv3_small_050": SMALL,
        "timm:mobilenetv4_conv_small": SMALL,
        "timm:mnasnet_small": SMALL,
        "timm:efficientnet_b0": SMALL,
        "timm:tf_efficientnet_lite0": SMALL,
        "timm:tf_efficientnetv2_b0": SMALL,
        "timm:mixnet_s": SMALL,
        "timm:lcnet_050": SMALL,
        "timm:tinynet_e": SMALL,
        "timm:ghostnet_050": SMALL,
        "timm:rexnet_100": SMALL,
        "timm:repvit_m0_9": SMALL,
    },
    "convolutional of the transformers' time": {
        "timm:convnext_atto": SMALL,
        "timm:convnextv2_atto": SMALL,
        "timm:inception_next_atto": SMALL,
        "timm:poolformer_s12": SMALL,
        "timm:convmixer_768_32": SMALL,
        "timm:fastvit_t8": MIDDLE,
    },
    "transformers": {
        "timm:vit_tiny_patch16_224": OWN,
        "timm:deit_tiny_patch16_224": OWN,
        "timm:swin_tiny_patch4_window7_224": OWN,
        "timm:twins_svt_small": OWN,
        "timm:beit_base_patch16_224": OWN,
        "timm:cait_xxs24_224": OWN,
        "timm:pvt_v2_b0": OWN,
        "timm:xcit_nano_12_p16_224": OWN,
    },
    "convolution and attention": {
        "timm:coat_lite_tiny": OWN,
        "timm:coatnet_nano_rw_224": OWN,
        "timm:levit_128s": OWN,
        "timm:mobilevit_xxs": MIDDLE,
        "timm:mobilevitv2_050": MIDDLE,
        "timm:edgenext_xx_small": MIDDLE,
        "timm:efficientformer_l1": OWN,
        "timm:maxvit_pico_rw_256": OWN,
        "timm:convit_tiny": OWN,
    },
    "mixers": {
        "timm:mixer_s32_224": OWN,
        "timm:resmlp_12_224": OWN,
        "timm:gmlp_ti16_224": OWN,
    },
}


def main() -> None:
    """Try what is not done, write docs/results/export-coverage.{json,md}, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/export-coverage"))
    parser.add_argument("--only", help="models to try, separated by commas; prints them and writes no results")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    shapes = {model: shape for models in FAMILIES.values() for model, shape in models.items()}
    if given.only:
        for model in given.only.split(","):
            print(json.dumps(_tried(model, shapes.get(model)), indent=2))
        return
    rows = [
        {"family": family, **_once(model, shape, given.runs)}
        for family, models in FAMILIES.items()
        for model, shape in models.items()
    ]
    share = sum(row["failed"] is None for row in rows) / len(rows)
    result = measured_here(
        "export-coverage",
        "python perf/export_coverage.py",
        rows=rows,
        bars=[
            at_least(f"share of {len(rows)}", share, LEAST_SHARE),
            at_least("architectures", len(rows), LEAST_ARCHITECTURES),
        ],
    )
    publish(result, _markdown(result), as_json=given.json)


def _once(model: str, shape: tuple[int, ...] | None, runs: Path) -> Row:
    key = digest_of([shape, ATOL, package_versions(), trees("core", "export", "perf/tried_apart.py")])
    return once(model, key, runs, lambda name: tried_apart(__file__, _nothing(name), LIMIT_SECONDS, LIMIT_BYTES))


def _nothing(model: str) -> Row:
    figures = ("input", "params", "nodes", "max_abs_err", "sqnr_db", "failed")
    return {"model": model, **dict.fromkeys(figures)}


def _tried(name: str, shape: tuple[int, ...] | None) -> Row:
    def fill(row: Row) -> None:
        model = load_torch_model(name, None, shape, seed=0)
        row |= {"input": list(model.inputs[0].shape), "params": num_params(model.module)}
        as_if_trained(model)
        with tempfile.TemporaryDirectory() as scratch:
            report = export(model, Path(scratch) / "model.onnx", ExportConfig(atol=ATOL)).report
        row["nodes"] = report.nodes[1]
        row["max_abs_err"] = max(one.max_abs_err for one in report.verify.comparisons)
        row["sqnr_db"] = min(one.sqnr_db for one in report.verify.comparisons)

    return filled(_nothing(name), fill)


def _markdown(result: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "family": lambda row: row["family"],
        "architecture": lambda row: row["model"],
        "input": lambda row: "x".join(str(size) for size in row["input"] or ()),
        "params": lambda row: "" if row["params"] is None else f"{row['params'] / 1e6:.2f} M",
        "nodes": lambda row: "" if row["nodes"] is None else str(row["nodes"]),
        "max_abs_err": lambda row: "" if row["max_abs_err"] is None else f"{row['max_abs_err']:.1e}",
        "sqnr_db": lambda row: "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.0f}",
        "verdict": lambda row: (row["failed"] or "ok").replace("\n", " ").replace("|", "/")[:300],
    }
    passed = sum(row["failed"] is None for row in result["rows"])
    return page(
        "Architectures that `export` takes",
        result,
        f"{passed} of {len(result['rows'])} come through. Random weights, none of them nothing, batch norm fitted to "
        f"noise; exported, simplified and verified against torch at batch 1, 2 and 7 (atol {ATOL:g}, rtol 0.001); the "
        "worst of the three is shown.\n",
        markdown_table(result["rows"], columns),
        bars_table(result["bars"]),
    )


if __name__ == "__main__":
    main()
