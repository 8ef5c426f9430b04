"""What a data module gives for a split: its pairs, or its questions."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Examples(Protocol):
    """The image-report pairs of one split, wherever they come from.

    Example:
        >>> import torch
        >>> class OneStudy:
        ...     ids, reports, labelled = ["1"], ["The lungs are clear."], ["No Finding"]
        ...     labels = np.full((1, 14), np.nan, np.float32)
        ...
        ...     def image(self, index):
        ...         return torch.zeros(1, 32, 32, dtype=torch.uint8)
        >>> examples: Examples = OneStudy()
        >>> examples.image(0).shape
        torch.Size([1, 32, 32])
    """

    @property
    def ids(self) -> Sequence[str]:
        """One identifier per pair."""
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
    """The questions of one split, each with its image; ``reports`` are not used.

    Example:
        >>> from medvill_pl import SyntheticVQADataModule
        >>> questions: Questions = SyntheticVQADataModule(num_train=4, num_val=4, num_test=4).examples("test")
        >>> len(questions.questions) == len(questions.answers)
        True
    """

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
