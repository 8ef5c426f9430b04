"""Tests of plugging in a labeler by its import path."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl import CheXpertLabeler, Labeler
from medvill_pl.labeler.base import check_labels, load_labeler


class Nameless:
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.zeros((len(texts), 14), np.float32)


def test_labeler_is_loaded_by_its_path() -> None:
    labeler = load_labeler("medvill_pl.CheXpertLabeler")
    assert isinstance(labeler, CheXpertLabeler)
    assert isinstance(labeler, Labeler)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module.Labeler", "No module named 'no_such_module'"),
        ("medvill_pl.labeler.base.Nothing", "has no attribute 'Nothing'"),
        ("Nothing", "no labeler can be made of 'Nothing'"),
        ("collections.OrderedDict", "is no labeler"),
        ("pathlib.Path", "is no labeler"),
    ],
)
def test_what_is_no_labeler_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_labeler(path)


def test_labeler_needs_a_name() -> None:
    assert not isinstance(Nameless(), Labeler)


def test_labels_outside_the_contract_are_refused() -> None:
    good = np.full((2, 14), np.nan, np.float32)
    np.testing.assert_array_equal(check_labels(good, 2), good)
    with pytest.raises(ValueError, match=r"shape \(2, 14\) for 3 texts"):
        check_labels(good, 3)
    with pytest.raises(ValueError, match="other than 1, 0, -1 and NaN"):
        check_labels(np.full((2, 14), 0.5, np.float32), 2)
