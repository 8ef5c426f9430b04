"""Tests that the phrases are written as the matcher reads them."""

from medvill_pl import FINDINGS
from medvill_pl.labeler.phrases import MENTIONS, NOT_MENTIONS, OTHER_FINDINGS
from medvill_pl.labeler.sentences import split_sentences


def test_every_finding_but_no_finding_has_phrases() -> None:
    assert tuple(MENTIONS) == FINDINGS[1:]
    assert set(NOT_MENTIONS) <= set(MENTIONS)


def test_phrases_are_as_the_splitter_leaves_them_and_given_once() -> None:
    for phrases in (*MENTIONS.values(), *NOT_MENTIONS.values(), OTHER_FINDINGS):
        assert len(set(phrases)) == len(phrases)
        for phrase in phrases:
            assert split_sentences(phrase) == [phrase.lower()]
