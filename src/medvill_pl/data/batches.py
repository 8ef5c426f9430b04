"""Making whole batches of pairs and of questions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from medvill_pl.batch import Batch, Split, derive_seed
from medvill_pl.data.examples import Examples, Questions
from medvill_pl.data.plan import BatchRequest
from medvill_pl.tokenizer import ReportTokenizer


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

    Example:
        >>> from medvill_pl import SyntheticDataModule
        >>> examples = SyntheticDataModule(num_train=4, num_val=4, num_test=4, image_size=32).examples("val")
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> dataset = PairDataset(examples, examples.reports, tokenizer, max_tokens=120, split="val", seed=0)
        >>> batch = dataset[BatchRequest(epoch=0, images=[0, 1], reports=[0, 2])]
        >>> batch["image"].shape, batch["matched"].tolist()
        (torch.Size([2, 1, 32, 32]), [True, False])
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

    Example:
        >>> from medvill_pl import SyntheticVQADataModule
        >>> questions = SyntheticVQADataModule(num_train=4, num_val=4, num_test=4, image_size=32).examples("val")
        >>> dataset = QuestionDataset(questions, ReportTokenizer.load("synthetic"), 120, "val", seed=0)
        >>> batch = dataset[BatchRequest(epoch=0, images=[0], reports=[0])]
        >>> batch["report"] == [questions.questions[0]], batch["answer"] == [questions.answers[0]]
        (True, True)
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
