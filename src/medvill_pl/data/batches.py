"""From a corpus to batches: length buckets, non-matching reports, padding, resumable order."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from medvill_pl.batch import FINDINGS, Batch, Split, derive_seed
from medvill_pl.language import ReportTokenizer

Negatives = Literal["none", "labels", "text"]
"""How non-matching reports are drawn: not at all, by different positive labels, or by different text."""

_BUCKET_BATCHES = 50


class Examples(Protocol):
    """The image-report pairs of one split, wherever they come from."""

    ids: Sequence[str]
    """One identifier a pair."""
    reports: Sequence[str]
    """The text of each pair."""
    labels: NDArray[np.float32]
    """1, 0, -1 or NaN (not mentioned), float32, shape ``(N, 14)``."""

    def image(self, index: int) -> Tensor:
        """The image of one pair, uint8, shape ``(1, H, W)``."""
        ...


class BatchRequest(NamedTuple):
    """What a sampler asks of a dataset: the pairs of one batch of one epoch."""

    epoch: int
    number: int
    indices: list[int]


class NonMatchingIndex:
    """Finds, for any pair, a report that does not match its image (MedViLL, Sec. III-B.4).

    Pairs are sorted by a key; a draw skips the block of the pair's own key, so it always ends.

    Args:
        keys: pairs with equal keys match each other's reports, int64, shape ``(N,)``.
    """

    def __init__(self, keys: NDArray[np.int64]) -> None:
        _, group = np.unique(keys, return_inverse=True)
        self._order = np.argsort(group, kind="stable")
        self._size = np.bincount(group)
        self._start = np.cumsum(self._size) - self._size
        self._group = group
        self.num_keys = len(self._size)

    def draw(self, index: int, rng: np.random.Generator) -> int:
        """Draw a pair whose key differs from that of ``index``, each equally likely."""
        group = self._group[index]
        place = int(rng.integers(len(self._order) - self._size[group]))
        if place >= self._start[group]:
            place += self._size[group]
        return int(self._order[place])


def _label_keys(labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """One number a set of positive labels."""
    return (labels == 1).astype(np.int64) @ (1 << np.arange(len(FINDINGS), dtype=np.int64))


def _text_keys(reports: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.array([" ".join(report.lower().split()) for report in reports]), return_inverse=True)[1]


def index_negatives(examples: Examples, negatives: Negatives, split: Split) -> NonMatchingIndex | None:
    """Build the index that ``negatives`` asks for.

    Where labels are asked for and the split has none, different text is taken, with a warning.

    Raises:
        ValueError: if all pairs have the same positive labels (or text), so that none is non-matching.
    """
    if negatives == "none":
        return None
    by_labels = negatives == "labels"
    if by_labels and bool(np.isnan(examples.labels).all()):
        rank_zero_warn(
            f"the {split} split has no labels: reports with a different text serve as non-matching, although they may "
            "mean the same"
        )
        by_labels = False
    index = NonMatchingIndex(_label_keys(examples.labels) if by_labels else _text_keys(examples.reports))
    if index.num_keys < 2:
        what, remedy = ("set of positive labels", " or set negatives to 'text'") if by_labels else ("text", "")
        raise ValueError(f"all pairs of the {split} split have one {what}, so no report is non-matching: add others{remedy}")
    return index


class PairDataset(Dataset[Batch]):
    """Makes whole batches of image-report pairs.

    Everything random about a pair follows from ``(seed, epoch, index)``, so it depends neither on
    workers nor on processes, and a resumed run sees what an uninterrupted one would.

    Args:
        examples: the pairs of the split.
        tokenizer: turns reports into ids.
        max_words: longer reports are cut to so many word pieces.
        negatives: how non-matching reports are drawn.
        split: name of the split. In ``train``, exactly half of each batch matches (the odd one
            out alternates); in the others a fixed half of the split does.
        seed: seed of the run.
    """

    def __init__(
        self, examples: Examples, tokenizer: ReportTokenizer, max_words: int, negatives: Negatives, split: Split, seed: int
    ) -> None:
        self._examples, self._tokenizer = examples, tokenizer
        self._split, self._seed = split, seed
        self._negatives = index_negatives(examples, negatives, split)
        encoded = tokenizer.encode(examples.reports)
        self.num_cut = sum(len(ids) > max_words for ids in encoded)
        if self.num_cut:
            rank_zero_warn(
                f"{self.num_cut:,} of {len(encoded):,} reports of the {split} split are longer than {max_words} word "
                "pieces and were cut"
            )
        self.lengths = np.array([min(len(ids), max_words) + 1 for ids in encoded], dtype=np.int64)
        self._start = np.cumsum(self.lengths) - self.lengths
        self._tokens = np.array([i for ids in encoded for i in [*ids[:max_words], tokenizer.sep_id]], dtype=np.int64)
        order = np.random.default_rng(derive_seed(seed, "matching", split)).permutation(len(encoded))
        self._is_first_half = np.argsort(order) < (len(encoded) + 1) // 2

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, request: BatchRequest | int) -> Batch:
        if isinstance(request, int):  # Lightning's overfit_batches puts a sampler of its own in place
            request = BatchRequest(0, request, [request])
        seeds = [derive_seed(self._seed, self._split, request.epoch, index) for index in request.indices]
        matched = self._draw_matched(request)
        reports = [
            index if is_matched or self._negatives is None else self._negatives.draw(index, np.random.default_rng(seed))
            for index, is_matched, seed in zip(request.indices, matched, seeds, strict=True)
        ]
        input_ids = self._pad(reports)
        lengths = torch.from_numpy(self.lengths[reports])
        return Batch(
            id=[self._examples.ids[index] for index in request.indices],
            image=torch.stack([self._examples.image(index) for index in request.indices]),
            input_ids=input_ids,
            text_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=torch.from_numpy(self._examples.labels[request.indices]),
            matched=torch.from_numpy(matched),
            seed=torch.tensor(seeds),
        )

    def _draw_matched(self, request: BatchRequest) -> NDArray[np.bool_]:
        size = len(request.indices)
        if self._negatives is None:
            return np.ones(size, dtype=np.bool_)
        if self._split != "train":
            return self._is_first_half[request.indices]
        matched = np.arange(size) < (size + request.number % 2) // 2
        rng = np.random.default_rng(derive_seed(self._seed, "matched", request.epoch, request.number, request.indices[0]))
        return rng.permutation(matched)

    def _pad(self, reports: list[int]) -> Tensor:
        """Put texts together, padded to the longest."""
        input_ids = np.full((len(reports), int(self.lengths[reports].max())), self._tokenizer.pad_id, dtype=np.int64)
        for row, report in enumerate(reports):
            start, length = self._start[report], self.lengths[report]
            input_ids[row, :length] = self._tokens[start : start + length]
        return torch.from_numpy(input_ids)


def plan_training(lengths: NDArray[np.int64], batch_size: int, num_replicas: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Plan the batches of one training epoch over all processes together.

    Pairs are shuffled, cut into buckets, sorted by length within a bucket and cut into batches,
    whose order is shuffled again. A remainder smaller than a batch is left out of the epoch,
    unless it is all there is.

    Args:
        lengths: tokens of each text, int64, shape ``(N,)``.
        batch_size: pairs of one process.
        num_replicas: number of processes.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        Indices of each batch, of all processes together.
    """
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    total = min(batch_size * num_replicas, len(lengths) // num_replicas * num_replicas)
    order = rng.permutation(len(lengths))[: len(lengths) // total * total]
    bucket = total * _BUCKET_BATCHES
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), bucket):
        part = order[start : start + bucket]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += np.split(part, len(part) // total)
    return [batches[place] for place in rng.permutation(len(batches))]


def plan_evaluation(lengths: NDArray[np.int64], batch_size: int, num_replicas: int) -> list[NDArray[np.int64]]:
    """Plan the batches of an evaluation: every pair once, as many batches for every process.

    Texts are sorted by length; batches differ in size by one pair at most.
    """
    wanted = math.ceil(len(lengths) / (batch_size * num_replicas))
    return np.array_split(np.argsort(lengths, kind="stable"), min(wanted, len(lengths) // num_replicas))


class PairSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each batch, from any place of any epoch.

    Args:
        lengths: tokens of each text, int64, shape ``(N,)``.
        batch_size: pairs of one process.
        num_replicas: number of processes.
        rank: number of this process.
        is_training: shuffle anew every epoch, or yield every pair once in a fixed order.
        seed: seed of the run.
        position: gives the epoch and the batch to begin with when an iteration starts; without
            it, the epoch is the one last set and the batch is 0.

    Raises:
        ValueError: if there are fewer pairs than processes.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        num_replicas: int,
        rank: int,
        is_training: bool,
        seed: int,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        if len(lengths) < num_replicas:
            raise ValueError(f"{len(lengths)} pairs are too few for {num_replicas} processes")
        self._lengths, self._batch_size, self._is_training = lengths, batch_size, is_training
        self._position = position
        self.num_replicas, self.rank, self.seed, self.epoch = num_replicas, rank, seed, 0

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        if self._is_training:
            return plan_training(self._lengths, self._batch_size, self.num_replicas, self.seed, epoch)
        return plan_evaluation(self._lengths, self._batch_size, self.num_replicas)

    def __len__(self) -> int:
        return len(self._plan(0))

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]
        epoch, start = self._position() if self._position else (self.epoch if self._is_training else 0, 0)
        for number, batch in enumerate(self._plan(epoch)):
            if number >= start:
                yield BatchRequest(epoch, number, batch[self.rank :: self.num_replicas].tolist())
