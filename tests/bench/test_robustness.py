"""Robustness: what corruptions and FGSM do to images, and that a brittle model is seen to be one."""

import colorsys
import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fixed_batch import with_fixed_batch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from bench.corruptions import CORRUPTIONS, STRENGTHS, CorruptedSamples, Corruption, corrupt
from bench.robustness import SEVERITIES, CorruptionReport, fgsm, measure_corruptions, measure_fgsm
from core.data import Data
from core.data_reference import load_data
from core.errors import InvalidValueError, ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.predict import accuracy, predict
from core.preprocessing import Preprocessing, normalise
from core.torch_model import TorchModel

each_corruption = pytest.mark.parametrize("corruption", CORRUPTIONS)
each_size = pytest.mark.parametrize("shape", [(6, 1, 8, 8), (6, 3, 32, 32), (2, 3, 96, 128)], ids=str)


def smooth_images(shape: tuple[int, int, int, int]) -> Tensor:
    """Images as photographs are: neighbouring pixels are alike."""
    num, channels, height, width = shape
    coarse = torch.rand(num, channels, 4, 4) * 255
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)


def distance(images: Tensor, others: Tensor) -> float:
    return float((images.float() - others.float()).abs().mean())


def largest(images: Tensor, others: Tensor) -> float:
    return float((images.float() - others.float()).abs().max())


class Brittle(nn.Module):
    """The module, as long as every pixel is one of the digits' 17 grey levels; another class otherwise."""

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module = module
        levels = torch.arange(17).mul(255 / 16).round().view(17, 1, 1, 1)
        self.register_buffer("levels", normalise((levels,), preprocessing)[0].flatten())

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.levels, Tensor)
        logits = self.module(x)
        off_level = (x.unsqueeze(-1) - self.levels).abs().amin(-1).flatten(1).amax(1) > 1e-4
        return torch.where(off_level[:, None], logits.roll(1, 1), logits)


@pytest.fixture(scope="module")
def brittle(trained: TorchModel) -> TorchModel:
    return dataclasses.replace(trained, name="brittle", module=Brittle(trained.module, trained.preprocessing))


@pytest.fixture(scope="module")
def report(exported: OnnxModel, quantized: OnnxModel, trained: TorchModel, digits: Data) -> CorruptionReport:
    return measure_corruptions([exported, quantized, trained], digits, threads=1)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("floats") / "floats.npz"
    np.savez(path, x_test=np.zeros((4, 1, 8, 8), np.float32), y_test=np.arange(4))
    return load_data(str(path))


@each_size
@each_corruption
def test_images_change_and_keep_shape_and_dtype(corruption: Corruption, shape: tuple[int, int, int, int]) -> None:
    images = smooth_images(shape)
    before = images.clone()
    found = corrupt(images, corruption, 1, range(len(images)))
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert all(not torch.equal(one, clean) for one, clean in zip(found, images, strict=True))
    assert torch.equal(images, before)


@each_size
@each_corruption
def test_a_higher_severity_is_farther_from_the_clean_images(
    corruption: Corruption, shape: tuple[int, int, int, int]
) -> None:
    images = smooth_images(shape)
    distances = [distance(images, corrupt(images, corruption, severity, range(len(images)))) for severity in (1, 3, 5)]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]


@each_corruption
def test_the_seed_decides_the_draw(corruption: Corruption) -> None:
    images = smooth_images((16, 3, 32, 32))
    first, again, other = (corrupt(images, corruption, 3, range(16), seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (corruption not in ("noise", "shift"))


@each_corruption
def test_an_image_is_corrupted_alike_in_whatever_batch_it_comes(corruption: Corruption, digits: Data) -> None:
    samples = CorruptedSamples(digits.split("test").samples, corruption, 5, seed=3)
    preprocessing = Preprocessing(image_size=(8, 8), channels=1)
    (whole,) = samples.fetch(range(7), preprocessing)
    parts = [samples.fetch([5, 2], preprocessing)[0], samples.fetch([4], preprocessing)[0]]
    assert torch.equal(torch.cat(parts), whole[[5, 2, 4]])
    assert len(samples) == len(digits.split("test").samples)


def test_noise_has_the_deviation_of_the_table() -> None:
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    for severity in range(1, 6):
        noise = corrupt(grey, "noise", severity, range(8)).float() - 128
        assert float(noise.std()) == pytest.approx(255 * STRENGTHS["noise"][0][severity - 1], rel=0.02)
        assert abs(float(noise.mean())) < 0.5


@pytest.mark.parametrize(("severity", "sigma", "radius"), [(1, 0.4, 2), (5, 1.0, 3)])
def test_blur_is_scipys_gaussian_to_the_rounding(severity: int, sigma: float, radius: int) -> None:
    images = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    expected = gaussian_filter(images.numpy().astype(float), sigma, mode="mirror", radius=radius, axes=(2, 3))
    assert largest(torch.from_numpy(expected), corrupt(images, "blur", severity, range(2))) < 0.51


def test_brightness_adds_to_the_value_of_hsv() -> None:
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    images[0, :, 0, 0] = 0
    found = corrupt(images, "brightness", 5, [0])
    for pixel, brighter in zip(images[0].flatten(1).T.tolist(), found[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        assert brighter == pytest.approx([255 * channel for channel in expected], abs=0.51)


@pytest.mark.parametrize(("side", "severity", "pixels"), [(32, 1, 1), (32, 3, 3), (32, 5, 5), (8, 1, 1), (8, 5, 2)])
def test_a_shift_moves_by_a_share_of_the_side_in_all_eight_directions(side: int, severity: int, pixels: int) -> None:
    dot = torch.zeros(200, 1, side, side, dtype=torch.uint8)
    dot[:, :, side // 2, side // 2] = 255
    places = corrupt(dot, "shift", severity, range(200))[:, 0].nonzero()[:, 1:]
    moved = {(row - side // 2, column - side // 2) for row, column in places.tolist()}
    assert moved == {(row, column) for row in (-pixels, 0, pixels) for column in (-pixels, 0, pixels)} - {(0, 0)}


def test_images_of_one_pixel_pass() -> None:
    for corruption in CORRUPTIONS:
        assert corrupt(torch.full((2, 1, 1, 1), 9, dtype=torch.uint8), corruption, 5, [0, 1]).shape == (2, 1, 1, 1)


def test_large_images_get_the_parameters_of_imagenet_c() -> None:
    grey = torch.full((2, 1, 224, 224), 128, dtype=torch.uint8)
    noise = corrupt(grey, "noise", 1, range(2)).float() - 128
    assert float(noise.std()) == pytest.approx(255 * 0.08, rel=0.02)


def test_the_report_holds_every_cell_of_every_model_in_order(
    report: CorruptionReport, exported: OnnxModel, quantized: OnnxModel, trained: TorchModel, digits: Data
) -> None:
    assert [row.name for row in report.rows] == [exported.name, quantized.name, trained.name]
    assert report.rows[0].sha256 == exported.sha256
    cells = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]
    for row in report.rows:
        assert [(cell.corruption, cell.severity) for cell in row.corrupted] == cells
        assert row.mean_accuracy == pytest.approx(np.mean([cell.accuracy for cell in row.corrupted]))
        assert row.mean_drop == row.clean_accuracy - row.mean_accuracy
        assert all(cell.drop == row.clean_accuracy - cell.accuracy for cell in row.corrupted)
    assert report.samples == len(digits.split("test"))
    assert CorruptionReport.model_validate_json(report.model_dump_json()) == report


def test_clean_accuracy_is_predicts(report: CorruptionReport, exported: OnnxModel, digits: Data) -> None:
    assert report.rows[0].clean_accuracy == accuracy(*predict(exported, digits, "test"))


def test_all_models_see_the_same_images(report: CorruptionReport, trained: TorchModel, digits: Data) -> None:
    exported, _, torch_row = report.rows
    assert exported.corrupted == torch_row.corrupted  # one network in two carriers
    few, fewer = (measure_corruptions([trained], digits, limit=50, batch_size=size) for size in (50, 7))
    assert few == fewer


def test_a_limit_takes_as_many_images(trained: TorchModel, digits: Data) -> None:
    limited = measure_corruptions([trained], digits, limit=50, severities=[5])
    assert limited.samples == 50
    assert limited.rows[0].clean_accuracy == accuracy(*predict(trained, digits, "test", limit=50))
    assert {cell.severity for cell in limited.rows[0].corrupted} == {5}


def test_a_brittle_model_is_as_accurate_and_reads_lower_under_noise(
    trained: TorchModel, brittle: TorchModel, digits: Data
) -> None:
    sound, rigged = measure_corruptions([trained, brittle], digits, limit=100, severities=[3]).rows
    assert rigged.clean_accuracy == sound.clean_accuracy
    for cell, other in zip(rigged.corrupted, sound.corrupted, strict=True):
        if cell.corruption == "noise":
            assert cell.accuracy < other.accuracy - 50
            assert cell.drop > 50
    assert rigged.mean_drop > sound.mean_drop


def test_progress_runs_from_nothing_to_all(trained: TorchModel, digits: Data) -> None:
    calls: list[tuple[str, int, int, str]] = []

    def progress(*call: object) -> None:
        calls.append(call)

    measure_corruptions([trained], digits, limit=10, severities=[1], progress=progress)
    assert [done for _, done, _, _ in calls] == list(range(7))
    assert {total for _, _, total, _ in calls} == {6}
    calls.clear()
    measure_fgsm([trained], trained, digits, limit=10, batch_size=4, progress=progress)
    assert calls == [("fgsm", done, 10, "images") for done in (0, 4, 8, 10)]


@pytest.mark.parametrize("epsilon", [0.5 / 255, 2 / 255, 0.1])
def test_fgsm_moves_no_pixel_farther_than_epsilon_and_raises_the_loss(
    trained: TorchModel, digits: Data, epsilon: float
) -> None:
    split = digits.split("test")
    (images,) = split.samples.fetch(split.indices[:64].tolist(), trained.preprocessing)
    targets = split.labels()[:64]
    found = fgsm(trained.module, images, targets, trained.preprocessing, epsilon)
    assert largest(found, images) == pytest.approx(255 * epsilon, rel=1e-5)
    assert found.min() >= 0
    assert found.max() <= 255
    with torch.no_grad():
        clean, attacked = (
            nn.functional.cross_entropy(trained.module(*normalise((pixels,), trained.preprocessing)), targets)
            for pixels in (images, found)
        )
    assert attacked > clean
    assert all(parameter.grad is None for parameter in trained.module.parameters())


def test_fgsm_follows_the_closed_form_of_a_linear_model() -> None:
    preprocessing = Preprocessing(image_size=(2, 2), channels=3, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = torch.randint(20, 230, (5, 3, 2, 2), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 0, 1, 1])
    weight = module[1].weight.detach()
    away = torch.stack([(weight[1 - target] - weight[target]).sign() for target in targets.tolist()])
    expected = images.float() + 8 * away.view_as(images)
    assert torch.equal(fgsm(module, images, targets, preprocessing, 8 / 255), expected)


def test_fgsm_lowers_the_sources_accuracy_and_says_which_rows_are_transfers(
    trained: TorchModel, exported: OnnxModel, quantized: OnnxModel, digits: Data
) -> None:
    reloaded = copy.deepcopy(trained)
    report = measure_fgsm([exported, quantized, reloaded], trained, digits, epsilon=16 / 255, threads=1)
    assert [row.name for row in report.rows] == [exported.name, quantized.name, trained.name]
    assert [row.is_transfer for row in report.rows] == [True, True, False]
    assert report.source == report.rows[2]
    assert report.source.drop > 10
    for row in report.rows:
        assert row.clean_accuracy == report.source.clean_accuracy or row.name == quantized.name
        assert row.drop == row.clean_accuracy - row.attacked_accuracy
    assert report.rows[0].attacked_accuracy == report.source.attacked_accuracy  # one network in two carriers


def test_fgsm_without_a_step_is_clean(trained: TorchModel, quantized: OnnxModel, digits: Data) -> None:
    report = measure_fgsm([quantized], trained, digits, epsilon=0, threads=1)
    assert [row.drop for row in (report.source, *report.rows)] == [0, 0]
    assert report.rows[0].clean_accuracy == accuracy(*predict(quantized, digits, "test"))


def test_a_brittle_model_falls_to_the_attack_on_its_sound_twin(
    trained: TorchModel, brittle: TorchModel, digits: Data
) -> None:
    report = measure_fgsm([brittle], trained, digits, epsilon=1 / 255)
    assert report.rows[0].clean_accuracy == report.source.clean_accuracy
    assert report.rows[0].drop > report.source.drop + 50


def test_a_file_of_fixed_batch_is_shown_its_batches(
    trained: TorchModel, exported: OnnxModel, digits: Data, tmp_path: Path
) -> None:
    fixed = with_fixed_batch(exported, tmp_path, 4)
    attacked = measure_fgsm([fixed, exported], trained, digits, limit=20, batch_size=10, threads=1)
    corrupted = measure_corruptions([fixed, exported], digits, limit=20, severities=[5], threads=1)
    assert attacked.rows[0].attacked_accuracy == attacked.rows[1].attacked_accuracy
    assert corrupted.rows[0].corrupted == corrupted.rows[1].corrupted
    with pytest.raises(ToolError, match="batch fixed at 4, which does not divide the 21 samples"):
        measure_fgsm([fixed], trained, digits, limit=21)


def test_data_without_images_are_refused(trained: TorchModel, floats: Data) -> None:
    with pytest.raises(ToolError, match=r"floats\.npz holds samples that are not images"):
        measure_corruptions([trained], floats)
    with pytest.raises(ToolError, match=r"floats\.npz holds samples that are not images"):
        measure_fgsm([trained], trained, floats)


def test_a_source_without_a_gradient_is_named(tiny: str, digits: Data) -> None:
    source = load_torch_model(f"{tiny}:gradientless", digits)
    with pytest.raises(ToolError, match=r"gradientless gives no gradient by its input.*on another torch model"):
        measure_fgsm([source], source, digits, limit=4)


def test_a_model_of_another_size_is_not_shown_the_sources_images(trained: TorchModel, digits: Data) -> None:
    preprocessing = trained.preprocessing.model_copy(update={"image_size": (10, 10)})
    larger = dataclasses.replace(trained, name="larger", preprocessing=preprocessing)
    with pytest.raises(
        ToolError, match=r"larger takes images of image_size \(10, 10\), the attack's source .* \(8, 8\)"
    ):
        measure_fgsm([larger], trained, digits)
    rows = measure_corruptions([trained, larger], digits, limit=20, severities=[1]).rows
    assert [row.name for row in rows] == [trained.name, "larger"]


@pytest.mark.parametrize(
    "values",
    [{"limit": 0}, {"batch_size": 0}, {"split": "tset"}, {"seed": -1}, {"severities": [0]}, {"severities": []}],
)
def test_values_out_of_range_are_refused(trained: TorchModel, digits: Data, values: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(values))):
        measure_corruptions([trained], digits, **values)


def test_an_attack_out_of_range_or_on_nothing_is_refused(trained: TorchModel, digits: Data) -> None:
    with pytest.raises(InvalidValueError, match=r"epsilon is 2; it is a share of the pixel range, 0 to 1"):
        measure_fgsm([trained], trained, digits, epsilon=2)
    with pytest.raises(InvalidValueError, match="no models to measure"):
        measure_fgsm([], trained, digits)
