"""The data module of the embedded corpus."""

from concurrent.futures import Executor
from functools import lru_cache, partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.batches import Negatives
from medvill_pl.data.module import BaseDataModule
from medvill_pl.synthetic.film import render
from medvill_pl.synthetic.grammar import write_report
from medvill_pl.synthetic.questions import ask
from medvill_pl.synthetic.study import VERSION, Study, studies
from medvill_pl.tokenizer import MAX_TOKENS


class SyntheticExamples:
    """The first pairs of a split of the embedded corpus; a film is rendered when it is first asked for.

    Args:
        split: ``train``, ``val`` or ``test``.
        num_pairs: how many pairs.
        image_size: side of the films in pixels. All films are kept, one byte a pixel.
        seed: another seed gives another corpus of the same kind.
        share_memory: keep the films where worker processes can add to them.

    Attributes:
        studies: what each film shows.
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
        with torch.inference_mode(False):  # films first asked for by a test may serve training later
            self._films = torch.zeros(num_pairs, 1, image_size, image_size, dtype=torch.uint8)
            self._is_rendered = torch.zeros(num_pairs, dtype=torch.bool)
        if share_memory:
            for tensor in (self._films, self._is_rendered):
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    def image(self, index: int) -> Tensor:
        """The film of one pair, uint8, shape ``(1, image_size, image_size)``."""
        if not self._is_rendered[index]:
            self._keep(index, render(self.studies[index], self._films.shape[-1]))
        return self._films[index]

    def _keep(self, index: int, film: NDArray[np.uint8]) -> None:
        self._films[index, 0] = torch.from_numpy(film)
        self._is_rendered[index] = True

    def render_films(self, pool: Executor) -> None:
        """Render all films that nobody asked for yet, side by side in a pool of processes."""
        missing = (~self._is_rendered).nonzero()[:, 0].tolist()
        draw = partial(render, size=self._films.shape[-1])
        films = pool.map(draw, [self.studies[index] for index in missing], chunksize=64)
        for index, film in zip(missing, films, strict=True):
            self._keep(index, film)

    def films(self) -> Tensor:
        """All films, uint8, shape ``(N, 1, image_size, image_size)``."""
        return torch.stack([self.image(index) for index in range(len(self.ids))])


class SyntheticQuestions:
    """The questions about the first films of a split of the embedded corpus, film after film.

    Args:
        films: the films asked about, with their studies.

    Attributes:
        film_of: the film of each question, as a place in ``films``.
    """

    labelled = FINDINGS

    def __init__(self, films: SyntheticExamples) -> None:
        self.films = films
        asked = [(index, number, one) for index, s in enumerate(films.studies) for number, one in enumerate(ask(s))]
        self.film_of = [index for index, _, _ in asked]
        self.ids = [f"{films.ids[index]}-q{number}" for index, number, _ in asked]
        self.reports = [films.reports[index] for index in self.film_of]
        self.labels: NDArray[np.float32] = films.labels[self.film_of]
        self.questions = [one.question for _, _, one in asked]
        self.answers = [one.answer for _, _, one in asked]
        self.answer_types: list[str] = [one.answer_type for _, _, one in asked]
        self.question_types: list[str] = [one.question_type for _, _, one in asked]
        self.organs = ["chest"] * len(asked)

    def image(self, index: int) -> Tensor:
        """The film of one question, uint8, shape ``(1, image_size, image_size)``."""
        return self.films.image(self.film_of[index])


class SyntheticDataModule(BaseDataModule):
    """The embedded corpus: phantom films and reports, the same on every machine.

    It needs no files and no network. Splits share no patient.

    Args:
        num_train: pairs of the training split.
        num_val: pairs of the validation split.
        num_test: pairs of the test split.
        tokenizer: what :meth:`ReportTokenizer.load` takes; ``synthetic`` knows just the corpus' words.
        image_size: side of the films in pixels, 32 or more.
        batch_size: pairs of a batch, for each process.
        negatives: how the non-matching half of the pairs is drawn.
        max_tokens: longer reports are cut to so many word pieces.
        bucket_batches: batches that are pooled and sorted by length in training.
        num_workers: processes that prepare batches.
        seed: seed of order, pairing and masking.
        corpus_seed: another value gives another corpus of the same kind.
        augment: change the films of training a little.

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
        tokenizer: str = "synthetic",
        image_size: int = 128,
        batch_size: int = 32,
        negatives: Negatives = "none",
        max_tokens: int = MAX_TOKENS,
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
        if image_size < 32:
            raise ValueError(f"image_size must be 32 or more, not {image_size}")
        self.corpus_seed = corpus_seed

    def examples(self, split: Split) -> SyntheticExamples:
        """The pairs of one split."""
        return _examples(split, self.num_pairs[split], self.image_size, self.corpus_seed, self.num_workers > 0)


@lru_cache(maxsize=8)
def _examples(split: Split, num_pairs: int, image_size: int, seed: int, share_memory: bool) -> SyntheticExamples:
    """The films of a split, drawn once for all data modules of a process."""
    return SyntheticExamples(split, num_pairs, image_size, seed, share_memory)


class SyntheticVQADataModule(BaseDataModule):
    """Questions about the films of the embedded corpus, with their answers (see :class:`SyntheticDataModule`).

    Args:
        num_train: films of the training split, each with several questions.
        num_val: films of the validation split.
        num_test: films of the test split.
        tokenizer: what :meth:`ReportTokenizer.load` takes.
        image_size: side of the films in pixels, 32 or more.
        batch_size: questions of a batch, for each process.
        max_tokens: longer questions are cut to so many word pieces.
        num_workers: processes that prepare batches.
        seed: seed of the order.
        corpus_seed: another value gives another corpus of the same kind.
    """

    name = f"synthetic questions v{VERSION}"
    is_credentialed = False
    has_questions = True

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 400,
        num_test: int = 400,
        tokenizer: str = "synthetic",
        image_size: int = 128,
        batch_size: int = 64,
        max_tokens: int = MAX_TOKENS,
        num_workers: int = 0,
        seed: int = 0,
        corpus_seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, image_size, batch_size, "none", max_tokens, 1, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self._films = SyntheticDataModule(
            num_train, num_val, num_test, tokenizer, image_size, num_workers=num_workers, corpus_seed=corpus_seed
        )

    def examples(self, split: Split) -> SyntheticQuestions:
        """The questions of one split."""
        return SyntheticQuestions(self._films.examples(split))
