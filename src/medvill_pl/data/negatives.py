"""Reports that do not match an image, for image-report matching (MedViLL, Sec. III-B.4)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from medvill_pl.batch import Split, label_set_keys
from medvill_pl.data.examples import Examples

Negatives = Literal["none", "labels", "text"]
"""How non-matching reports are drawn: not at all, by different positive labels, or by different text."""


class NonMatchingIndex:
    """Finds, for any pair, a report that does not match its image (MedViLL, Sec. III-B.4).

    Args:
        keys: pairs with equal keys match each other's reports, int64, shape ``(N,)``.

    Attributes:
        num_keys: number of different keys.

    Example:
        >>> index = NonMatchingIndex(np.array([7, 7, 9]))
        >>> index.draw(np.array([0, 1]), np.random.default_rng(0))  # only pair 2 has another key
        array([2, 2])
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
        # Pairs are sorted by key, so those of one key are a block. Numbers are drawn from all positions but as many as
        # the own block has, and those at or after the block's start are moved behind it: one draw, no rejections, and
        # it ends however rare the other keys are.
        group = self._group[indices]
        position: NDArray[np.int64] = rng.integers(len(self._order) - self._size[group])
        position += np.where(position >= self._start[group], self._size[group], 0)
        drawn: NDArray[np.int64] = self._order[position]
        return drawn


def _text_keys(reports: Sequence[str]) -> NDArray[np.int64]:
    texts = np.array([" ".join(report.lower().split()) for report in reports])
    keys: NDArray[np.int64] = np.unique(texts, return_inverse=True)[1]
    return keys


def index_negatives(examples: Examples, negatives: Negatives, split: Split) -> NonMatchingIndex | None:
    """Build the index that ``negatives`` asks for.

    Where labels are asked for and the split has none, different text is taken, with a warning.

    Args:
        examples: the pairs of the split.
        negatives: what makes a report non-matching.
        split: name of the split, for messages.

    Returns:
        The index, or None where all pairs are to match.

    Raises:
        ValueError: if all pairs have the same positive labels (or text), so that none is non-matching.

    Example:
        >>> from medvill_pl import SyntheticDataModule
        >>> examples = SyntheticDataModule(num_train=8, num_val=4, num_test=4).examples("train")
        >>> index_negatives(examples, "text", "train").num_keys
        8
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
