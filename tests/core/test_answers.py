"""Probabilities and top-k are read as logits, and compared as strictly as logits are."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from core.answers import as_logits, in_like_terms, is_known, top_k

LOGITS = np.random.default_rng(0).normal(scale=3, size=(20, 10)).astype(np.float32)
PROBABILITIES = softmax(LOGITS, axis=1)


def highest(k: int, probabilities: np.ndarray = PROBABILITIES) -> list[np.ndarray]:
    classes = np.argsort(-probabilities, axis=1)[:, :k]
    return [np.take_along_axis(probabilities, classes, 1), classes]


@pytest.mark.parametrize(
    ("returns", "k", "known"),
    [
        ("logits", None, True),
        ("probabilities", None, True),
        ("top-1", 1, True),
        ("top-50", 50, True),
        ("top-0", None, False),
        ("top-k", None, False),
        ("top", None, False),
        ("Logits", None, False),
        ("top-5 ", None, False),
    ],
)
def test_what_is_an_answer(returns: str, k: int | None, known: bool) -> None:
    assert (top_k(returns), is_known(returns)) == (k, known)


def test_probabilities_are_logits_less_a_constant() -> None:
    found = as_logits([PROBABILITIES], "probabilities", 10)
    np.testing.assert_allclose(found, log_softmax(LOGITS, axis=1), atol=1e-5)
    np.testing.assert_allclose(softmax(found, axis=1), PROBABILITIES, rtol=1e-5)


def test_a_probability_of_zero_is_a_finite_logit_and_nan_stays() -> None:
    found = as_logits([np.float32([[0, 1, np.nan]])], "probabilities", 3)
    assert np.isfinite(found[0, :2]).all()
    assert np.isnan(found[0, 2])


def test_top_k_keeps_what_it_returns_and_its_first_class() -> None:
    found = as_logits(highest(3), "top-3", 10)
    assert np.array_equal(found.argmax(1), LOGITS.argmax(1))
    assert ((found > -np.inf).sum(1) == 3).all()
    np.testing.assert_allclose(found.max(1), log_softmax(LOGITS, axis=1).max(1), atol=1e-5)


def test_logits_are_compared_as_they_are() -> None:
    first, second = in_like_terms(LOGITS, LOGITS + 5, ("logits", "logits"))
    assert first is LOGITS
    np.testing.assert_array_equal(second - first, LOGITS + 5 - LOGITS)


@pytest.mark.parametrize("returns", ["probabilities", "top-1", "top-3", "top-10"])
@pytest.mark.parametrize("first", ["logits", "top-3"])
def test_equal_models_compare_equal_whatever_they_return(first: str, returns: str) -> None:
    told = {"logits": [LOGITS], "probabilities": [PROBABILITIES]} | {f"top-{k}": highest(k) for k in (1, 3, 10)}
    reference, candidate = (as_logits(told[kind], kind, 10) for kind in (first, returns))
    pair = in_like_terms(reference, candidate, (first, returns))
    np.testing.assert_allclose(*pair, atol=2e-6)
    assert np.array_equal(pair[0].argmax(1), pair[1].argmax(1))


def test_a_tie_at_the_kth_place_is_no_difference() -> None:
    nearly = np.float32([[3, 1, 1 + 1e-6, 0]])
    other = as_logits(highest(2, softmax(nearly[:, [0, 2, 1, 3]], axis=1)), "top-2", 4)
    first, second = in_like_terms(nearly, other, ("logits", "top-2"))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("returns", ["top-1", "top-3"])
def test_wrong_classes_differ_though_their_probabilities_are_right(returns: str) -> None:
    values, classes = highest(top_k(returns) or 1)
    candidate = as_logits([values, (classes + 1) % 10], returns, 10)
    first, second = in_like_terms(LOGITS, candidate, ("logits", returns))
    assert np.abs(first - second).max(1).min() > 1e-3
    assert (first.argmax(1) != second.argmax(1)).all()


def test_classes_that_are_not_the_highest_differ_though_all_values_are_their_own() -> None:
    order = np.argsort(-PROBABILITIES, axis=1)[:, [0, 1, 5]]
    candidate = as_logits([np.take_along_axis(PROBABILITIES, order, 1), order], "top-3", 10)
    first, second = in_like_terms(LOGITS, candidate, ("logits", "top-3"))
    assert np.abs(first - second).max(1).min() > 1e-3


def test_a_small_probability_is_told_as_finely_as_a_large_one() -> None:
    """An error of a tenth in a probability of 1e-6 is far below any limit on probabilities, and is seen."""
    logits = np.float32([[14, 0, 0]])
    wrong = softmax(logits, axis=1) * np.float32([[1, 1.1, 1]])
    first, second = in_like_terms(logits, as_logits([wrong], "probabilities", 3), ("logits", "probabilities"))
    assert np.abs(first - second).max() == pytest.approx(np.log(1.1), rel=1e-3)
