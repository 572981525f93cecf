"""The page is driven as a reader would: in a real browser, from a file, without a network."""

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import BenchReport
from bench.extras import FullReport
from bench.html_report import write_html
from bench.regression import ComparedReport
from core.errors import ToolError

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 120_000
HOSTILE = "</script><b>"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)")


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
        "precision": 0.01,
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


class Opened:
    """A page with all that a browser said and asked for while it was open."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def data(self, chart: str, read: str) -> Any:
        return self.page.evaluate(f"document.getElementById('{chart}').{read}")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).replace("\u00a0", " ")

    def downloaded(self, button: str) -> str:
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Open a report; after the test, nothing may have been complained of or asked for besides the file itself."""
    pages: list[Opened] = []
    path = tmp_path / "report.html"

    def opened(report: BenchReport, *, width: int = 1280, theme: str = "light") -> Opened:
        write_html(report, path)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        page.set_default_timeout(PATIENCE_MS)
        pages.append(Opened(page))
        page.goto(path.as_uri())
        return pages[-1]

    yield opened
    for one in pages:
        one.page.close()
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match=r"cannot write .*report\.html"):
        write_html(a_report(), tmp_path / "file" / "report.html")


@needs_chromium
def test_the_headline_sums_up_the_last_model_against_the_first(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    assert page.text("h1") == (
        "int8 runs at 5.66x the speed of teacher-float32, at 11 % of its size, and is 1.37 points less accurate"
    )
    assert "0.445 ms instead of 2.52 ms" in page.text("#tiles")


@pytest.mark.slow
@needs_chromium
def test_no_difference_shown_is_said_in_words(opened: Callable[..., Opened]) -> None:
    report = a_report()
    speedup = {"ratio": 1.004, "interval": [0.998, 1.009], "verdict": "no difference shown"}
    rows = report.model_dump()["rows"][:2]
    page = opened(a_report(rows=[rows[0], {**rows[1], "speedup": speedup}]))
    assert page.text("h1").startswith("No difference in speed shown between teacher-int8 and teacher-float32")
    assert page.text("h1").endswith("no difference in accuracy shown")


@needs_chromium
def test_the_table_has_every_model_and_refuses_a_percentile_without_its_sample(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    cells = [row.split("\t") for row in page.page.locator("#results tbody tr").all_inner_texts()]
    assert [row[0].strip() for row in cells] == [name for name, *_ in MODELS]
    assert [row[8].strip() == "-" for row in cells] == [True, False, False, False]  # p99


@needs_chromium
def test_choosing_a_setting_changes_every_chart(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    charts = {"front": "data[1].x", "distributions": "data[3].x", "operators": "data[0].x", "order": "data[0].y"}
    before = {chart: page.data(chart, read) for chart, read in charts.items()}
    page.page.select_option("#setting", label="CPU, 1 thread, batch 8")
    after = {chart: page.data(chart, read) for chart, read in charts.items()}
    assert all(after[chart] == pytest.approx([5.4 * value for value in before[chart]]) for chart in charts)


@needs_chromium
def test_choosing_a_model_changes_headline_profile_and_lineage(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    page.page.select_option("#model", label="teacher-float32")
    assert page.text("h1") == "teacher-float32 is the baseline: 2.52 ms a run, 3.3 MiB, 93.39 % accurate"
    assert len(page.data("order", "data[0].y")) == 82
    assert page.page.locator("#lineage h3").all_inner_texts() == ["export"]


@needs_chromium
def test_only_models_that_none_beats_are_on_the_front(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    times = page.data("front", "data[0].x")[:-1]
    assert times == [0.445, 0.871, 1.191]  # teacher-int8 is faster than teacher-float32 and more accurate


@pytest.mark.slow
@needs_chromium
def test_without_accuracy_the_front_is_of_size(opened: Callable[..., Opened]) -> None:
    page = opened(without_accuracy(a_report()))
    assert page.text("#front-title") == "Size against latency"
    assert page.data("front", "data[1].y") == pytest.approx([size / 2**20 for *_, size in MODELS])
    assert "accuracy" not in page.text("h1")


@needs_chromium
def test_pointing_at_a_chart_shows_the_figures(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    page.page.evaluate("document.getElementById('front').scrollIntoView({block: 'center'})")
    box = page.page.locator("#front .scatterlayer .point").last.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.page.wait_for_selector("#front .hoverlayer .hovertext").text_content().startswith("int8")


@needs_chromium
@pytest.mark.parametrize(("theme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_is_the_systems_until_it_is_changed(opened: Callable[..., Opened], theme: str, other: str) -> None:
    page = opened(a_report(), theme=theme)
    colours = "[getComputedStyle(document.body).backgroundColor, document.getElementById('front').layout.font.color]"
    before = page.page.evaluate(colours)
    assert page.page.evaluate("document.documentElement.dataset.theme") == theme
    page.page.click("#theme")
    after = page.page.evaluate(colours)
    assert page.page.evaluate("document.documentElement.dataset.theme") == other
    assert all(one != two for one, two in zip(before, after, strict=True))


@needs_chromium
def test_the_json_is_the_report(opened: Callable[..., Opened]) -> None:
    report = a_report()
    assert BenchReport.model_validate_json(opened(report).downloaded("#download-json")) == report


@needs_chromium
def test_the_csv_of_results_has_every_row(opened: Callable[..., Opened]) -> None:
    report = a_report()
    records = list(csv.DictReader(opened(report).downloaded("#download-results").splitlines()))
    assert [record["name"] for record in records] == [row.name for row in report.rows]
    for record, row in zip(records, report.rows, strict=True):
        assert float(record["latency.p50_ms"]) == row.latency.p50_ms
        assert float(record["quality.accuracy_interval.high"]) == row.quality.accuracy_interval[1]
        assert record["speedup.verdict"] == (row.speedup.verdict if row.speedup else "")
        assert int(record["placement.nodes.CPUExecutionProvider"]) == len(row.nodes)
        assert record["machine.cpu"] == report.machine.cpu


@pytest.mark.slow
@needs_chromium
def test_the_other_csvs_hold_every_percentile_node_and_step(opened: Callable[..., Opened]) -> None:
    report = a_report()
    page = opened(report)
    percentiles, nodes, lineage = (
        list(csv.DictReader(page.downloaded(f"#download-{name}").splitlines()))
        for name in ("distributions", "nodes", "lineage")
    )
    assert [float(record["ms"]) for record in percentiles] == [
        ms for row in report.rows for ms in (*row.latency.percentiles_ms, *row.latency.round_p50_ms)
    ]
    assert [float(record["ms"]) for record in nodes] == [node.ms for row in report.rows for node in row.nodes]
    stages = [record["value"] for record in lineage if record["field"] == "stage"]
    assert stages == [step.stage for row in report.rows for step in row.history]
    assert {"config.lr": "0.02"}.items() <= {record["field"]: record["value"] for record in lineage}.items()


@needs_chromium
@pytest.mark.parametrize(
    "width", [pytest.param(360, marks=pytest.mark.slow), 390, pytest.param(768, marks=pytest.mark.slow)]
)
def test_a_narrow_page_does_not_scroll_sideways(opened: Callable[..., Opened], width: int) -> None:
    page = opened(a_report("a-model-with-a-name-that-" + "goes-on-and-" * 6), width=width)
    assert page.page.evaluate("document.documentElement.scrollWidth") == width
    page.page.click("summary >> nth=0")
    assert page.page.evaluate("document.documentElement.scrollWidth") == width


@needs_chromium
def test_charts_follow_the_width_of_the_page(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    page.page.set_viewport_size({"width": 400, "height": 800})
    page.page.wait_for_function("document.getElementById('front').layout.width < 400")
    assert page.page.evaluate("document.documentElement.scrollWidth") == 400


@needs_chromium
def test_a_name_is_never_markup(opened: Callable[..., Opened]) -> None:
    page = opened(a_report(HOSTILE, data=HOSTILE))
    assert page.text("h1").startswith(HOSTILE)
    assert HOSTILE in page.text("#results")
    assert page.page.locator("main b").count() == 0
    labels = page.page.locator("#front .annotation-text").all_text_contents()
    assert HOSTILE in labels
    records = csv.DictReader(page.downloaded("#download-results").splitlines())
    assert [record["name"] for record in records].count(HOSTILE) == 2


@pytest.mark.slow
@needs_chromium
def test_paths_are_named_without_the_folders_they_share(opened: Callable[..., Opened]) -> None:
    names = ["runs/new/float32/model.onnx", "runs/new/int8/model.onnx", "teacher.onnx"]
    rows = [{**row, "name": name} for row, name in zip(a_report().model_dump()["rows"], names, strict=False)]
    page = opened(a_report(rows=rows))
    options = page.page.locator("#model option").all_inner_texts()
    assert options == ["float32/model.onnx", "int8/model.onnx", "teacher.onnx"]


@pytest.mark.slow
@needs_chromium
def test_references_are_named_without_folders(opened: Callable[..., Opened]) -> None:
    rows = a_report().model_dump()["rows"][:1]
    rows[0]["name"] = "/home/me/nets.py:net,weights=/mnt/net.safetensors,width=8"
    page = opened(a_report(rows=rows, data="/mnt/photos/"))
    assert page.page.locator("#model option").all_inner_texts() == ["nets.py:net,weights=net.safetensors,width=8"]
    assert "/mnt/" not in page.page.locator("body").inner_text()


@pytest.mark.slow
@needs_chromium
def test_a_noisy_machine_and_blunt_speedups_are_said(opened: Callable[..., Opened]) -> None:
    noisy = {"round_spread_ratio": 0.081, "others_cpu_ratio": 0.34, "noisy": True}
    page = opened(a_report(noise=noisy, sharp=False))
    assert page.text("#notes p:first-child") == (
        "Noisy machine: the baseline's rounds are 8.1 % off their median, other processes took 34 % of the CPU."
    )
    assert page.text("#notes p:last-child") == (
        "The speedups' intervals are wider than 1.0 %: measure for longer or on a quieter machine."
    )
    assert opened(a_report()).text("#notes") == ""


@pytest.mark.slow
@needs_chromium
def test_a_torch_module_shows_what_it_has(opened: Callable[..., Opened]) -> None:
    rows = a_report().model_dump()["rows"][:2]
    bare = {"sha256": None, "cost": None, "placement": None, "nodes": [], "name": "resnet56"}
    torch_rows = [
        {**row, **bare, "runtime": f"torch {mode}"} for row, mode in zip(rows, ("eager", "compiled"), strict=True)
    ]
    page = opened(a_report(rows=torch_rows))
    assert page.page.locator("#model option").all_inner_texts() == [
        "resnet56 (torch eager)",
        "resnet56 (torch compiled)",
    ]
    assert page.text("#profile-note") == "This model has no profile: it does not run on ONNX Runtime."
    assert not page.page.is_visible("#setting")


@pytest.mark.slow
@needs_chromium
def test_all_nodes_are_shown_when_asked(opened: Callable[..., Opened]) -> None:
    page = opened(a_report())
    assert page.page.locator("#nodes tbody tr").count() == 12
    page.page.click("#all-nodes")
    assert page.page.locator("#nodes tbody tr").count() == 37


@pytest.mark.slow
@needs_chromium
def test_nothing_that_was_not_measured_has_a_section(opened: Callable[..., Opened]) -> None:
    assert opened(FullReport(**dict(a_report()))).page.locator("#extras section").count() == 0


@needs_chromium
def test_what_else_was_measured_is_shown_and_downloads(opened: Callable[..., Opened]) -> None:
    report = with_extras(a_report())
    page = opened(report)
    titles = ["Against the old report", "On corrupted images", "Under attack", "As a service"]
    assert page.page.locator("#extras h2").all_inner_texts() == titles
    cells = {
        name: page.page.locator(f"#{name} tbody tr:last-child > *").all_inner_texts()
        for name in ("regression", "corruptions", "attack", "service")
    }
    assert cells == {
        "regression": [
            *("teacher-float32", "CPU, 1 thread, batch 1", "p50, ms", "2", "2.519", "1.200 to 1.310", "regressed")
        ],
        "corruptions": ["int8", "92.00", "57.00", "68.50", "62.75", "29.25"],
        "attack": ["int8", "92.00", "31.25", "60.75", "resnet24"],
        "service": ["int8", "0.440", "0.500", "0.610", "-", "812", "4.910"],
    }
    records = {name: list(csv.DictReader(page.downloaded(f"#download-{name}").splitlines())) for name in cells}
    assert [len(records[name]) for name in cells] == [1, 4, 2, 1]
    assert float(records["service"][0]["server.rate"]) == 812
    assert "corruptions" not in page.downloaded("#download-results")
    assert ComparedReport.model_validate_json(page.downloaded("#download-json")) == report
