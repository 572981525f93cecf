"""A made-up report of the size of a real run, to render without measuring anything."""

from typing import Any

import numpy as np

from bench.compare import BenchReport
from bench.regression import ComparedReport


def a_latency(p50_ms: float, seed: int) -> dict[str, Any]:
    tail = np.random.default_rng(seed).gamma(2, 0.04, 1000)
    percentiles = p50_ms * (1 + np.percentile(tail, range(101)) - np.median(tail))
    interval = [0.99 * p50_ms, 1.01 * p50_ms]
    return {
        "p50_ms": p50_ms,
        "p90_ms": percentiles[90],
        "p99_ms": percentiles[99] if seed else None,
        "p50_interval_ms": interval,
        "p90_interval_ms": [0.98 * percentiles[90], 1.03 * percentiles[90]],
        "p99_interval_ms": None,
        "iterations": 700,
        "warmup_runs": 41,
        "round_p50_ms": [p50_ms * (1 + 0.001 * index) for index in range(10)],
        "percentiles_ms": percentiles.tolist(),
    }


def some_nodes(p50_ms: float, blocks: int) -> list[dict[str, Any]]:
    operators = [("Conv", 0.8), ("Relu", 0.08), ("Add", 0.12)]
    nodes = [
        (f"/layer{1 + 3 * block // blocks}/block{block}/{operator}", operator, share * (1 + block % 5) / 3)
        for block in range(blocks)
        for operator, share in operators
    ] + [("/fc/Gemm", "Gemm", 0.1)]
    total = sum(share for _, _, share in nodes)
    return [
        {"name": name, "operator": operator, "provider": "CPUExecutionProvider", "ms": 1.1 * p50_ms * share / total}
        for name, operator, share in nodes
    ]


def a_history(name: str) -> list[dict[str, Any]]:
    versions = {"torch": "2.15.0", "onnx": "1.23.2"}
    distil = {"epochs": 16, "lr": 0.02, "temperature": 4.0, "batch_size": 128, "crop_padding": 4, "flip": True}
    steps = [("export", {"opset": 20, "dynamic": []}, None, [])]
    if "teacher" not in name:
        steps.insert(0, ("distill", distil, "7f" * 32, [f"{1:064x}"]))
        steps.insert(1, ("prune", {"pruning_ratio": 0.25, "round_to": 16, "ignore": ["conv1"]}, "7f" * 32, []))
    if "int8" in name:
        steps.append(("quantize", {"per_channel": True, "mode": "static"}, "7f" * 32, []))
    parents = {"distill": "5c" * 32, "prune": "a9" * 32, "export": "e4" * 32}
    parents["quantize"] = f"{0 if 'teacher' in name else 2:064x}"  # the float32 file
    fields = ("stage", "config", "data", "teachers")
    return [
        {**dict(zip(fields, step, strict=True)), "versions": versions, "parent": parents[step[0]]} for step in steps
    ]


def a_change(drop: float) -> dict[str, Any]:
    verdict = "worse" if drop > 0.5 else "no difference shown"
    interval = [drop - 0.35, drop + 0.35]
    p = 0.0 if drop > 0.5 else 0.63
    lost = {"lost": 230, "won": int(230 - 100 * drop), "mcnemar_p": p, "agreement": 96.4 - drop}
    return {"drop": drop, "drop_interval": interval, "verdict": verdict, **lost}


def a_row(index: int, name: str, p50_ms: float, accuracy: float, size_bytes: int, batch_size: int) -> dict[str, Any]:
    factor = {1: 1.0, 8: 5.4}[batch_size] * p50_ms
    ratio = 2.519 / p50_ms
    rss = 61 * 2**20
    nodes = some_nodes(factor, 27 if "teacher" in name else 12)
    return {
        "name": name,
        "sha256": f"{index:064x}",
        "runtime": "onnxruntime",
        "provider": "cpu",
        "threads": 1,
        "batch_size": batch_size,
        "latency": a_latency(factor, index),
        "throughput": 1000 * batch_size / factor,
        "size_bytes": size_bytes,
        "speedup": {"ratio": ratio, "interval": [0.99 * ratio, 1.01 * ratio], "verdict": "faster"} if index else None,
        "quality": {
            "samples": 10000,
            "accuracy": accuracy,
            "accuracy_interval": [accuracy - 0.5, accuracy + 0.48],
            "top5_accuracy": 99.7,
            "f1": accuracy - 0.03,
            "right": "/w==",
        },
        "change": a_change(93.39 - accuracy) if index else None,
        "cost": {
            "load_ms": 31.2 / (1 + index),
            "first_run_ms": 3 * p50_ms,
            "peak_rss_bytes": rss + 4 * size_bytes,
            "empty_rss_bytes": rss,
        },
        "placement": {
            "provider": "CPUExecutionProvider",
            "nodes": {"CPUExecutionProvider": len(nodes)},
            "placed_ratio": 1.0,
            "fell_back": {},
            "copies": 0,
        },
        "nodes": nodes,
        "history": a_history(name),
    }


MODELS = [
    ("teacher-float32", 2.519, 93.39, 3447489),
    ("teacher-int8", 1.191, 93.45, 988770),
    ("float32", 0.871, 92.12, 1344208),
    ("int8", 0.445, 92.02, 394309),
]


def a_report(last_name: str = "int8", **fields: Any) -> BenchReport:
    """Four models in two settings, of the size of a real run."""
    names = [name for name, *_ in MODELS[:-1]] + [last_name]
    rows = [
        a_row(index, name, *figures, batch_size)
        for batch_size in (1, 8)
        for index, (name, (_, *figures)) in enumerate(zip(names, MODELS, strict=True))
    ]
    plain = {
        "stage": "bench",
        "data": "cifar10.npz",
        "split": "test",
        "machine": {
            "cpu": "Intel(R) Xeon(R) Processor @ 2.80GHz",
            "architecture": "x86_64",
            "cores": 2,
            "int8_instructions": ["avx512_vnni"],
            "gpu": None,
            "system": "Linux 6.18.44",
            "python": "3.11.7",
        },
        "versions": {"onnxpress": "0.1.0", "torch": "2.15.0", "onnx": "1.23.2", "onnxruntime-gpu": "1.31.1"},
        "noise": {"round_spread_ratio": 0.004, "others_cpu_ratio": 0.02, "noisy": False},
        "half_width": 0.01,
        "sharp": True,
        "rows": rows,
    }
    return BenchReport.model_validate({**plain, **fields})


def without_accuracy(report: BenchReport) -> BenchReport:
    rows = [row.model_copy(update={"quality": None, "change": None}) for row in report.rows]
    return report.model_copy(update={"rows": tuple(rows), "data": None, "split": None})


def with_extras(report: BenchReport) -> ComparedReport:
    """The same with robustness, a service and an older report to compare with."""
    measured = {"stage": "bench", "data": "cifar10.npz", "split": "test", "samples": 1000, "provider": "cpu"}
    shown = {"name": "int8", "sha256": "0" * 64, "clean_accuracy": 92.0}
    kinds = [("noise", 60.0), ("blur", 71.5)]
    corrupted = [
        {"corruption": kind, "severity": severity, "accuracy": accuracy - severity, "drop": 92 - accuracy + severity}
        for kind, accuracy in kinds
        for severity in (1, 5)
    ]
    attacked = {**shown, "attacked_accuracy": 31.25, "drop": 60.75, "is_transfer": True}
    asked = {"stage": "service", "name": "int8", "sha256": "0" * 64, "provider": "cpu", "threads": 1, "seed": 0}
    server = {"slo_ms": 5.0, "rate": 812.0, "p99_ms": 4.91, "trials": []}
    row = report.rows[0]
    change = {
        **row.model_dump(include={"name", "runtime", "provider", "threads", "batch_size"}),
        "figure": "p50_ms",
        "before": 2.0,
        "after": 2.519,
        "interval": [1.2, 1.31],
        "verdict": "regressed",
    }
    extras = {
        "corruptions": {
            **measured,
            "severities": [1, 5],
            "seed": 0,
            "versions": {},
            "rows": [{**shown, "mean_accuracy": 62.75, "mean_drop": 29.25, "corrupted": corrupted}],
        },
        "attack": {
            **measured,
            "epsilon": 2 / 255,
            "versions": {},
            "source": {**attacked, "name": "resnet24", "is_transfer": False},
            "rows": [attacked],
        },
        "service": [
            {
                **asked,
                "loadgen": "5.1",
                "versions": {},
                "machine": report.machine,
                "single_stream": {"p50_ms": 0.44, "p90_ms": 0.5, "p99_ms": 0.61, "queries": 20000},
                "offline": None,
                "server": server,
            }
        ],
        "regression": {"changes": [change], "not_compared": ["float16 is only in the old report"]},
    }
    return ComparedReport.model_validate({**report.model_dump(), **extras})
