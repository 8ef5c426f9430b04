"""Image-report retrieval: trials, ranks and metrics (MedViLL, Sec. IV-C.2)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

CUTS = (1, 5, 10)
"""The K of Hit@K, Recall@K and Precision@K; the paper's is 5."""
Direction = Literal["image_to_report", "report_to_image"]
DIRECTIONS: tuple[Direction, ...] = ("image_to_report", "report_to_image")


def check_gallery(num_pairs: int, num_candidates: int) -> None:
    """Refuse a pool that is smaller than a trial.

    Raises:
        ValueError: if there are fewer pairs than candidates.
    """
    if num_candidates > num_pairs:
        raise ValueError(
            f"a trial needs {num_candidates} candidates, but the pool has {num_pairs} pairs: "
            f"set num_candidates to {num_pairs} or fewer"
        )


def draw_candidate_sets(num_pairs: int, num_candidates: int, seed: int) -> NDArray[np.int64]:
    """Draw the candidates of each pair's trial: its own counterpart and others, without replacement.

    Args:
        num_pairs: pairs of the pool.
        num_candidates: candidates of a trial; as many as there are pairs makes the whole pool a trial.
        seed: the trials follow from it alone.

    Returns:
        Indices of pairs, the own first, int64, shape ``(num_pairs, num_candidates)``.

    Raises:
        ValueError: if there are fewer pairs than candidates.
    """
    check_gallery(num_pairs, num_candidates)
    rng = np.random.default_rng([seed, num_pairs])
    trials = np.empty((num_pairs, num_candidates), dtype=np.int64)
    for own in range(num_pairs):
        others = rng.choice(num_pairs - 1, num_candidates - 1, replace=False)
        trials[own] = [own, *(others + (others >= own))]
    return trials


class Ranking(NamedTuple):
    """Where a query's candidates came to stand.

    Attributes:
        num_candidates: candidates ranked.
        num_positives: those that match the query.
        first_rank: rank of the best positive, from 1; 0 where there is none.
        own_rank: rank of the query's own counterpart.
        positives_in: how many positives are among the first 1, 5 and 10.
    """

    num_candidates: int
    num_positives: int
    first_rank: int
    own_rank: int
    positives_in: list[int]


def rank_candidates(scores: NDArray[np.floating[Any]], is_positive: NDArray[np.bool_], own: int = 0) -> Ranking:
    """Rank a query's candidates by score; ties are broken against the model.

    Args:
        scores: higher is a better match, shape ``(C,)``.
        is_positive: whether each candidate matches, shape ``(C,)``.
        own: place of the query's own counterpart.
    """
    # Equal scores: negatives come first.
    order = np.lexsort((is_positive, -scores))
    ranks = np.flatnonzero(is_positive[order]) + 1
    return Ranking(
        num_candidates=len(scores),
        num_positives=len(ranks),
        first_rank=int(ranks[0]) if len(ranks) else 0,
        own_rank=int((scores >= scores[own]).sum()),
        positives_in=[int((ranks <= cut).sum()) for cut in CUTS],
    )


def retrieval_scores(rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Score trials; of pairs that were only told matching from not (validation), accuracy and AUROC.

    Args:
        rows: either ``matched`` and ``match_probability``, or the fields of :class:`Ranking`,
            ``direction``, ``pool`` (``trial`` or ``whole``) and ``frequency_first_rank``, the rank of the
            best positive by a ranker that knows label frequencies only, or None.
        context: not used.

    Returns:
        For each direction, ``mrr``, ``hit@K``, ``recall@K``, ``precision@K``, the instance-level
        ``own_recall@K`` and ``own_median_rank``, and beside them ``chance_mrr``, ``chance_hit@5``,
        ``chance_recall@5``, ``chance_precision@5`` and ``frequency_mrr``, as ``{direction}/{metric}``; those of
        the whole pool as ``{direction}/whole/{metric}``. Of pairs, ``match_accuracy`` and ``match_auroc``.
    """
    if rows and "matched" in rows[0]:
        return _of_pairs(rows)
    scores: dict[str, float] = {}
    for direction in DIRECTIONS:
        for pool, part in (("trial", ""), ("whole", "whole/")):
            chosen = [row for row in rows if row["direction"] == direction and row["pool"] == pool]
            if chosen:
                scores |= {f"{direction}/{part}{name}": value for name, value in _of_trials(chosen).items()}
    return scores


def _of_pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    preds, target = (
        torch.tensor([r["match_probability"] for r in rows]),
        torch.tensor([int(r["matched"]) for r in rows]),
    )
    scores = {"match_accuracy": binary_accuracy(preds, target).item()}
    if 0 < target.sum() < len(target):
        scores["match_auroc"] = binary_auroc(preds, target).item()
    return scores


def _of_trials(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    first, own, positives, candidates = (
        np.array([row[name] for row in rows], dtype=np.float64)
        for name in ("first_rank", "own_rank", "num_positives", "num_candidates")
    )
    found = np.array([row["positives_in"] for row in rows], dtype=np.float64)
    scores = {"mrr": _mean_reciprocal(first), "own_median_rank": float(np.median(own))}
    for column, cut in enumerate(CUTS):
        scores[f"hit@{cut}"] = float((found[:, column] > 0).mean())
        scores[f"recall@{cut}"] = float((found[:, column] / np.maximum(positives, 1)).mean())
        scores[f"precision@{cut}"] = float(found[:, column].mean()) / cut
        scores[f"own_recall@{cut}"] = float((own <= cut).mean())
    chance = [chance_of(int(n), int(p)) for n, p in zip(candidates, positives, strict=True)]
    scores |= {f"chance_{name}": float(np.mean([one[name] for one in chance])) for name in chance[0]}
    by_frequency = [row["frequency_first_rank"] for row in rows]
    if None not in by_frequency:
        scores["frequency_mrr"] = _mean_reciprocal(np.array(by_frequency, dtype=np.float64))
    return scores


def _mean_reciprocal(ranks: NDArray[np.float64]) -> float:
    return float(np.divide(1, ranks, out=np.zeros_like(ranks), where=ranks > 0).mean())


def chance_of(num_candidates: int, num_positives: int, cut: int = 5) -> dict[str, float]:
    """What a random order is expected to reach.

    Args:
        num_candidates: candidates of the trial.
        num_positives: those that match.
        cut: the K of the other metrics.

    Returns:
        ``mrr``, ``hit@5``, ``recall@5`` and ``precision@5`` (for a ``cut`` of 5), exact expectations.
    """
    # The chance that the first positive is at rank r: none before, one there.
    mrr, none_before = 0.0, 1.0
    missed_at_cut = 1.0
    for rank in range(1, num_candidates + 1):
        here = min(1.0, num_positives / (num_candidates - rank + 1))
        mrr += none_before * here / rank
        none_before *= 1 - here
        if rank == cut:
            missed_at_cut = none_before
    missed_at_cut = none_before if num_candidates < cut else missed_at_cut
    share = num_positives / num_candidates
    within = min(cut, num_candidates)
    return {
        "mrr": mrr,
        f"hit@{cut}": 1 - missed_at_cut,
        f"recall@{cut}": within / num_candidates if num_positives else 0.0,
        f"precision@{cut}": share * within / cut,
    }
