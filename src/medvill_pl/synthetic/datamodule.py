"""The data module of the embedded corpus."""

from concurrent.futures import Executor
from functools import lru_cache, partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.module import BaseDataModule
from medvill_pl.data.negatives import Negatives
from medvill_pl.synthetic.grammar import write_report
from medvill_pl.synthetic.questions import ask
from medvill_pl.synthetic.rendering import render
from medvill_pl.synthetic.study import VERSION, Study, studies
from medvill_pl.tokenizer import MAX_TOKENS, InputSpec, ReportTokenizer


class SyntheticExamples:
    """The first pairs of a split of the embedded corpus; an image is rendered when it is first asked for.

    Args:
        split: ``train``, ``val`` or ``test``.
        num_pairs: how many pairs.
        image_size: side of the images in pixels, 32 or more. All images are kept, one byte per pixel.
        seed: another seed gives another corpus of the same kind.
        share_memory: keep the images where worker processes can add to them.

    Attributes:
        studies: what each image shows.
        ids: identifier of each study.
        reports: text of each report.
        labels: the 14 findings of each report: 1, 0, -1 (uncertain), NaN (not mentioned), float32, shape ``(N, 14)``.
        log_probability: natural logarithm of each report's probability given its findings, float64, shape ``(N,)``.

    Example:
        >>> examples = SyntheticExamples("test", num_pairs=3, image_size=32)
        >>> examples.image(0).shape, examples.labels.shape, examples.ids[0]
        (torch.Size([1, 32, 32]), (3, 14), 'test-0-p000000-s0')
    """

    labelled = FINDINGS

    def __init__(
        self, split: Split, num_pairs: int, image_size: int, seed: int = 0, share_memory: bool = False
    ) -> None:
        self.studies: list[Study] = list(islice(studies(split, seed), num_pairs))
        written = [write_report(study) for study in self.studies]
        self.ids = [study.id for study in self.studies]
        self.reports = [report.text for report in written]
        self.labels: NDArray[np.float32] = np.stack([report.labels for report in written])
        self.log_probability: NDArray[np.float64] = np.array([report.log_probability for report in written])
        with torch.inference_mode(False):  # images first asked for by a test may serve training later
            self._images = torch.zeros(num_pairs, 1, image_size, image_size, dtype=torch.uint8)
            self._is_rendered = torch.zeros(num_pairs, dtype=torch.bool)
        if share_memory:
            for tensor in (self._images, self._is_rendered):
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    def image(self, index: int) -> Tensor:
        """The image of one pair, uint8, shape ``(1, image_size, image_size)``."""
        if not self._is_rendered[index]:
            self._keep(index, render(self.studies[index], self._images.shape[-1]))
        return self._images[index]

    def _keep(self, index: int, pixels: NDArray[np.uint8]) -> None:
        self._images[index, 0] = torch.from_numpy(pixels)
        self._is_rendered[index] = True

    def render_all(self, pool: Executor) -> None:
        """Render all images that nobody asked for yet, side by side in a pool of processes."""
        missing = (~self._is_rendered).nonzero()[:, 0].tolist()
        render_one = partial(render, size=self._images.shape[-1])
        images = pool.map(render_one, [self.studies[index] for index in missing], chunksize=64)
        for index, pixels in zip(missing, images, strict=True):
            self._keep(index, pixels)

    def images(self) -> Tensor:
        """All images, uint8, shape ``(N, 1, image_size, image_size)``."""
        return torch.stack([self.image(index) for index in range(len(self.ids))])


class SyntheticQuestions:
    """The questions about the first images of a split of the embedded corpus, image after image.

    Args:
        examples: the images asked about, with their studies.

    Attributes:
        examples: the images asked about.
        image_indices: the image of each question, as a position in ``examples``.
        questions: text of each question.
        answers: text of each answer.
        answer_types: ``closed`` or ``open``.
        question_types: what each question asks about, see :class:`medvill_pl.synthetic.questions.Question`.

    Example:
        >>> questions = SyntheticQuestions(SyntheticExamples("test", num_pairs=3, image_size=32))
        >>> questions.questions[0], questions.answers[0], questions.image_indices[0]
        ('does the film show consolidation?', 'yes', 0)
    """

    labelled = FINDINGS

    def __init__(self, examples: SyntheticExamples) -> None:
        self.examples = examples
        per_image = [ask(study) for study in examples.studies]
        questions = [question for own in per_image for question in own]
        self.image_indices = [index for index, own in enumerate(per_image) for _ in own]
        self.ids = [f"{i}-q{n}" for i, own in zip(examples.ids, per_image, strict=True) for n in range(len(own))]
        self.reports = [examples.reports[index] for index in self.image_indices]
        self.labels: NDArray[np.float32] = examples.labels[self.image_indices]
        self.questions = [question.question for question in questions]
        self.answers = [question.answer for question in questions]
        self.answer_types: list[str] = [question.answer_type for question in questions]
        self.question_types: list[str] = [question.question_type for question in questions]
        self.organs = ["chest"] * len(questions)

    def image(self, index: int) -> Tensor:
        """The image of one question, uint8, shape ``(1, image_size, image_size)``."""
        return self.examples.image(self.image_indices[index])


class SyntheticDataModule(BaseDataModule):
    """The embedded corpus: phantom radiographs and reports, the same on every machine.

    It needs no files and no network. Splits share no patient.

    Args:
        num_train: pairs of the training split.
        num_val: pairs of the validation split.
        num_test: pairs of the test split.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's, without a task ``synthetic``,
            which knows just the corpus' words.
        image_size: side of the images in pixels, 32 or more; None takes the task's, without a task 128.
        batch_size: pairs per batch and process.
        negatives: how the non-matching half of the pairs is drawn.
        max_tokens: longer reports are truncated to this many tokens; None takes the task's limit.
        bucket_batches: batches that are pooled and sorted by length in training.
        num_workers: processes that prepare batches.
        seed: seed of order, pairing and masking.
        corpus_seed: another value gives another corpus of the same kind.
        augment: change the training images a little.

    Raises:
        ValueError: if a split has no pairs, or images are smaller than 32 pixels.

    Example:
        >>> data = SyntheticDataModule(num_train=8, num_val=4, batch_size=4, image_size=64, num_workers=0)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["labels"].shape
        (torch.Size([4, 1, 64, 64]), torch.Size([4, 14]))
    """

    name = f"synthetic v{VERSION}"
    is_credentialed = False

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 400,
        num_test: int = 400,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        negatives: Negatives = "none",
        max_tokens: int | None = None,
        bucket_batches: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        corpus_seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(
            tokenizer, image_size, batch_size, negatives, max_tokens, bucket_batches, num_workers, seed, augment
        )
        self.save_hyperparameters(logger=False)
        self.num_pairs: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        for split, number in self.num_pairs.items():
            if number < 1:
                raise ValueError(f"num_{split} must be positive, not {number}")
        if image_size is not None:
            _check_size(image_size)
        self.corpus_seed = corpus_seed

    def default_spec(self) -> InputSpec:
        """The corpus' own vocabulary, at 128 pixels."""
        return _default_spec()

    def examples(self, split: Split) -> SyntheticExamples:
        """The pairs of one split."""
        _check_size(self.image_size)
        return _examples(split, self.num_pairs[split], self.image_size, self.corpus_seed, self.num_workers > 0)


def _check_size(image_size: int) -> None:
    if image_size < 32:
        raise ValueError(f"image_size must be 32 or more, not {image_size}")


@lru_cache(maxsize=1)
def _default_spec() -> InputSpec:
    return InputSpec(ReportTokenizer.load("synthetic"), 128, MAX_TOKENS)


@lru_cache(maxsize=8)
def _examples(split: Split, num_pairs: int, image_size: int, seed: int, share_memory: bool) -> SyntheticExamples:
    """The images of a split, rendered once for all data modules of a process."""
    return SyntheticExamples(split, num_pairs, image_size, seed, share_memory)


class SyntheticVQADataModule(BaseDataModule):
    """Questions about the images of the embedded corpus, with their answers (see :class:`SyntheticDataModule`).

    Args:
        num_train: images of the training split, each with several questions.
        num_val: images of the validation split.
        num_test: images of the test split.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's, without a task ``synthetic``.
        image_size: side of the images in pixels, 32 or more; None takes the task's, without a task 128.
        batch_size: questions per batch and process.
        max_tokens: longer questions are truncated to this many tokens; None takes the task's limit.
        num_workers: processes that prepare batches.
        seed: seed of the order.
        corpus_seed: another value gives another corpus of the same kind.

    Raises:
        ValueError: as :class:`SyntheticDataModule`.

    Example:
        >>> data = SyntheticVQADataModule(num_test=2, batch_size=4, image_size=32)
        >>> data.setup("test")
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["report"][0], batch["answer"][0]
        ('is atelectasis present?', 'yes')
    """

    name = f"synthetic questions v{VERSION}"
    is_credentialed = False
    has_questions = True

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 400,
        num_test: int = 400,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 64,
        max_tokens: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        corpus_seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, image_size, batch_size, "none", max_tokens, 1, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self._images = SyntheticDataModule(
            num_train, num_val, num_test, tokenizer, image_size, num_workers=num_workers, corpus_seed=corpus_seed
        )

    def default_spec(self) -> InputSpec:
        """The corpus' own vocabulary, at 128 pixels."""
        return _default_spec()

    def connect(self, spec: InputSpec) -> None:
        """Take from a model what was not told (see :meth:`BaseDataModule.connect`)."""
        super().connect(spec)
        self._images.connect(self.input_spec)

    def examples(self, split: Split) -> SyntheticQuestions:
        """The questions of one split."""
        return SyntheticQuestions(self._images.examples(split))
