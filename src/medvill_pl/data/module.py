"""The base of all data modules: one loader for every split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset

from medvill_pl.batch import Batch, Split
from medvill_pl.data.augmentation import augment
from medvill_pl.data.batches import PairDataset, QuestionDataset
from medvill_pl.data.contract import DataUser
from medvill_pl.data.examples import Examples, Questions
from medvill_pl.data.negatives import Negatives, NonMatchingIndex, index_negatives
from medvill_pl.data.plan import BatchPlan, FixedPairSampler, PairSampler
from medvill_pl.data.resume import is_resumed, loader_start, reopen_epoch
from medvill_pl.data.specification import SpecifiedDataModule
from medvill_pl.tokenizer import InputSpec

_ORDER = ("batch_size", "bucket_batches", "negatives", "seed")
_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class BaseDataModule(SpecifiedDataModule, ABC):
    """Batches of image-report pairs for every stage of a run.

    A subclass gives the pairs of each split. Validation uses ``val``; test and predict use ``test``.

    Tokenizer, image size and longest text belong to the model. What a data module is not told, it takes from the task
    that it runs with (see :meth:`connect`); what it is told must agree with the task.

    Args:
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: pairs per batch and process.
        negatives: how the non-matching half is drawn: ``labels`` (the paper), ``text`` or ``none`` (all pairs match).
        max_tokens: longer reports are truncated to this many tokens; None takes the task's limit.
        bucket_batches: training sorts pools of so many batches by length, which saves padding (:class:`BatchPlan`).
        num_workers: processes that prepare batches; 0 prepares them in the main one.
        seed: seed of order, pairing and masking.
        augment: change the images of training a little, see :func:`medvill_pl.data.augmentation.augment`.

    Attributes:
        name: name (and version) of the corpus.
        is_credentialed: whether the corpus' text and images may not be shared.
        has_questions: whether the text of each image is a question about it, which has an answer.
        has_texts: whether the images come with a text.
        cut_margins: whether the margins of its images were cut off.

    Example:
        >>> import numpy as np
        >>> class TwoStudies:
        ...     ids, reports, labelled = ["1", "2"], ["Mild edema.", "No edema."], ["Edema"]
        ...     labels = np.full((2, 14), np.nan, np.float32)
        ...
        ...     def image(self, index):
        ...         return torch.zeros(1, 32, 32, dtype=torch.uint8)
        >>> class MyData(BaseDataModule):
        ...     name, is_credentialed = "two studies", True
        ...
        ...     def examples(self, split):
        ...         return TwoStudies()
        >>> data = MyData("synthetic", image_size=32, batch_size=2, negatives="none", num_workers=0)
        >>> data.setup("test")
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["image"].shape, batch["report"]
        (torch.Size([2, 1, 32, 32]), ['Mild edema.', 'No edema.'])
    """

    name: str
    is_credentialed: bool
    has_questions, has_texts, cut_margins = False, True, False

    def __init__(
        self,
        tokenizer: str | None,
        image_size: int | None,
        batch_size: int,
        negatives: Negatives,
        max_tokens: int | None = None,
        bucket_batches: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(tokenizer, image_size, max_tokens)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        self.batch_size, self.negatives = batch_size, negatives
        self.num_workers, self.seed = num_workers, seed
        self.bucket_batches, self.augment = bucket_batches, augment
        self.datasets: dict[Split, PairDataset] = {}
        self._indices: dict[Split, NonMatchingIndex | None] = {}

    @property
    def rejected(self) -> Sequence[Mapping[str, str]]:
        """Images that could not be read, one mapping per image."""
        return ()

    def connect(self, spec: InputSpec) -> None:
        """See :meth:`SpecifiedDataModule.connect`."""
        before = self.connected_spec
        super().connect(spec)
        if before is not None and before != self.connected_spec:
            self.datasets, self._indices = {}, {}  # they were tokenised for another model

    @property
    def _task(self) -> DataUser | None:
        task: object = self.trainer.lightning_module if self.trainer else None
        return task if isinstance(task, DataUser) else None

    def _connect_to_task(self) -> None:
        if (task := self._task) is not None:
            if task.input_spec is not None:
                self.connect(task.input_spec)
            task.data = self

    def prepare_data(self) -> None:
        """Connect to the trainer's task, before anything is prepared or tokenised for it."""
        self._connect_to_task()

    @abstractmethod
    def examples(self, split: Split) -> Examples:
        """The pairs of one split."""

    def setup(self, stage: Literal["fit", "validate", "test", "predict"] | str) -> None:
        """Connect to the trainer's task, and tokenise the splits that a stage needs.

        Raises:
            ValueError: if the task reads something else, a split is empty, or none of its reports can be non-matching.
        """
        self._connect_to_task()
        for split in _SPLITS[stage]:
            if split not in self.datasets:
                examples = self.examples(split)
                self._indices[split] = index_negatives(examples, self.negatives, split)
                self.datasets[split] = self._dataset(examples, split)
                if self.augment and split == "train":
                    self.datasets[split].augment = augment
            self.datasets[split].transform = self.transform_of(split)

    def transform_of(self, split: Split) -> Callable[[Batch], Batch] | None:
        """What the trainer's task does to each batch of a split; None for nothing, or without a task."""
        return self._task.batch_transform(split) if self._task else None

    def training_examples(self) -> Examples | None:
        """The training split, from which baselines follow; None where there is none."""
        if "train" in self.datasets:
            return self.datasets["train"].examples
        try:
            return self.examples("train")
        except (FileNotFoundError, ValueError):
            return None

    def _dataset(self, examples: Examples, split: Split) -> PairDataset:
        if self.has_questions:
            return QuestionDataset(cast(Questions, examples), self.tokenizer, self.max_tokens, split, self.seed)
        return PairDataset(examples, examples.reports, self.tokenizer, self.max_tokens, split, self.seed)

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
        if trainer and trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._over(dataset, FixedPairSampler(plan, rank, is_training, lambda: (0, 0)))
        position = partial(loader_start, trainer) if is_training and trainer else None
        return self._over(dataset, PairSampler(plan, rank, is_training, position))

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
            reopen_epoch(self.trainer)
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
        changed = [
            f"{name} was {value} and is {ours[name]}" for name, value in state_dict.items() if ours[name] != value
        ]
        if changed and is_resumed(self.trainer):
            raise ValueError(
                f"a run is resumed with the batches it began with, but {', '.join(changed)}: resume with the same "
                "values, or start a new run from its weights (backbone_ckpt)"
            )
