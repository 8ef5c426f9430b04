"""The gallery that queries are searched in: scores of its image-report pairs, and ranks (MedViLL, Sec. IV-C.2)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvill_pl.batch import label_set_keys
from medvill_pl.evaluation.retrieval import Direction, rank_candidates
from medvill_pl.evaluation.retrieval import Gallery as GalleryKind

PAIRS_AT_ONCE = 128
"""Pairs that the encoder scores together."""
ScorePairs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From visual tokens ``(B, K, d)``, ids ``(B, T)`` and mask ``(B, T)`` to matching logits ``(B,)``."""


class Entry(NamedTuple):
    """One pair of the test split.

    Attributes:
        id: its identifier.
        visual_tokens: of its image, shape ``(K, d)``.
        ids: tokens of its own report, with SEP_L.
        labels: of its image, 14 values.
    """

    id: str
    visual_tokens: Tensor
    ids: list[int]
    labels: list[float]


class Gallery(NamedTuple):
    """Images and reports that lie ready for the encoder, N each, on one device.

    Attributes:
        visual_tokens: of each image, shape ``(N, K, d)``.
        input_ids: tokens of each report with SEP_L, then padding, int64, shape ``(N, T)``.
        lengths: tokens of each report, int64, shape ``(N,)``, on the CPU.
    """

    visual_tokens: Tensor
    input_ids: Tensor
    lengths: Tensor


class CandidateSets(NamedTuple):
    """What each pair of the gallery, as a query, is to choose from.

    Attributes:
        direction: whether its image or its report is the query.
        gallery: ``candidates`` for drawn candidate sets, ``full`` for the full gallery.
        candidates: indices of pairs, the query's own counterpart first, int64, shape ``(N, C)``.
    """

    direction: Direction
    gallery: GalleryKind
    candidates: NDArray[np.int64]


def pad_texts(texts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Put encoded texts together: ids, int64, and mask, bool, both of shape ``(B, T)``, on the CPU.

    Example:
        >>> pad_texts([[5, 6], [7]], pad_id=0)[0].tolist()
        [[5, 6], [7, 0]]
    """
    lengths = torch.tensor([len(ids) for ids in texts])
    padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], True, pad_id)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def score_pairs(score: ScorePairs, gallery: Gallery, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score pairs of a gallery's images and reports.

    Args:
        score: the model.
        gallery: images and reports.
        pairs: indices of image and report in the gallery, int64, shape ``(P, 2)``.

    Returns:
        Matching logits, shape ``(P,)``.
    """
    if not len(pairs):
        return np.zeros(0, dtype=np.float32)
    device = gallery.visual_tokens.device
    order = gallery.lengths[pairs[:, 1]].argsort(stable=True)  # like lengths together: little padding
    scores = []
    for indices in torch.split(order, PAIRS_AT_ONCE):
        images, reports = torch.from_numpy(pairs)[indices].T
        lengths = gallery.lengths[reports]
        text_mask = torch.arange(int(lengths.max())) < lengths[:, None]
        input_ids = gallery.input_ids[reports.to(device), : text_mask.shape[1]]
        scores.append(score(gallery.visual_tokens[images.to(device)], input_ids, text_mask.to(device)).float())
    values = np.empty(len(pairs), dtype=np.float32)
    values[order.numpy()] = torch.cat(scores).cpu().numpy()  # the device is waited for once, here
    return values


def needed_pairs(size: int, candidate_sets: Sequence[CandidateSets]) -> NDArray[np.int64]:
    """The pairs that some candidate set needs, each once: image and report, int64, shape ``(P, 2)``."""
    is_needed = np.zeros((size, size), dtype=bool)
    queries = np.arange(size)[:, None]
    for direction, _, candidates in candidate_sets:
        where = (queries, candidates) if direction == "image_to_report" else (candidates, queries)
        is_needed[where] = True
    pairs: NDArray[np.int64] = np.argwhere(is_needed)
    return pairs


def rank_queries(
    entries: Sequence[Entry],
    candidate_sets: Sequence[CandidateSets],
    scores: NDArray[np.float32],
    prior: NDArray[np.float64] | None,
    queries: range,
) -> Iterator[dict[str, Any]]:
    """Rank the candidates of some queries; a candidate is positive where its label set equals the query's.

    Args:
        entries: the gallery.
        candidate_sets: what the queries choose from.
        scores: rows are images, columns reports, shape ``(N, N)``.
        prior: score of each pair by label frequencies alone, shape ``(N,)``; None where these are unknown.
        queries: indices of the queries to rank.

    Yields:
        Rows for :func:`medvill_pl.evaluation.retrieval.retrieval_scores`.
    """
    sets = label_set_keys(np.array([entry.labels for entry in entries], dtype=np.float32))
    for direction, gallery, candidates in candidate_sets:
        for query in queries:
            chosen = candidates[query]
            query_scores = scores[query, chosen] if direction == "image_to_report" else scores[chosen, query]
            is_positive = sets[chosen] == sets[query]
            by_frequency = None if prior is None else rank_candidates(prior[chosen], is_positive).first_rank
            yield (
                {"id": entries[query].id, "direction": direction, "gallery": gallery}
                | rank_candidates(query_scores, is_positive)._asdict()
                | {"frequency_first_rank": by_frequency}
            )
