"""Intervals against independent references, and their coverage where there is none."""

import numpy as np
import pytest
from scipy import stats

from bench.intervals import (
    centre,
    mcnemar_p,
    paired_drop_interval,
    percentile_interval,
    share_interval,
    signed_rank_interval,
    speed_verdict,
)


def test_the_signed_rank_interval_holds_what_the_test_does_not_reject() -> None:
    sample = np.random.default_rng(0).normal(0.3, 1, 12)
    found = signed_rank_interval(sample, 0.95)
    assert found is not None
    for inside, outside in ((found[0] + 1e-6, found[0] - 1e-6), (found[1] - 1e-6, found[1] + 1e-6)):
        assert stats.wilcoxon(sample - inside, method="exact").pvalue > 0.05
        assert stats.wilcoxon(sample - outside, method="exact").pvalue <= 0.05


@pytest.mark.parametrize(("count", "exists"), [(1, False), (7, False), (8, True)])
def test_99_percent_need_eight_values(count: int, exists: bool) -> None:
    assert (signed_rank_interval(range(count)) is not None) is exists


def test_an_outlier_hardly_moves_the_signed_rank_interval() -> None:
    sample = np.random.default_rng(1).normal(0, 0.01, 20)
    wild = np.append(sample[:-1], 50.0)
    clean, moved = signed_rank_interval(sample), signed_rank_interval(wild)
    assert clean is not None
    assert moved is not None
    assert abs(moved[1] - clean[1]) < 0.01


def test_the_centre_lies_within_its_interval_and_shrugs_off_outliers() -> None:
    sample = np.append(np.random.default_rng(3).normal(0.3, 0.01, 20), 50.0)
    found = signed_rank_interval(sample)
    assert found is not None
    assert found[0] < centre(sample) < found[1]
    assert centre(sample) == pytest.approx(0.3, abs=0.01)
    assert centre([2.0]) == 2.0


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.01, 1.02), "faster"),
        ((0.97, 0.99), "slower"),
        ((0.99, 1.01), "no difference shown"),
        ((1.001, 1.004), "no difference shown"),
        (None, "no difference shown"),
    ],
)
def test_a_verdict_needs_its_interval(interval: tuple[float, float] | None, verdict: str) -> None:
    assert speed_verdict(interval) == verdict


def test_percentile_intervals_cover_what_they_claim_though_rounds_differ() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        rounds = [random.normal(10 + random.normal(0, 0.5), 0.1, 50) for _ in range(12)]
        found = percentile_interval(rounds, 50, resamples=200)
        assert found is not None
        covered += found[0] <= 10 <= found[1]
    assert covered >= 85


def test_few_rounds_give_no_percentile_interval() -> None:
    assert percentile_interval([np.ones(100)] * 4, 50) is None


def test_a_share_has_wilsons_interval() -> None:
    assert share_interval(90, 100) == pytest.approx((82.56, 94.48), abs=0.01)
    assert share_interval(100, 100)[1] == pytest.approx(100)
    assert share_interval(100, 100)[0] < 97


def test_a_paired_drop_is_sharper_than_two_shares() -> None:
    low, high = paired_drop_interval(lost=30, won=20, count=10000)
    assert low < 0.1 < high
    assert high - low < 0.3
    assert paired_drop_interval(0, 0, 1000)[0] < 0 < paired_drop_interval(0, 0, 1000)[1]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 5), (10, 2), (40, 12)])
def test_mcnemar_is_the_binomial_test_of_disagreements(lost: int, won: int) -> None:
    expected = min(1.0, 2 * stats.binom.cdf(min(lost, won), lost + won, 0.5))
    assert mcnemar_p(lost, won) == pytest.approx(expected)
