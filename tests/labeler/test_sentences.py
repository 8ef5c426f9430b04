"""Tests of the sentence splitter on the layouts that reports come in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.labeler.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" .\n2.\n", []),
        ("No edema. Small effusion.", ["No edema.", "Small effusion."]),
        ("A 1.5 cm nodule. Clear.", ["A 1.5 cm nodule.", "Clear."]),
        ("Edema?  Effusion!", ["Edema?", "Effusion!"]),
        ("Seen by Dr. Example today.", ["Seen by Dr. Example today."]),
        ("No edema.. Clear.", ["No edema.", "Clear."]),
        # lines: wrapped, or a sentence each
        ("No focal\nconsolidation or large\r\neffusion.", ["No focal consolidation or large effusion."]),
        ("Tip of the right\nPICC is in the\nSvc.", ["Tip of the right PICC is in the Svc."]),
        ("No acute disease\nThe lungs are clear", ["No acute disease", "The lungs are clear"]),
        ("clear lungs\n\nno edema", ["clear lungs", "no edema"]),
        # lists and headers
        ("1. Small effusion 2) edema.", ["Small effusion 2) edema."]),
        ("1. Small effusion. 2. No edema.", ["Small effusion.", "No edema."]),
        ("1) effusion\n2) no edema", ["effusion", "no edema"]),
        ("IMPRESSION: no edema.\nFINDINGS:\nclear.", ["no edema.", "clear."]),
        # words
        ("Edema and/or infection.", ["Edema or infection."]),
        ("Atelectasis / infiltrate.", ["Atelectasis or infiltrate."]),
        ("Right-sided air-space disease.", ["Right sided air space disease."]),
        ("Known<BR>effusion in ___ and [**2001-1-1**].", ["Known effusion in XXXX and XXXX ."]),
    ],
)
def test_report_is_split(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_text_without_stops_is_cut_between_words() -> None:
    parts = split_sentences("effusion " * 1000)
    assert max(map(len, parts)) <= 2000
    assert " ".join(parts) == " ".join(["effusion"] * 1000)
    assert "".join(split_sentences("x" * 5000)) == "x" * 5000


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("aB1 .\n_/-?:()[*]"), max_size=60))
def test_sentences_are_single_lines_with_words(text: str) -> None:
    for sentence in split_sentences(text):
        assert sentence == " ".join(sentence.split())
        assert any(letter.isalpha() for letter in sentence)
