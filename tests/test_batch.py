"""Tests of the vocabulary of findings, of derived seeds and of the keys of label sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.batch import FINDINGS, derive_seed, label_set_keys

NAN = float("nan")


def test_findings_are_the_chexpert_observations_in_its_order() -> None:
    # Cells of a label matrix have no names of their own: their order is part of the file format.
    assert " | ".join(FINDINGS) == (
        "No Finding | Enlarged Cardiomediastinum | Cardiomegaly | Lung Lesion | Lung Opacity | Edema | Consolidation | "
        "Pneumonia | Atelectasis | Pneumothorax | Pleural Effusion | Pleural Other | Fracture | Support Devices"
    )
    assert len(FINDINGS) == 14


@pytest.mark.parametrize(
    ("parts", "digest"),
    # `printf 0/1/2 | b2sum --length 64`
    [((0, 1, 2), 0x10BFA50BDF56A465), ((7, "pairing", "train"), 0xF0E6E51D5D5C6FB2)],
)
def test_seed_is_the_digest_of_the_parts_on_every_machine(parts: tuple[int | str, ...], digest: int) -> None:
    assert derive_seed(*parts) == digest // 2


Parts = st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4)


@settings(deadline=None, max_examples=200)
@given(Parts, Parts)
def test_seeds_are_in_range_and_differ_where_the_parts_differ(first: list[int], second: list[int]) -> None:
    assert 0 <= derive_seed(*first) < 2**63
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_where_one_part_ends_and_the_next_begins_matters() -> None:
    assert len({derive_seed(12, 3), derive_seed(1, 23), derive_seed(123), derive_seed(3, 12)}) == 4


def test_pairs_with_the_same_positive_labels_match() -> None:
    labels = np.full((6, 14), NAN, np.float32)
    labels[0, [2, 5]] = 1
    labels[1, [2, 5, 9]] = 1, 1, -1  # uncertain is not positive
    labels[2, 2] = 1
    labels[3, 13] = 1
    labels[4, 0] = 0  # nothing positive, as the last
    keys = label_set_keys(labels).tolist()
    assert keys[0] == keys[1]
    assert keys[4] == keys[5]
    assert len(set(keys)) == 4


def test_every_set_of_labels_has_a_number_of_its_own() -> None:
    every = np.array([[number >> position & 1 for position in range(14)] for number in range(2**14)], np.float32)
    assert len(set(label_set_keys(every).tolist())) == 2**14
