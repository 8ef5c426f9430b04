"""The base of all data modules: one loader for every split."""

from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from torch.utils.data import DataLoader, Dataset

from medvill_pl.batch import Batch, Split
from medvill_pl.data.augmentation import augment
from medvill_pl.data.batches import (
    BatchPlan,
    Examples,
    Negatives,
    NonMatchingIndex,
    PairDataset,
    PairSampler,
    QuestionDataset,
    Questions,
    index_negatives,
)
from medvill_pl.tokenizer import MAX_TOKENS, ReportTokenizer

_ORDER = ("batch_size", "bucket_batches", "negatives", "seed")
_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class BaseDataModule(LightningDataModule, ABC):
    """Batches of image-report pairs for every stage of a run.

    A subclass gives the pairs of each split. Validation uses ``val``; test and predict use ``test``.

    Args:
        tokenizer: what :meth:`ReportTokenizer.load` takes; the same as the backbone's.
        image_size: side of the square images in pixels.
        batch_size: pairs of a batch, for each process.
        negatives: how the non-matching half of the pairs is drawn: ``labels`` (the paper),
            ``text`` or ``none`` (all pairs match).
        max_tokens: longer reports are cut to so many word pieces.
        bucket_batches: training pools so many batches and sorts the pool by length of text, which
            saves padding; 1 does not sort (see :class:`BatchPlan`).
        num_workers: processes that prepare batches; 0 prepares them in the main one.
        seed: seed of order, pairing and masking.
        augment: change the films of training a little, see :func:`medvill_pl.data.augmentation.augment`.

    Attributes:
        name: name (and version) of the corpus.
        is_credentialed: whether the corpus' text and images may not be shared.
        has_questions: whether the text of each image is a question about it, which has an answer.
        cut_margins: whether the margins of its images were cut off.
    """

    name: str
    is_credentialed: bool
    has_questions: bool = False
    cut_margins: bool = False

    def __init__(
        self,
        tokenizer: str,
        image_size: int,
        batch_size: int,
        negatives: Negatives,
        max_tokens: int = MAX_TOKENS,
        bucket_batches: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        self.tokenizer = ReportTokenizer.load(tokenizer)
        self.image_size, self.batch_size, self.negatives, self.max_tokens = (
            image_size,
            batch_size,
            negatives,
            max_tokens,
        )
        self.num_workers, self.seed = num_workers, seed
        self.bucket_batches, self.augment = bucket_batches, augment
        self.datasets: dict[Split, PairDataset] = {}
        self._indices: dict[Split, NonMatchingIndex | None] = {}

    @abstractmethod
    def examples(self, split: Split) -> Examples:
        """The pairs of one split."""

    def setup(self, stage: Literal["fit", "validate", "test", "predict"] | str) -> None:
        """Tokenise the splits that a stage needs.

        Raises:
            ValueError: if a split is empty, or none of its reports can be non-matching.
        """
        for split in _SPLITS[stage]:
            if split not in self.datasets:
                examples = self.examples(split)
                self._indices[split] = index_negatives(examples, self.negatives, split)
                self.datasets[split] = self._dataset(examples, split)
                if self.augment and split == "train":
                    self.datasets[split].augment = augment

    def _dataset(self, examples: Examples, split: Split) -> PairDataset:
        if self.has_questions:
            return QuestionDataset(cast(Questions, examples), self.tokenizer, self.max_tokens, split, self.seed)
        return PairDataset(examples, examples.reports, self.tokenizer, self.max_tokens, split, self.seed)

    def _position(self) -> tuple[int, int]:
        """Epoch and batch at which the training loader is to begin, by the trainer's progress.

        Lightning restores its counters from a checkpoint, but begins the epoch's data anew; and it
        starts to iterate before it tells the sampler the epoch.
        """
        if self.trainer is None:
            return 0, 0
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        batches = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch: int = epochs.processed
        is_unfinished = epochs.ready > epochs.processed
        if is_unfinished and batches.is_last_batch:
            return epoch + 1, 0
        return epoch, batches.current.ready if is_unfinished else 0

    def _loader(self, split: Split, has_negatives: bool = True) -> DataLoader[Batch]:
        dataset, trainer = self.datasets[split], self.trainer
        num_replicas, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        plan = BatchPlan(
            dataset.lengths,
            self._indices[split] if has_negatives else None,
            self.batch_size,
            num_replicas,
            self.seed,
            self.bucket_batches,
        )
        is_training = split == "train"
        sampler = PairSampler(plan, rank, is_training, self._position if is_training and trainer else None)
        return self._over(dataset, sampler)

    def _over(self, dataset: Dataset[Batch], sampler: PairSampler | None = None) -> DataLoader[Batch]:
        """A loader of batches that are whole already, its workers staying from epoch to epoch."""
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, in buckets of like length, shuffled every epoch."""
        if self.trainer is not None:
            _reopen_epoch(self.trainer)
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation split, each pair once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, each pair once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, each image once, with its own report."""
        return self._loader("test", has_negatives=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: all that the order of batches depends on."""
        num_replicas = self.trainer.world_size if self.trainer else 1
        return {name: getattr(self, name) for name in _ORDER} | {"num_replicas": num_replicas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with batches that are not those of the interrupted run.

        Raises:
            ValueError: if training is resumed with another batch size, number of processes or seed.
        """
        ours = self.state_dict()
        is_resumed = self.trainer is not None and self.trainer.state.fn == "fit"
        changed = [
            f"{name} was {value} and is {ours[name]}" for name, value in state_dict.items() if ours[name] != value
        ]
        if is_resumed and changed:
            raise ValueError(
                f"a run is resumed with the batches it began with, but {', '.join(changed)}: resume with the same "
                "values, or start a new run from its weights (backbone_ckpt)"
            )


def _reopen_epoch(trainer: Trainer) -> None:
    """Let a resumed run finish the epoch in which the saved one was stopped.

    Lightning counts an epoch as done when ``max_steps``, a time limit or early stopping ends it in
    its middle, and would go on with the next one.
    """
    fit = trainer.fit_loop
    epochs, batches = fit.epoch_progress, fit.epoch_loop.batch_progress
    current: Any = epochs.current
    if not batches.current.ready or current.processed != current.ready:
        return
    is_whole = batches.is_last_batch
    for progress in (current, cast(Any, epochs.total)):
        progress.processed = progress.completed = progress.ready if is_whole else progress.ready - 1
    # The fit loop's own setter takes every run under max_steps for one that stopped within an epoch.
    _Loop.restarting.fset(fit, not is_whole)  # type: ignore[attr-defined]
