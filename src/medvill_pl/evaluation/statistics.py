"""How firm a figure is, and whether two differ (MedViLL, Sec. IV-D and Appendix)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Mapping[str, Any]]
Scores = Callable[[Rows], Mapping[str, float]]


class Estimate(NamedTuple):
    """A metric over bootstrap replicates of the test set.

    Attributes:
        value: the metric on the test set itself.
        mean: mean over the replicates.
        deviation: standard deviation over the replicates.
        low: 2.5th percentile of the replicates.
        high: 97.5th percentile of the replicates.
        replicates: the metric on each replicate, float64, shape ``(R,)``; NaN where it is not defined there.

    Example:
        >>> rows = [{"id": "a", "value": 1.0}, {"id": "b", "value": 3.0}]
        >>> estimate = bootstrap(rows, lambda rows: {"mean": sum(row["value"] for row in rows) / len(rows)})["mean"]
        >>> estimate.value, estimate.low, estimate.high, estimate.replicates.shape
        (2.0, 1.0, 3.0, (30,))
    """

    value: float
    mean: float
    deviation: float
    low: float
    high: float
    replicates: NDArray[np.float64]


def bootstrap(rows: Rows, scores: Scores, num_replicates: int = 30, seed: int = 0) -> dict[str, Estimate]:
    """Score replicates of the test set, drawn with replacement; the paper takes 30 (MedViLL, Sec. IV-D).

    What is drawn is the ``id``: all rows of one identifier (a pair's searches in both directions) stay together.
    Equal test sets and seeds give equal draws, so replicates of two models are paired.

    Args:
        rows: per-example results.
        scores: metrics of a list of rows.
        num_replicates: replicates R.
        seed: seed of the draws.

    Returns:
        An estimate per metric.

    Raises:
        ValueError: if there are no rows or no replicates.

    Example:
        >>> rows = [{"id": str(n), "is_right": n % 4 > 0} for n in range(40)]
        >>> def accuracy(rows):
        ...     return {"accuracy": sum(row["is_right"] for row in rows) / len(rows)}
        >>> estimate = bootstrap(rows, accuracy)["accuracy"]
        >>> estimate.value, estimate.low < 0.75 < estimate.high
        (0.75, True)
    """
    if not rows or num_replicates < 1:
        raise ValueError("a bootstrap needs results and at least one replicate")
    rows_by_id: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        rows_by_id.setdefault(str(row["id"]), []).append(row)
    ids = sorted(rows_by_id)
    rng = np.random.default_rng(seed)
    replicates = []
    for _ in range(num_replicates):
        drawn = rng.integers(len(ids), size=len(ids))
        replicates.append(scores([row for index in drawn for row in rows_by_id[ids[index]]]))
    return {
        name: _estimate(value, [one.get(name, np.nan) for one in replicates]) for name, value in scores(rows).items()
    }


def _estimate(value: float, replicates: Sequence[float]) -> Estimate:
    drawn = np.array(replicates, dtype=np.float64)
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Estimate(value, np.nan, np.nan, np.nan, np.nan, drawn)
    low, high = np.percentile(known, [2.5, 97.5])
    deviation = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return Estimate(value, float(known.mean()), deviation, float(low), float(high), drawn)


def independent_t_test(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The paper's test: p-value of an independent two-sided t-test between two models' replicates.

    Replicates of one test set are not independent runs, so this p-value is too small; see
    :func:`paired_bootstrap_test`.

    Args:
        one: a metric of one model on R replicates, shape ``(R,)``; NaN is left out.
        other: the same of another model, shape ``(Q,)``.

    Returns:
        0 to 1; NaN where a side has fewer than two values, or all values are equal.

    Example:
        >>> round(independent_t_test(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 5.0])), 3)
        0.07
    """
    from scipy.stats import ttest_ind

    one, other = one[~np.isnan(one)], other[~np.isnan(other)]
    if len(one) < 2 or len(other) < 2 or np.ptp([*one, *other]) == 0:
        return float("nan")
    return float(ttest_ind(one, other).pvalue)


def paired_bootstrap_test(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Two-sided p-value that two models differ, from paired replicates of the same test set.

    The share of replicates in which the sign of the difference is the rarer one, doubled; with R replicates
    it is at least ``2 / (R + 1)``.

    Args:
        one: a metric of one model on R replicates, shape ``(R,)``.
        other: the same of another model on the same replicates.

    Returns:
        0 to 1; NaN where no replicate has both values.

    Raises:
        ValueError: if the numbers of replicates differ.

    Example:
        >>> one = np.linspace(0.7, 0.8, 99)
        >>> paired_bootstrap_test(one, one - 0.01)
        0.02
    """
    if one.shape != other.shape:
        raise ValueError(f"paired replicates must be as many: {len(one)} and {len(other)}")
    difference = one - other
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return float("nan")
    rarer = min((difference <= 0).sum(), (difference >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(difference) + 1)))
