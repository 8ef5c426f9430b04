"""Bootstraps and tests against scipy, exhaustive resampling and simulation."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from medvill_pl.evaluation.statistics import bootstrap, independent_t_test, paired_bootstrap_test

NAN = float("nan")
Rows = Sequence[Mapping[str, Any]]


def make_rows(values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"id": f"e{number}", "value": value} for number, value in enumerate(values)]


def mean(rows: Rows) -> dict[str, float]:
    return {"mean": float(np.mean([row["value"] for row in rows]))}


def test_replicates_are_draws_with_replacement_of_as_many_examples() -> None:
    drawn: list[list[str]] = []

    def scores(rows: Rows) -> dict[str, float]:
        drawn.append([row["id"] for row in rows])
        return mean(rows)

    bootstrap(make_rows([1, 2, 3, 4, 5]), scores, num_replicates=200)
    *replicates, full = drawn
    assert full == ["e0", "e1", "e2", "e3", "e4"]
    assert len(replicates) == 200
    assert all(len(ids) == 5 and set(ids) <= set(full) for ids in replicates)
    share_of_distinct = np.mean([len(set(ids)) for ids in replicates]) / 5
    assert share_of_distinct == pytest.approx(1 - 0.8**5, abs=0.03)


def test_estimate_converges_to_all_resamples() -> None:
    values = [0.0, 1.0, 5.0, 6.0]
    every = [float(np.mean(drawn)) for drawn in product(values, repeat=4)]
    estimate = bootstrap(make_rows(values), mean, num_replicates=20_000)["mean"]
    assert estimate.value == 3.0
    assert estimate.mean == pytest.approx(np.mean(every), abs=0.03)
    assert estimate.deviation == pytest.approx(np.std(every), abs=0.03)
    low, high = np.percentile(every, [2.5, 97.5])
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.26)


def test_mean_deviation_and_interval_are_those_of_the_replicates() -> None:
    estimate = bootstrap(make_rows(np.random.default_rng(0).random(20).tolist()), mean)["mean"]
    assert estimate.replicates.shape == (30,)  # the paper's number
    assert estimate.mean == pytest.approx(sum(estimate.replicates) / 30)
    variance = sum((value - estimate.mean) ** 2 for value in estimate.replicates) / 29
    assert estimate.deviation == pytest.approx(variance**0.5)
    ordered = sorted(estimate.replicates)
    # The 2.5th percentile of 30 lies 0.725 of the way from the first to the second.
    assert estimate.low == pytest.approx(ordered[0] + 0.725 * (ordered[1] - ordered[0]))
    assert estimate.high == pytest.approx(ordered[-1] - 0.725 * (ordered[-1] - ordered[-2]))


def test_draws_follow_from_the_seed_and_not_from_the_order_of_the_rows() -> None:
    rows = make_rows(np.random.default_rng(0).random(12).tolist())
    first, again, other = (bootstrap(rows, mean, seed=seed)["mean"].replicates for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(bootstrap(rows[::-1], mean)["mean"].replicates, first)


def test_replicates_of_two_models_are_paired() -> None:
    values = np.random.default_rng(0).random(15)
    one = bootstrap(make_rows(values.tolist()), mean)["mean"].replicates
    other = bootstrap(make_rows((values + 0.1).tolist()), mean)["mean"].replicates
    np.testing.assert_allclose(other - one, 0.1)  # the same examples in each replicate


def test_rows_of_one_id_stay_together() -> None:
    rows = [{"id": f"e{number}", "direction": d} for number in range(6) for d in ("there", "back")]

    def scores(drawn: Rows) -> dict[str, float]:
        counts = {d: sorted(row["id"] for row in drawn if row["direction"] == d) for d in ("there", "back")}
        assert counts["there"] == counts["back"]
        assert len(drawn) == 12
        return {"distinct": float(len({row["id"] for row in drawn}))}

    estimate = bootstrap(rows, scores)["distinct"]
    assert estimate.value == 6
    assert estimate.low < 6


def test_metric_that_a_replicate_lacks_is_nan_there() -> None:
    def rare(rows: Rows) -> dict[str, float]:
        return mean(rows) if any(row["id"] == "e0" for row in rows) else {}

    estimate = bootstrap(make_rows([1, 2, 3]), rare, num_replicates=50)["mean"]
    is_missing = np.isnan(estimate.replicates)
    assert 0 < is_missing.sum() < 50
    assert estimate.mean == pytest.approx(estimate.replicates[~is_missing].mean())
    never = bootstrap(make_rows([1, 2]), lambda rows: {"x": NAN})["x"]
    assert np.isnan([never.mean, never.deviation, never.low, never.high]).all()


@pytest.mark.parametrize(("rows", "number"), [([], 30), (make_rows([1]), 0)])
def test_bootstrap_of_nothing_is_refused(rows: list[dict[str, Any]], number: int) -> None:
    with pytest.raises(ValueError, match="a bootstrap needs results and at least one replicate"):
        bootstrap(rows, mean, number)


# -- tests ---------------------------------------------------------------------------------------


def test_t_test_is_scipys() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 30), rng.normal(0.6, 1.5, 30)
    assert independent_t_test(one, other) == pytest.approx(ttest_ind(one, other).pvalue)
    holes = one.copy()
    holes[:3] = NAN
    assert independent_t_test(holes, other) == pytest.approx(ttest_ind(one[3:], other).pvalue)


def test_t_test_by_hand() -> None:
    # Means 2 and 4, variances 1: t = 2 / sqrt(2 / 3) = 2.449 with 4 degrees of freedom.
    assert independent_t_test(np.array([1.0, 2, 3]), np.array([3.0, 4, 5])) == pytest.approx(0.0705, abs=1e-4)


def test_t_test_without_spread_or_values_is_undefined() -> None:
    same = np.ones(5)
    assert np.isnan(independent_t_test(same, same))
    assert np.isnan(independent_t_test(same[:1], np.arange(5.0)))


def test_paired_test_counts_signs() -> None:
    one = np.array([0.5, 0.6, 0.7, 0.8])
    # One of four is the other way: 2 * (1 + 1) / (4 + 1).
    assert paired_bootstrap_test(one, one - np.array([0.1, 0.1, 0.1, -0.1])) == pytest.approx(0.8)
    assert paired_bootstrap_test(one, one + 0.1) == pytest.approx(2 / 5)
    assert paired_bootstrap_test(one, one) == 1
    long = np.arange(399.0)
    assert paired_bootstrap_test(long, long + 1) == pytest.approx(2 / 400)


def test_paired_test_leaves_out_undefined_replicates() -> None:
    one = np.array([NAN, 0.6, 0.7, 0.8])
    assert paired_bootstrap_test(one, one + 0.1) == pytest.approx(2 / 4)
    assert np.isnan(paired_bootstrap_test(np.full(3, NAN), np.ones(3)))


def test_paired_test_of_unequal_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="paired replicates must be as many: 3 and 4"):
        paired_bootstrap_test(np.ones(3), np.ones(4))


def test_paired_test_keeps_its_level_and_finds_small_paired_differences() -> None:
    rng = np.random.default_rng(0)
    rejected, detected = 0, 0
    for seed in range(100):
        examples = rng.normal(size=40)
        one, equal, better = (examples + rng.normal(scale=0.3, size=40) + shift for shift in (0, 0, 0.3))
        replicates = [
            bootstrap(make_rows(v.tolist()), mean, 200, seed)["mean"].replicates for v in (one, equal, better)
        ]
        rejected += paired_bootstrap_test(replicates[0], replicates[1]) < 0.05
        detected += paired_bootstrap_test(replicates[0], replicates[2]) < 0.05
    assert rejected <= 14  # 5 expected; the bootstrap of 40 is a little too narrow
    assert detected >= 90
