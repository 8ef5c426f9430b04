"""Candidate sets, ranks and retrieval metrics against torchmetrics, hand counts and exhaustive enumeration."""

from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalPrecision, RetrievalRecall

from medvill_pl.evaluation.retrieval import (
    chance_of,
    check_gallery,
    draw_candidate_sets,
    rank_candidates,
    retrieval_scores,
)

NAN = float("nan")


# -- candidate sets ------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_pairs", "num_candidates"), [(2, 2), (7, 3), (30, 30), (120, 100)])
def test_candidate_set_has_its_own_pair_first_and_others_once(num_pairs: int, num_candidates: int) -> None:
    sets = draw_candidate_sets(num_pairs, num_candidates, seed=0)
    assert sets.shape == (num_pairs, num_candidates)
    assert sets[:, 0].tolist() == list(range(num_pairs))
    for candidates in sets.tolist():
        assert len(set(candidates)) == num_candidates
        assert set(candidates) <= set(range(num_pairs))


def test_all_others_are_equally_likely() -> None:
    drawn = np.concatenate([draw_candidate_sets(6, 3, seed)[4, 1:] for seed in range(3000)])
    counts = np.bincount(drawn, minlength=6)
    assert counts[4] == 0
    np.testing.assert_allclose(counts[[0, 1, 2, 3, 5]], 1200, atol=5 * 1200**0.5)


def test_candidate_sets_follow_from_the_seed() -> None:
    assert (draw_candidate_sets(20, 5, 1) == draw_candidate_sets(20, 5, 1)).all()
    assert (draw_candidate_sets(20, 5, 1) != draw_candidate_sets(20, 5, 2)).any()


def test_gallery_smaller_than_a_candidate_set_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a candidate set needs 100 pairs, but the gallery has 99: set num_candidates to 99"
    ):
        draw_candidate_sets(99, 100, 0)
    check_gallery(100, 100)


# -- ranks ---------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    scores = np.array([0.3, 0.9, 0.1, 0.8, 0.2, 0.7])
    is_positive = np.array([True, False, True, False, False, True])
    # Best first: positions 1, 3, 5+, 0+, 4, 2+.
    ranking = rank_candidates(scores, is_positive)
    assert ranking == (6, 3, 3, 4, [0, 2, 3])


@pytest.mark.parametrize("own", [0, 2])
def test_ties_are_broken_against_the_model(own: int) -> None:
    scores, is_positive = np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, True, False])
    ranking = rank_candidates(scores, is_positive, own)
    assert (ranking.first_rank, ranking.own_rank, ranking.positives_in) == (3, 4, [0, 2, 2])
    untied = rank_candidates(np.array([0.6, 0.5, 0.5, 0.5]), is_positive, own)
    assert (untied.first_rank, untied.own_rank) == (1, 1 if own == 0 else 4)


def test_candidates_without_a_positive_have_no_first_rank() -> None:
    ranking = rank_candidates(np.array([0.1, 0.2]), np.array([False, False]))
    assert (ranking.num_positives, ranking.first_rank, ranking.positives_in) == (0, 0, [0, 0, 0])


# -- metrics -------------------------------------------------------------------------------------


def make_rows(
    scores: NDArray[np.float64],
    hits: NDArray[np.bool_],
    direction: str = "image_to_report",
    gallery: str = "candidates",
) -> list[dict[str, Any]]:
    return [
        {"id": str(query), "direction": direction, "gallery": gallery, "frequency_first_rank": None}
        | rank_candidates(s, h)._asdict()
        for query, (s, h) in enumerate(zip(scores, hits, strict=True))
    ]


@pytest.fixture
def searches() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores without ties and hits of 40 queries with 15 candidates; two of the queries have no positive."""
    rng = np.random.default_rng(0)
    hits = rng.random((40, 15)) < 0.15
    hits[[3, 8]] = False
    return rng.permutation(600).reshape(40, 15) / 600, hits


def test_metrics_are_those_of_torchmetrics(searches: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    scores, hits = searches
    metrics = retrieval_scores(make_rows(scores, hits))
    preds, target = torch.from_numpy(scores).flatten(), torch.from_numpy(hits).flatten()
    indexes = torch.arange(40).repeat_interleave(15)
    references = {"mrr": RetrievalMRR(empty_target_action="neg")}
    for cutoff in (1, 5, 10):
        references[f"hit@{cutoff}"] = RetrievalHitRate(empty_target_action="neg", top_k=cutoff)
        references[f"recall@{cutoff}"] = RetrievalRecall(empty_target_action="neg", top_k=cutoff)
        references[f"precision@{cutoff}"] = RetrievalPrecision(empty_target_action="neg", top_k=cutoff)
    for name, reference in references.items():
        expected = reference(preds, target, indexes=indexes).item()
        assert metrics[f"image_to_report/{name}"] == pytest.approx(expected, abs=1e-6), name


def test_own_counterpart_is_scored_apart(searches: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    scores, hits = searches
    metrics = retrieval_scores(make_rows(scores, hits, "report_to_image"))
    ranks = [sorted(row, reverse=True).index(row[0]) + 1 for row in scores.tolist()]
    for cutoff in (1, 5, 10):
        share = sum(rank <= cutoff for rank in ranks) / 40
        assert metrics[f"report_to_image/own_recall@{cutoff}"] == pytest.approx(share)
    assert metrics["report_to_image/own_median_rank"] == median(ranks)


def test_directions_and_galleries_are_scored_apart() -> None:
    good, bad = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    hit = np.array([[True, False]])
    rows = [
        *make_rows(good, hit),
        *make_rows(bad, hit, "report_to_image"),
        *make_rows(bad, hit, gallery="full"),
    ]
    metrics = retrieval_scores(rows)
    assert metrics["image_to_report/mrr"] == 1
    assert metrics["report_to_image/mrr"] == 0.5
    assert metrics["image_to_report/full_gallery/mrr"] == 0.5
    assert not [name for name in metrics if name.startswith("report_to_image/full_gallery")]


def test_candidates_without_a_positive_count_as_missed() -> None:
    rows = make_rows(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([[True, False], [False, False]]))
    metrics = retrieval_scores(rows)
    assert metrics["image_to_report/mrr"] == 0.5
    assert metrics["image_to_report/hit@1"] == metrics["image_to_report/recall@5"] == 0.5
    assert metrics["image_to_report/chance_mrr"] == pytest.approx(0.75 / 2)
    assert all(np.isfinite(list(metrics.values())))


def test_frequency_ranker_is_scored_where_it_ranked() -> None:
    rows = make_rows(np.array([[0.9, 0.1]] * 2), np.array([[True, False]] * 2))
    assert "image_to_report/frequency_mrr" not in retrieval_scores(rows)
    ranked = [{**row, "frequency_first_rank": rank} for row, rank in zip(rows, (2, 4), strict=True)]
    assert retrieval_scores(ranked)["image_to_report/frequency_mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)


# -- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [1, 3, 5])
@pytest.mark.parametrize("num_candidates", [1, 2, 4, 5, 7])
def test_chance_is_the_mean_over_all_orders(num_candidates: int, cutoff: int) -> None:
    for num_positives in range(num_candidates + 1):
        mrr, hit, recall, precision = [], [], [], []
        for ranks in combinations(range(1, num_candidates + 1), num_positives):
            within = sum(rank <= cutoff for rank in ranks)
            mrr.append(1 / min(ranks) if ranks else 0)
            hit.append(within > 0)
            recall.append(within / num_positives if ranks else 0)
            precision.append(within / cutoff)
        metrics = chance_of(num_candidates, num_positives, cutoff)
        expected = {
            "mrr": np.mean(mrr),
            f"hit@{cutoff}": np.mean(hit),
            f"recall@{cutoff}": np.mean(recall),
            f"precision@{cutoff}": np.mean(precision),
        }
        assert metrics == pytest.approx(expected)


def test_chance_of_100_candidates_with_one_positive_is_the_harmonic_mean() -> None:
    assert chance_of(100, 1)["mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 101)) / 100)
    rows = make_rows(np.random.default_rng(0).random((3, 100)), np.eye(3, 100, dtype=bool))
    assert retrieval_scores(rows)["image_to_report/chance_hit@5"] == pytest.approx(0.05)


# -- matching ------------------------------------------------------------------------------------


def test_matching_pairs_have_accuracy_and_auroc() -> None:
    matched, probability = [True, True, False, False], [0.9, 0.4, 0.6, 0.1]
    rows = [{"matched": m, "match_probability": p} for m, p in zip(matched, probability, strict=True)]
    assert retrieval_scores(rows) == pytest.approx({"match_accuracy": 0.5, "match_auroc": 0.75})
    assert retrieval_scores(rows[:2]) == pytest.approx({"match_accuracy": 0.5})  # all match: no AUROC
