"""The page is driven as a reader would: in a real browser, from a file, without a network."""

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_report import MODELS, a_report, with_extras, without_accuracy

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
@pytest.mark.slow
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
@pytest.mark.slow
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
    hovertext = page.page.locator("#front .hoverlayer .hovertext")
    for _ in range(600):  # again, since the page may be laid out anew between a look and a move
        box = page.page.locator("#front .scatterlayer .point").last.bounding_box()
        page.page.mouse.move(0, 0)
        page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.page.wait_for_timeout(100)
        if hovertext.count():
            break
    assert hovertext.first.text_content().startswith("int8")


@needs_chromium
@pytest.mark.parametrize(("theme", "other"), [("light", "dark"), pytest.param("dark", "light", marks=pytest.mark.slow)])
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
@pytest.mark.slow
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
@pytest.mark.slow
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
    bare = {"sha256": "f" * 64, "cost": None, "placement": None, "nodes": [], "name": "resnet56"}
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
