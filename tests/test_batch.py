"""Tests of the vocabulary of findings and of derived seeds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.batch import FINDINGS, derive_seed


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
