"""Image-report retrieval: candidate sets, ranks and metrics (MedViLL, Sec. IV-C.2)."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from medvill_pl.evaluation.statistics import Rows

CUTOFFS = (1, 5, 10)
"""The K of Hit@K, Recall@K and Precision@K; the paper's is 5."""
Direction = Literal["image_to_report", "report_to_image"]
DIRECTIONS: tuple[Direction, ...] = ("image_to_report", "report_to_image")
Gallery = Literal["candidates", "full"]
"""What a query searched: a candidate set that was drawn for it, or all pairs of the split."""
_LOG_PARTS: dict[Gallery, str] = {"candidates": "", "full": "full_gallery/"}


def check_gallery(num_pairs: int, num_candidates: int) -> None:
    """Refuse a gallery that is smaller than a candidate set.

    Args:
        num_pairs: pairs of the gallery.
        num_candidates: candidates per query.

    Raises:
        ValueError: if there are fewer pairs than candidates.

    Example:
        >>> check_gallery(num_pairs=20, num_candidates=100)
        Traceback (most recent call last):
            ...
        ValueError: a candidate set needs 100 pairs, but the gallery has 20: set num_candidates to 20 or fewer
    """
    if num_candidates > num_pairs:
        raise ValueError(
            f"a candidate set needs {num_candidates} pairs, but the gallery has {num_pairs}: "
            f"set num_candidates to {num_pairs} or fewer"
        )


def draw_candidate_sets(num_pairs: int, num_candidates: int, seed: int) -> NDArray[np.int64]:
    """Draw the candidates of each pair as a query: its own counterpart and others, without replacement.

    Args:
        num_pairs: pairs of the gallery.
        num_candidates: candidates per query; as many as there are pairs makes the full gallery a candidate set.
        seed: the candidate sets follow from it alone.

    Returns:
        Indices of pairs, the own first, int64, shape ``(num_pairs, num_candidates)``.

    Raises:
        ValueError: if there are fewer pairs than candidates.

    Example:
        >>> sets = draw_candidate_sets(num_pairs=5, num_candidates=3, seed=0)
        >>> sets.shape, sets[:, 0].tolist()
        ((5, 3), [0, 1, 2, 3, 4])
    """
    check_gallery(num_pairs, num_candidates)
    rng = np.random.default_rng([seed, num_pairs])
    candidate_sets = np.empty((num_pairs, num_candidates), dtype=np.int64)
    for own in range(num_pairs):
        others = rng.choice(num_pairs - 1, num_candidates - 1, replace=False)
        candidate_sets[own] = [own, *(others + (others >= own))]  # the indices from ``own`` on move up by one
    return candidate_sets


class Ranking(NamedTuple):
    """How a query's candidates were ranked.

    Attributes:
        num_candidates: candidates ranked.
        num_positives: those that match the query.
        first_rank: rank of the best positive, from 1; 0 where there is none.
        own_rank: rank of the query's own counterpart.
        positives_in: how many positives are among the first 1, 5 and 10.

    Example:
        >>> Ranking(num_candidates=100, num_positives=3, first_rank=2, own_rank=7, positives_in=[0, 1, 2]).first_rank
        2
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
        own: position of the query's own counterpart.

    Example:
        >>> rank_candidates(np.array([0.3, 0.9, 0.1]), np.array([True, False, True]))
        Ranking(num_candidates=3, num_positives=2, first_rank=2, own_rank=2, positives_in=[0, 2, 2])
    """
    # Equal scores: negatives come first.
    order = np.lexsort((is_positive, -scores))
    ranks = np.flatnonzero(is_positive[order]) + 1
    return Ranking(
        num_candidates=len(scores),
        num_positives=len(ranks),
        first_rank=int(ranks[0]) if len(ranks) else 0,
        own_rank=int((scores >= scores[own]).sum()),
        positives_in=[int((ranks <= cutoff).sum()) for cutoff in CUTOFFS],
    )


def retrieval_scores(rows: Rows, context: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Score searches; of pairs that were only classified as matching or not (validation), accuracy and AUROC.

    Args:
        rows: either ``matched`` and ``match_probability``, or the fields of :class:`Ranking`, ``direction``,
            ``gallery`` (``candidates`` or ``full``) and ``frequency_first_rank``, the rank of the best positive by a
            ranker that knows label frequencies only, or None.
        context: not used.

    Returns:
        For each direction, ``mrr``, ``hit@K``, ``recall@K``, ``precision@K``, the instance-level ``own_recall@K`` and
        ``own_median_rank``, and beside them ``chance_mrr``, ``chance_hit@5``, ``chance_recall@5``,
        ``chance_precision@5`` and ``frequency_mrr``, as ``{direction}/{metric}``; those of searches in the full
        gallery as ``{direction}/full_gallery/{metric}``. Of pairs, ``match_accuracy`` and ``match_auroc``.

    Example:
        >>> ranking = rank_candidates(np.array([0.3, 0.9, 0.1]), np.array([True, False, True]))
        >>> search = {"direction": "image_to_report", "gallery": "candidates", "frequency_first_rank": None}
        >>> retrieval_scores([search | ranking._asdict()])["image_to_report/mrr"]
        0.5
    """
    if rows and "matched" in rows[0]:
        return _score_pairs(rows)
    scores: dict[str, float] = {}
    for direction in DIRECTIONS:
        for gallery, part in _LOG_PARTS.items():
            searches = [row for row in rows if row["direction"] == direction and row["gallery"] == gallery]
            if searches:
                scores |= {f"{direction}/{part}{name}": value for name, value in _score_searches(searches).items()}
    return scores


def _score_pairs(rows: Rows) -> dict[str, float]:
    preds = torch.tensor([row["match_probability"] for row in rows])
    target = torch.tensor([int(row["matched"]) for row in rows])
    scores = {"match_accuracy": binary_accuracy(preds, target).item()}
    if 0 < target.sum() < len(target):
        scores["match_auroc"] = binary_auroc(preds, target).item()
    return scores


def _score_searches(rows: Rows) -> dict[str, float]:
    first, own, positives, candidates = (
        np.array([row[name] for row in rows], dtype=np.float64)
        for name in ("first_rank", "own_rank", "num_positives", "num_candidates")
    )
    hits = np.array([row["positives_in"] for row in rows], dtype=np.float64)
    scores = {"mrr": _mean_reciprocal(first), "own_median_rank": float(np.median(own))}
    for column, cutoff in enumerate(CUTOFFS):
        scores[f"hit@{cutoff}"] = float((hits[:, column] > 0).mean())
        scores[f"recall@{cutoff}"] = float((hits[:, column] / np.maximum(positives, 1)).mean())
        scores[f"precision@{cutoff}"] = float(hits[:, column].mean()) / cutoff
        scores[f"own_recall@{cutoff}"] = float((own <= cutoff).mean())
    chance = [chance_of(int(n), int(p)) for n, p in zip(candidates, positives, strict=True)]
    scores |= {f"chance_{name}": float(np.mean([one[name] for one in chance])) for name in chance[0]}
    by_frequency = [row["frequency_first_rank"] for row in rows]
    if None not in by_frequency:
        scores["frequency_mrr"] = _mean_reciprocal(np.array(by_frequency, dtype=np.float64))
    return scores


def _mean_reciprocal(ranks: NDArray[np.float64]) -> float:
    return float(np.divide(1, ranks, out=np.zeros_like(ranks), where=ranks > 0).mean())


def chance_of(num_candidates: int, num_positives: int, cutoff: int = 5) -> dict[str, float]:
    """What a random order is expected to reach.

    Args:
        num_candidates: candidates of the query.
        num_positives: those that match.
        cutoff: the K of the other metrics.

    Returns:
        ``mrr``, ``hit@5``, ``recall@5`` and ``precision@5`` (for a ``cutoff`` of 5), exact expectations.

    Example:
        >>> chance = chance_of(num_candidates=100, num_positives=1)
        >>> chance["hit@5"], chance["recall@5"], chance["precision@5"]
        (0.05..., 0.05, 0.01)
    """
    # The chance that the first positive is at rank r: none before, one here.
    mrr, none_before = 0.0, 1.0
    missed_at_cutoff = 1.0
    for rank in range(1, num_candidates + 1):
        here = min(1.0, num_positives / (num_candidates - rank + 1))
        mrr += none_before * here / rank
        none_before *= 1 - here
        if rank == cutoff:
            missed_at_cutoff = none_before
    missed_at_cutoff = none_before if num_candidates < cutoff else missed_at_cutoff
    share = num_positives / num_candidates
    within = min(cutoff, num_candidates)
    return {
        "mrr": mrr,
        f"hit@{cutoff}": 1 - missed_at_cutoff,
        f"recall@{cutoff}": within / num_candidates if num_positives else 0.0,
        f"precision@{cutoff}": share * within / cutoff,
    }
