"""From a corpus to batches: length buckets, non-matching reports, padding, resumable order."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from medvill_pl.batch import Batch, Split, derive_seed, label_set_keys
from medvill_pl.tokenizer import ReportTokenizer

Negatives = Literal["none", "labels", "text"]
"""How non-matching reports are drawn: not at all, by different positive labels, or by different text."""


class Examples(Protocol):
    """The image-report pairs of one split, wherever they come from."""

    @property
    def ids(self) -> Sequence[str]:
        """One identifier a pair."""
        ...

    @property
    def reports(self) -> Sequence[str]:
        """The text of each pair."""
        ...

    @property
    def labels(self) -> NDArray[np.float32]:
        """1, 0, -1 or NaN (not mentioned), float32, shape ``(N, 14)``."""
        ...

    @property
    def labelled(self) -> Sequence[str]:
        """The findings that the corpus labels; the others are unknown, not negative."""
        ...

    def image(self, index: int) -> Tensor:
        """The image of one pair, uint8, shape ``(1, H, W)``."""
        ...


class Questions(Examples, Protocol):
    """The questions of one split, each with its image; ``reports`` are not used."""

    @property
    def questions(self) -> Sequence[str]:
        """The question of each row."""
        ...

    @property
    def answers(self) -> Sequence[str]:
        """The answer to each question."""
        ...

    @property
    def answer_types(self) -> Sequence[str]:
        """``closed`` or ``open``."""
        ...

    @property
    def question_types(self) -> Sequence[str]:
        """What each question asks about, such as ``presence``."""
        ...

    @property
    def organs(self) -> Sequence[str]:
        """The organ that each image shows."""
        ...


class BatchRequest(NamedTuple):
    """What a sampler asks of a dataset: the pairs of one batch.

    Attributes:
        epoch: number of the epoch, which the pairs' own randomness depends on.
        images: indices of the images.
        reports: index of the report that goes with each image; its own where they match.
    """

    epoch: int
    images: list[int]
    reports: list[int]


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

    def draw(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw a pair for each index whose key differs from that of the index, all such pairs being equally likely."""
        group = self._group[indices]
        place: NDArray[np.int64] = rng.integers(len(self._order) - self._size[group])
        place += np.where(place >= self._start[group], self._size[group], 0)
        drawn: NDArray[np.int64] = self._order[place]
        return drawn


def _text_keys(reports: Sequence[str]) -> NDArray[np.int64]:
    texts = np.array([" ".join(report.lower().split()) for report in reports])
    keys: NDArray[np.int64] = np.unique(texts, return_inverse=True)[1]
    return keys


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
    index = NonMatchingIndex(label_set_keys(examples.labels) if by_labels else _text_keys(examples.reports))
    if index.num_keys < 2:
        what, remedy = ("set of positive labels", " or set negatives to 'text'") if by_labels else ("text", "")
        raise ValueError(
            f"all pairs of the {split} split have one {what}, so no report is non-matching: add others{remedy}"
        )
    return index


class PairDataset(Dataset[Batch]):
    """Makes whole batches of image-report pairs.

    Args:
        examples: the pairs of the split.
        texts: what goes with each image: the reports, or in question answering the questions.
        tokenizer: turns texts into ids.
        max_tokens: longer texts are truncated to this many tokens.
        split: name of the split.
        seed: seed of the run; a pair's own randomness follows from ``(seed, split, epoch, index)``
            and so depends neither on workers nor on processes.

    Attributes:
        augment: changes each image by the pair's seed; None leaves them as they are.
        transform: what the task does to each batch before it leaves the worker; None for nothing.
        lengths: tokens of each text, with SEP_L, int64, shape ``(N,)``.
        num_truncated: texts that were longer than ``max_tokens``.
    """

    def __init__(
        self,
        examples: Examples,
        texts: Sequence[str],
        tokenizer: ReportTokenizer,
        max_tokens: int,
        split: Split,
        seed: int,
    ) -> None:
        self.examples, self.texts = examples, texts
        self.augment: Callable[[Tensor, int], Tensor] | None = None
        self.transform: Callable[[Batch], Batch] | None = None
        self._pad_id, self._split, self._seed = tokenizer.pad_id, split, seed
        encoded = tokenizer.encode(texts)
        self._is_truncated = np.array([len(ids) > max_tokens for ids in encoded])
        self.num_truncated = int(self._is_truncated.sum())
        if self.num_truncated:
            rank_zero_warn(
                f"{self.num_truncated:,} of {len(encoded):,} texts of the {split} split are longer than {max_tokens} "
                "tokens and were truncated"
            )
        self.lengths = np.array([min(len(ids), max_tokens) + 1 for ids in encoded], dtype=np.int64)
        self._start = np.cumsum(self.lengths) - self.lengths
        self._tokens = np.array([i for ids in encoded for i in [*ids[:max_tokens], tokenizer.sep_id]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, request: BatchRequest) -> Batch:
        epoch, images, reports = request
        input_ids = self._pad(reports)
        lengths = torch.from_numpy(self.lengths[reports])
        seeds = [derive_seed(self._seed, self._split, epoch, index) for index in images]
        batch = Batch(
            id=[self.examples.ids[index] for index in images],
            image=torch.stack([self._image(index, seed) for index, seed in zip(images, seeds, strict=True)]),
            input_ids=input_ids,
            text_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=torch.from_numpy(self.examples.labels[images]),
            matched=torch.tensor(images) == torch.tensor(reports),
            is_truncated=torch.from_numpy(self._is_truncated[reports]),
            seed=torch.tensor(seeds),
        )
        if self._split != "train":
            batch["report"] = [self.texts[index] for index in images]
        return self.transform(batch) if self.transform else batch

    def _image(self, index: int, seed: int) -> Tensor:
        image = self.examples.image(index)
        return self.augment(image, seed) if self.augment else image

    def _pad(self, reports: list[int]) -> Tensor:
        """Put texts together, padded to the longest."""
        input_ids = np.full((len(reports), int(self.lengths[reports].max())), self._pad_id, dtype=np.int64)
        for row, report in enumerate(reports):
            start, length = self._start[report], self.lengths[report]
            input_ids[row, :length] = self._tokens[start : start + length]
        return torch.from_numpy(input_ids)


class QuestionDataset(PairDataset):
    """Makes whole batches of questions about images, with their answers.

    Args:
        questions: the questions of the split.
        tokenizer: turns questions into ids.
        max_tokens: longer questions are truncated to this many tokens.
        split: name of the split.
        seed: seed of the run.
    """

    examples: Questions

    def __init__(
        self, questions: Questions, tokenizer: ReportTokenizer, max_tokens: int, split: Split, seed: int
    ) -> None:
        super().__init__(questions, questions.questions, tokenizer, max_tokens, split, seed)

    def __getitem__(self, request: BatchRequest) -> Batch:
        batch, indices = super().__getitem__(request), request.images
        batch["answer"] = [self.examples.answers[index] for index in indices]
        batch["answer_type"] = [self.examples.answer_types[index] for index in indices]
        batch["question_type"] = [self.examples.question_types[index] for index in indices]
        batch["organ"] = [self.examples.organs[index] for index in indices]
        if self._split == "test":
            # Half the split away, so that neighbours, which ask about one image, do not lend it to each other.
            others = [(index + len(self) // 2) % len(self) for index in indices]
            batch["other_image"] = torch.stack([self.examples.image(index) for index in others])
        return batch


@dataclass(frozen=True)
class BatchPlan:
    """How a split is cut into batches, over all processes together. Every plan is a pure function of its arguments.

    Args:
        lengths: tokens of each report, int64, shape ``(N,)``.
        negatives: finds non-matching reports; None lets all pairs match.
        batch_size: pairs of one process.
        num_replicas: number of processes.
        seed: seed of the run.
        bucket_batches: training pools so many batches and sorts the pool by length of text before
            it cuts it, which saves padding. A batch of like texts shows BatchNorm like patients,
            so large pools make it a worse estimate; 1 does not sort.
    """

    lengths: NDArray[np.int64]
    negatives: NonMatchingIndex | None
    batch_size: int
    num_replicas: int
    seed: int
    bucket_batches: int = 1

    def train(self, epoch: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Plan one training epoch: images and reports of each batch.

        Pairs are shuffled anew. Exactly half of what each process gets of a batch matches; with
        an odd number, the odd one out alternates. A remainder smaller than a batch is left out of
        the epoch, unless it is all there is.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        replicas = self.num_replicas
        size = min(self.batch_size, len(self.lengths) // replicas)
        order = rng.permutation(len(self.lengths))[: len(self.lengths) // (size * replicas) * size * replicas]
        images = order.reshape(-1, size * replicas)
        reports = images.copy()
        if self.negatives is not None:
            # Columns are dealt out to processes in turn, so whole rounds of columns keep each process' halves equal.
            first = (size + np.arange(len(images)) % 2) // 2 * replicas
            is_matched = np.arange(size * replicas) < first[:, None]
            reports[~is_matched] = self.negatives.draw(images[~is_matched], rng)
        for start in range(0, len(images), max(1, self.bucket_batches)):
            pool = slice(start, start + self.bucket_batches)
            self._sort(images[pool], reports[pool])
        batches = list(zip(images, reports, strict=True))
        return [batches[place] for place in rng.permutation(len(batches))]

    def _sort(self, images: NDArray[np.int64], reports: NDArray[np.int64]) -> None:
        """Rearrange a pool of batches by length, matching and non-matching pairs each among themselves."""
        is_matched = images == reports
        for group in (is_matched, ~is_matched):
            by_length = np.argsort(self.lengths[reports[group]], kind="stable")
            images[group], reports[group] = images[group][by_length], reports[group][by_length]

    def evaluate(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Plan an evaluation: every image once, as many batches for every process.

        The order is by length; batches differ in size by one pair a process at most. A fixed half
        of the split matches, whatever the number of processes.
        """
        reports = np.arange(len(self.lengths))
        if self.negatives is not None:
            rng = np.random.default_rng(derive_seed(self.seed, "evaluation"))
            non_matching = rng.permutation(len(reports))[: len(reports) // 2]
            reports[non_matching] = self.negatives.draw(non_matching, rng)
        order = np.argsort(self.lengths[reports], kind="stable")
        wanted = math.ceil(len(order) / (self.batch_size * self.num_replicas))
        parts = np.array_split(order, min(wanted, len(order) // self.num_replicas))
        return [(part, reports[part]) for part in parts]


class PairSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each batch, from any place of any epoch.

    Args:
        plan: how the split is cut into batches.
        rank: number of this process.
        is_training: follow the plan of training or of evaluation.
        position: gives the epoch and the batch to begin with when an iteration starts; without
            it, the epoch is the one last set and the batch is 0.

    Raises:
        ValueError: if there are fewer pairs than processes.
    """

    def __init__(
        self, plan: BatchPlan, rank: int, is_training: bool, position: Callable[[], tuple[int, int]] | None = None
    ) -> None:
        if len(plan.lengths) < plan.num_replicas:
            raise ValueError(f"{len(plan.lengths)} pairs are too few for {plan.num_replicas} processes")
        self._plan, self._is_training, self._position = plan, is_training, position
        self.num_replicas, self.rank, self.seed, self.epoch = plan.num_replicas, rank, plan.seed, 0

    def _batches(self, epoch: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return self._plan.train(epoch) if self._is_training else self._plan.evaluate()

    def __len__(self) -> int:
        return len(self._batches(0))

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch, start = self._position() if self._position else (self.epoch, 0)
        mine = slice(self.rank, None, self.num_replicas)
        for images, reports in self._batches(epoch)[start:]:
            yield BatchRequest(epoch if self._is_training else 0, images[mine].tolist(), reports[mine].tolist())


class FixedPairSampler(PairSampler, SequentialSampler):  # type: ignore[misc]
    """Yields the batches of the first epoch in every epoch, for the trainer's ``overfit_batches``.

    Lightning replaces every sampler that is not a ``SequentialSampler`` by one that knows no batches.
    """
