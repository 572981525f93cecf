"""Figures of quality against their definitions, and the paired test against counting."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bench.quality import accuracy_change, quality, quality_change, right_samples


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)


@pytest.fixture
def targets(logits: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.where(random.random(500) < 0.8, logits.argmax(axis=1), random.integers(0, 10, 500))


def test_figures_equal_their_definitions(logits: np.ndarray, targets: np.ndarray) -> None:
    found = quality(logits, targets)
    classes = logits.argmax(axis=1)
    in_five = (np.argsort(-logits, axis=1)[:, :5] == targets[:, None]).any(axis=1)
    assert found.accuracy == pytest.approx(100 * (classes == targets).mean())
    assert found.top5_accuracy == pytest.approx(100 * in_five.mean())
    assert found.f1 == pytest.approx(100 * f1_score(targets, classes, average="macro"), abs=1e-3)
    assert found.accuracy_interval[0] < found.accuracy < found.accuracy_interval[1]
    assert found.samples == 500


def test_five_classes_have_no_top5(logits: np.ndarray, targets: np.ndarray) -> None:
    assert quality(logits[:, :5], targets % 5).top5_accuracy is None


def test_the_samples_got_right_survive_packing(logits: np.ndarray, targets: np.ndarray) -> None:
    found = quality(logits, targets)
    assert np.array_equal(right_samples(found), logits.argmax(axis=1) == targets)


def test_a_model_against_itself_shows_no_difference(targets: np.ndarray) -> None:
    found = quality_change(targets, targets, targets)
    assert (found.drop, found.lost, found.won, found.agreement) == (0, 0, 0, 100)
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("lost", "won", "verdict"), [(30, 5, "worse"), (5, 30, "better"), (12, 9, "no difference shown")]
)
def test_only_lopsided_disagreement_is_a_difference(lost: int, won: int, verdict: str) -> None:
    before, after = np.ones(1000, bool), np.ones(1000, bool)
    after[:lost] = False
    before[lost : lost + won] = False
    found = accuracy_change(before, after)
    assert (found.lost, found.won, found.verdict) == (lost, won, verdict)
    assert found.drop == pytest.approx((lost - won) / 10)
    assert found.drop_interval[0] < found.drop < found.drop_interval[1]
