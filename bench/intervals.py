"""What a sample can say of the whole: intervals, and verdicts that need one."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Interval = tuple[float, float]
FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
VERDICT_CONFIDENCE = 0.99  # of what is called faster or slower: one false call in a hundred comparisons
NEGLIGIBLE_RATIO = 0.005  # two copies of one file differ by as much, with where their memory lies
# The least samples for a percentile at 99 % confidence: MLPerf LoadGen's early-stopping bound (early_stopping.cc).
P90_SAMPLES = 64
P99_SAMPLES = 662

Verdict = Literal["faster", "slower", "no difference shown"]


def signed_rank_interval(values: Sequence[float], confidence: float = VERDICT_CONFIDENCE) -> Interval | None:
    """Return the interval of the centre of a symmetric sample that inverts the Wilcoxon signed-rank test.

    It holds for small samples and heavy tails alike (Hollander and Wolfe, Nonparametric Statistical Methods, 3.4).

    Args:
        values: The sample.
        confidence: Probability that the interval covers the centre.

    Returns:
        The interval; None where the sample is too small for one (under 8 values at 99 %).
    """
    count = len(values)
    counts = np.ones(1)  # of the sets of ranks that give each sum
    for rank in range(1, count + 1):
        counts = np.concatenate((counts, np.zeros(rank))) + np.concatenate((np.zeros(rank), counts))
    below = np.cumsum(counts / counts.sum()) <= (1 - confidence) / 2
    if not below.any():
        return None
    averages = _averages(values)
    skipped = int(below.sum()) - 1  # averages outside the interval at either end
    return float(averages[skipped]), float(averages[-1 - skipped])


def centre(values: Sequence[float]) -> float:
    """Return the centre of a symmetric sample: the median of all pairs' averages (Hodges and Lehmann 1963)."""
    return float(np.median(_averages(values)))


def _averages(values: Sequence[float]) -> FloatArray:
    """Return the averages of all pairs, a value with itself included, in order."""
    sample = np.asarray(values)
    return np.sort((sample[:, None] + sample[None, :])[np.triu_indices(len(sample))] / 2)


def speed_verdict(interval: Interval | None) -> Verdict:
    """Judge the interval of a speedup: it must lie beyond 1, and by more than the negligible."""
    if interval is None:
        return "no difference shown"
    if interval[0] > 1 + NEGLIGIBLE_RATIO:
        return "faster"
    if interval[1] < 1 - NEGLIGIBLE_RATIO:
        return "slower"
    return "no difference shown"


def percentile_interval(rounds: Sequence[FloatArray], percent: float, resamples: int = 1000) -> Interval | None:
    """Return the interval of a percentile of values that come in rounds, by resampling whole rounds.

    Values of one round share its luck, so resampling single values would give an interval that is too narrow.

    Args:
        rounds: The values of each round.
        percent: The percentile, in percent.
        resamples: How many times the rounds are drawn anew.

    Returns:
        The 95 % interval; None for fewer than 5 rounds.
    """
    if len(rounds) < 5:
        return None
    random = np.random.default_rng(0)
    drawn = random.integers(len(rounds), size=(resamples, len(rounds)))
    found = [np.percentile(np.concatenate([rounds[index] for index in picks]), percent) for picks in drawn]
    low, high = np.percentile(found, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    return float(low), float(high)


def share_interval(successes: int, count: int) -> Interval:
    """Return Wilson's 95 % interval of a share, in percent."""
    found = stats.binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def paired_drop_interval(lost: int, won: int, count: int) -> Interval:
    """Return the 95 % interval of a drop in accuracy between two models on the same samples, in points.

    Wald's with Agresti and Min's half a sample added to each cell (Statistics in Medicine 24, 2005), so that few
    disagreements do not give an interval of no width.

    Args:
        lost: Samples that only the first model gets right.
        won: Samples that only the second gets right.
        count: Samples in all.
    """
    lost_share, won_share, total = lost + 0.5, won + 0.5, count + 2
    drop = (lost_share - won_share) / total
    variance = (lost_share + won_share - (lost_share - won_share) ** 2 / total) / total**2
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * float(np.sqrt(variance))
    return 100 * float(drop - half), 100 * float(drop + half)


def mcnemar_p(lost: int, won: int) -> float:
    """Return the exact two-sided p of McNemar's test: that a disagreement favours either model alike."""
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
