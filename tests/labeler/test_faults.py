"""Tests of the original's faults: imitated by default, left out on request."""

import numpy as np
import pytest

from medvill_pl import FINDINGS, CheXpertLabeler
from medvill_pl.labeler.faults import FAULTS, MISREAD, find_fault

FAITHFUL, CORRECT = CheXpertLabeler(), CheXpertLabeler(imitate_faults=False)


@pytest.mark.parametrize(
    ("text", "finding", "original", "meant"),
    [
        ("Lungs are clear. Heart size normal.", "Cardiomegaly", 1, 0),
        ("Heart size normal. Lungs are clear.", "Cardiomegaly", 0, 0),
        ("The heart size and hila appear within normal limits. Clear.", "Cardiomegaly", 1, 0),
        ("There is no pneumothorax or large pleural effusion.", "Pleural Effusion", 1, 0),
        ("There is no pneumothorax or large pleural effusion. Clear.", "Pleural Effusion", 0, 0),
        ("No evidence of tuberculosis.", "Support Devices", 0, np.nan),
        ("Platelike atelectasis.", "Support Devices", 1, np.nan),
    ],
)
def test_fault_is_imitated_or_not(text: str, finding: str, original: float, meant: float) -> None:
    position = FINDINGS.index(finding)
    np.testing.assert_equal(float(FAITHFUL([text])[0, position]), original)
    np.testing.assert_equal(float(CORRECT([text])[0, position]), meant)


def test_fault_is_named_in_the_evidence() -> None:
    assert FAITHFUL.explain("Heart size normal.")[0].rule == "fault of the original"


def test_place_in_the_report_decides() -> None:
    assert find_fault("Cardiomegaly", "heart size normal .", is_last=True) is not None
    assert find_fault("Cardiomegaly", "heart size normal .", is_last=False) is None


def test_faults_are_of_known_findings_and_states() -> None:
    assert {fault.finding for fault in FAULTS} <= {*FINDINGS[1:], "Other"}
    assert {fault.state for fault in FAULTS} <= {1, 0, -1}
    assert all(fault.words == fault.words.lower() for fault in FAULTS)
    assert set(MISREAD) <= set(FINDINGS)
