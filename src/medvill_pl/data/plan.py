"""Which pairs make which batch, and where an iteration begins: length buckets, halves, processes, resuming."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from medvill_pl.batch import derive_seed
from medvill_pl.data.negatives import NonMatchingIndex


class BatchRequest(NamedTuple):
    """What a sampler asks of a dataset: the pairs of one batch.

    Attributes:
        epoch: number of the epoch, which the pairs' own randomness depends on.
        images: indices of the images.
        reports: index of the report that goes with each image; its own where they match.

    Example:
        >>> request = BatchRequest(epoch=0, images=[4, 7], reports=[4, 2])  # image 7 with a report that is not its own
        >>> request.images
        [4, 7]
    """

    epoch: int
    images: list[int]
    reports: list[int]


@dataclass(frozen=True)
class BatchPlan:
    """How a split is divided into batches, over all processes together: a pure function of its arguments.

    Args:
        lengths: tokens of each report, int64, shape ``(N,)``.
        negatives: finds non-matching reports; None lets all pairs match.
        batch_size: pairs of one process.
        num_replicas: number of processes.
        seed: seed of the run.
        bucket_batches: training pools so many batches and sorts the pool by length of text before
            it divides it, which saves padding. A batch of like texts shows BatchNorm like patients,
            so large pools make it a worse estimate; 1 does not sort.

    Example:
        >>> plan = BatchPlan(np.array([5, 9, 4, 8]), None, batch_size=2, num_replicas=1, seed=0)
        >>> [images.tolist() for images, reports in plan.evaluate()]  # the shorter texts first
        [[2, 0], [3, 1]]
        >>> sorted(int(image) for images, reports in plan.train(epoch=0) for image in images)
        [0, 1, 2, 3]
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
        # A row of this matrix is a batch of all processes together; process r takes the columns r, r + replicas, ...
        order = rng.permutation(len(self.lengths))[: len(self.lengths) // (size * replicas) * size * replicas]
        images = order.reshape(-1, size * replicas)
        reports = images.copy()
        if self.negatives is not None:
            # Columns are dealt out to processes in turn, so whole rounds of columns keep each process' halves equal. In
            # batches of odd size the larger half is matching and non-matching by turns: half and half over two batches.
            first = (size + np.arange(len(images)) % 2) // 2 * replicas
            is_matched = np.arange(size * replicas) < first[:, None]
            reports[~is_matched] = self.negatives.draw(images[~is_matched], rng)
        for start in range(0, len(images), max(1, self.bucket_batches)):
            pool = slice(start, start + self.bucket_batches)
            self._sort(images[pool], reports[pool])
        batches = list(zip(images, reports, strict=True))
        # Sorted pools run from short to long: shuffle batches, so that training does not follow the length of texts.
        return [batches[index] for index in rng.permutation(len(batches))]

    def _sort(self, images: NDArray[np.int64], reports: NDArray[np.int64]) -> None:
        """Rearrange a pool of batches by length, matching and non-matching pairs each among themselves."""
        # Each group keeps its positions in the matrix and changes only their content, so every batch of every process
        # still has its half of matching pairs.
        is_matched = images == reports
        for group in (is_matched, ~is_matched):
            by_length = np.argsort(self.lengths[reports[group]], kind="stable")
            images[group], reports[group] = images[group][by_length], reports[group][by_length]

    def evaluate(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Plan an evaluation: every image once, as many batches for every process.

        The order is by length; batches differ in size by one pair per process at most. A fixed half
        of the split matches, whatever the number of processes.
        """
        reports = np.arange(len(self.lengths))
        if self.negatives is not None:
            rng = np.random.default_rng(derive_seed(self.seed, "evaluation"))
            non_matching = rng.permutation(len(reports))[: len(reports) // 2]
            reports[non_matching] = self.negatives.draw(non_matching, rng)
        order = np.argsort(self.lengths[reports], kind="stable")
        # Processes wait for each other in every step, so no part may be smaller than their number.
        num_batches = math.ceil(len(order) / (self.batch_size * self.num_replicas))
        parts = np.array_split(order, min(num_batches, len(order) // self.num_replicas))
        return [(part, reports[part]) for part in parts]


class PairSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each batch, from any batch of any epoch.

    Args:
        plan: how the split is cut into batches.
        rank: number of this process.
        is_training: follow the plan of training or of evaluation.
        position: gives the epoch and the batch to begin with when an iteration starts; without
            it, the epoch is the one last set and the batch is 0.

    Raises:
        ValueError: if there are fewer pairs than processes.

    Example:
        >>> plan = BatchPlan(np.array([5, 9, 4, 8]), None, batch_size=1, num_replicas=2, seed=0)
        >>> [request.images for request in PairSampler(plan, rank=1, is_training=False)]
        [[0], [1]]
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

    Example:
        >>> plan = BatchPlan(np.array([5, 9, 4, 8]), None, batch_size=2, num_replicas=1, seed=0)
        >>> sampler = FixedPairSampler(plan, rank=0, is_training=True, position=lambda: (0, 0))
        >>> list(sampler) == list(sampler)
        True
    """
