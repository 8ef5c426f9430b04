"""What every labeler is, and how one is loaded by name."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS


@runtime_checkable
class Labeler(Protocol):
    """Reads findings off report texts. Any class of this form can be plugged in, a neural one too.

    Attributes:
        name: what tables and messages call it, such as ``"rule-based CheXpert labeler"``.

    Example:
        >>> class Pessimist:
        ...     name = "a labeler that finds everything"
        ...
        ...     def __call__(self, texts):
        ...         return np.ones((len(texts), len(FINDINGS)), np.float32)
        >>> isinstance(Pessimist(), Labeler)
        True
    """

    name: str

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Label reports.

        Args:
            texts: the reports.

        Returns:
            1 positive, 0 negative, -1 uncertain, NaN not mentioned, shape ``(N, 14)``, columns as
            ``medvill_pl.FINDINGS``.
        """


def load_labeler(class_path: str) -> Labeler:
    """Make a labeler of a class named by its import path.

    Args:
        class_path: such as ``"my_package.my_module.MyLabeler"``; made without arguments.

    Raises:
        ValueError: if there is no such class, or it is no labeler.

    Example:
        >>> load_labeler("medvill_pl.CheXpertLabeler").name
        'rule-based CheXpert labeler'
    """
    module, _, name = class_path.rpartition(".")
    try:
        labeler = getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"no labeler can be made of {class_path!r}: {error}") from error
    if not isinstance(labeler, Labeler):
        raise ValueError(f"{class_path} is no labeler: it needs a name and a call from texts to labels")
    return labeler


def check_labels(labels: NDArray[np.float32], num_texts: int) -> NDArray[np.float32]:
    """Return what a labeler gave if it keeps the contract.

    Raises:
        ValueError: if the shape is not ``(num_texts, 14)`` or a value is not 1, 0, -1 or NaN.

    Example:
        >>> check_labels(np.zeros((2, 14), np.float32), num_texts=2).shape
        (2, 14)
    """
    if labels.shape != (num_texts, len(FINDINGS)):
        raise ValueError(f"the labeler gave shape {labels.shape} for {num_texts} texts, not (texts, {len(FINDINGS)})")
    if not (np.isnan(labels) | np.isin(labels, (-1, 0, 1))).all():
        raise ValueError("the labeler gave values other than 1, 0, -1 and NaN")
    return labels
