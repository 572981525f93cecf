"""The form that measures fastest within the drop is kept; where none serves, nothing is written and all is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_up_trials import SAMPLES, by_form, quantized_by, source_of, trial_of, trial_of_copies

from compress.quantization.config import QuantizeConfig
from compress.quantization.int8_choice import choose
from compress.quantization.int8_layouts import layouts_worth_trying
from compress.quantization.quantize import quantize
from core.data import Data
from core.errors import GateMissedError, ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from export.to_onnx import ExportConfig, export
from stages import onnx_speedups


@pytest.mark.parametrize(
    ("speedups", "kept"),
    [
        ({"channel": 2.0, "tensor": 2.5, "qoperator": 2.2, "products": 1.5}, "per tensor"),
        ({"channel": 2.0, "tensor": 2.1, "qoperator": 3.0, "products": 1.5}, "qoperator"),
        ({"channel": 0.7, "tensor": 0.7, "qoperator": 0.6, "products": 1.3}, "products only"),
    ],
    ids=["fastest", "operators", "only one faster"],
)
def test_the_fastest_is_kept(
    exported: OnnxModel, digits: Data, tmp_path: Path, speedups: dict[str, float], kept: str
) -> None:
    report = quantized_by(by_form(**speedups), exported, digits, tmp_path, max_drop=50.0).report
    assert kept in report.layout.title
    assert [one.form for one in report.tried if one.verdict == "kept"] == [f"{report.layout.title}, minmax"]
    measured = [one for one in report.tried if one.speedup]
    assert len(measured) == len(layouts_worth_trying("cpu"))
    assert all(one.verdict == "not faster than float32" for one in measured if one.speedup < 1)


def test_portable_forms_are_chosen_among_too(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    clock = by_form(channel=2.0, tensor=2.0, qoperator=3.0, products=2.0)
    report = quantized_by(clock, exported, digits, tmp_path, reduce_range=True, max_drop=50.0).report
    assert all("7-bit weights" in one.form for one in report.tried if one.speedup)
    assert report.layout.form == "qoperator"
    assert report.drop_without_vnni == report.drop


def test_where_nothing_is_faster_nothing_is_written(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    clock = by_form(channel=0.9, tensor=0.8, qoperator=0.7, products=0.6)
    with pytest.raises(GateMissedError, match=r"no int8 form is faster than float32 here: .*runs at 0\.90x") as caught:
        quantized_by(clock, exported, digits, tmp_path)
    assert not list(tmp_path.iterdir())
    assert [row["speedup"] for row in caught.value.tried] == [0.9, 0.8, 0.7, 0.6, 0.7, *[None] * 4]


def test_what_is_as_fast_as_timing_tells_is_not_faster(exported: OnnxModel, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(GateMissedError, match=r"no int8 form is faster than float32 here: .*runs at 1\.01x") as caught:
        quantized_by(lambda *_: 1.01, exported, digits, tmp_path)
    assert {row["verdict"] for row in caught.value.tried if row["speedup"]} == {"not faster than float32"}


def test_what_loses_too_much_is_dropped(exported: OnnxModel, digits: Data) -> None:
    with (
        source_of(exported, digits) as source,
        pytest.raises(
            GateMissedError, match=r"keeps accuracy within 1 points: .*loses 9\.00, most of it in node_\w+; calib"
        ) as caught,
    ):
        choose(
            layouts_worth_trying("cpu"),
            trial_of(source, lambda _: 2.0, lambda _: 9.0),
            QuantizeConfig().methods,
            source.sensitivity,
        )
    tried = [row for row in caught.value.tried if row["drop"] is not None]
    assert {row["verdict"] for row in tried} == {"loses more than 1 points"}
    forms = [row["form"] for row in tried]
    assert all(any(method in form for form in forms) for method in ("minmax", "percentile", "entropy", "mse"))
    assert "layers in float" in forms[-1]


@dataclass(frozen=True)
class Case:
    """Forms in their order: what each measures and loses, which is kept, and what is said of each."""

    speedups: tuple[float, ...]
    drops: tuple[float, ...]
    kept: int
    verdicts: tuple[str, ...]


LOSES_MORE = "about as fast as what was kept, and loses more"
NO_FASTER = "no faster than what was kept"
TOO_MUCH = "loses more than 1 points"


@pytest.mark.parametrize(
    "case",
    [
        Case((2.0, 2.03, 1.5), (0.1, 0.15, 0.3), 1, (NO_FASTER, "kept", NO_FASTER)),
        Case((2.0, 2.03, 1.5), (0.1, 0.6, 0.1), 0, ("kept", LOSES_MORE, NO_FASTER)),
        Case((2.0, 2.03, 1.5), (3.0, 3.0, 0.1), 2, (TOO_MUCH, TOO_MUCH, "kept")),
        Case((2.03, 2.02, 2.0), (0.25, 0.18, 0.1), 1, (LOSES_MORE, "kept", NO_FASTER)),
        Case((2.0, 2.03, 1.5), (0.7, 0.8, 0.0), 1, (NO_FASTER, "kept", NO_FASTER)),
        Case((2.0, 2.03, 1.5), (-0.5, 0.1, 0.0), 1, (NO_FASTER, "kept", NO_FASTER)),
        Case((2.0, 2.03, 1.5), (0.4, 1.2, 0.0), 0, ("kept", TOO_MUCH, NO_FASTER)),
        Case((3.0, 2.0, 2.03), (1.2, 0.2, 0.4), 1, (TOO_MUCH, "kept", LOSES_MORE)),
        Case((2.0, 2.0, 2.0), (0.2, 0.2, 0.2), 0, ("kept", NO_FASTER, NO_FASTER)),
        Case((1.3, 1.01, 0.9), (1.0, 0.0, 0.0), 0, ("kept", "not faster than float32", "not faster than float32")),
    ],
    ids=[
        "the fastest, since it loses as little",
        "the second, since the fastest loses more",
        "the slowest, since it alone fits",
        "neither the fastest nor the one that loses least",
        "a tenth of a point exactly is as little",
        "a gain is no less of a loss than none",
        "the second, since the fastest does not fit",
        "one of those about as fast after the fastest",
        "the first of equals",
        "a drop of exactly the limit fits",
    ],
)
def test_of_what_is_about_as_fast_the_fastest_that_loses_little_is_kept(
    quantized: OnnxModel, tmp_path: Path, case: Case
) -> None:
    def of_form(figures: Sequence[float]) -> Callable[[OnnxModel], float]:
        return lambda file: figures[int(file.path.stem.removeprefix("layout"))]

    trial = trial_of_copies(quantized, tmp_path, of_form(case.speedups), of_form(case.drops))
    layouts = layouts_worth_trying("cpu")[:3]
    made = choose(layouts, trial, ("minmax",), lambda _: [])
    assert made.form.layout == layouts[case.kept]
    assert tuple(one.verdict for one in made.tried[:3]) == case.verdicts


def test_what_is_faster_and_cannot_be_scored_is_told(quantized: OnnxModel, tmp_path: Path) -> None:
    def drop_of(_: OnnxModel) -> float:
        raise ToolError("no kernel for 16 samples")

    trial = trial_of_copies(quantized, tmp_path, lambda file: 3.0 if file.path.stem == "layout1" else 0.9, drop_of)
    with pytest.raises(
        GateMissedError, match=r"no int8 form that is faster can be used: .* cannot be used: no kernel for 16 samples"
    ) as caught:
        choose(layouts_worth_trying("cpu")[:3], trial, ("minmax",), lambda _: [])
    assert 3.0 in [row["speedup"] for row in caught.value.tried]


def test_only_what_may_be_kept_is_scored(exported: OnnxModel, digits: Data) -> None:
    """The fastest loses too much, the next cannot be scored, the third serves, and the others need not be scored."""
    speedups = {"layout0": 1.5, "layout1": 2.0, "layout2": 3.0, "layout3": 0.9, "layout4": 4.0}

    def drop_of(candidate: OnnxModel) -> float:
        if candidate.path.stem == "layout2":
            raise ToolError("no kernel for 256 samples")
        return 9.0 if candidate.path.stem == "layout4" else 0.5

    with source_of(exported, digits) as source:
        trial = trial_of(source, lambda candidate: speedups[candidate.path.stem], drop_of)
        made = choose(layouts_worth_trying("cpu"), trial, ("minmax",), source.sensitivity)
    assert (made.path.stem, made.drop) == ("layout1", 0.5)
    assert [(one.speedup, one.drop, one.verdict) for one in made.tried[:5]] == [
        (1.5, None, "no faster than what was kept"),
        (2.0, 0.5, "kept"),
        (0.9, None, "not faster than float32"),
        (4.0, 9.0, "loses more than 1 points"),
        (3.0, None, "cannot be used: no kernel for 256 samples"),
    ]


@pytest.mark.parametrize("settings", [{"per_channel": False}, {"form": "qoperator"}, {"activation_type": "uint8"}])
def test_what_is_given_by_hand_is_obeyed(
    exported: OnnxModel, digits: Data, tmp_path: Path, settings: dict[str, object]
) -> None:
    report = quantized_by(lambda *_: 0.5, exported, digits, tmp_path, **settings).report
    assert report.tried == ()
    assert {name: getattr(report.layout, name) for name in settings} == settings
    assert "as asked for" in report.layout.reason


@pytest.mark.slow
def test_the_choice_is_measured(tiny: str, digits: Data, tmp_path: Path) -> None:
    wide = export(load_torch_model(f"{tiny}:deep,width=64", digits), tmp_path / "wide.onnx", ExportConfig()).model
    config = QuantizeConfig(calibration_samples=SAMPLES, max_drop=100.0)
    measured = onnx_speedups("cpu", 1)
    report = quantize(wide, digits, tmp_path / "int8.onnx", config, measure_speedups=measured).report
    assert report.measured_speedup is not None
    assert report.measured_speedup > 1
    assert max(one.speedup or 0 for one in report.tried) > 1
