"""Tests of the rules on spans set by hand: what a cue says, and how far it reaches."""

import pytest

from medvill_pl.labeler.negation_uncertainty import CUES, Span, judge


def judged(sentence: str, mention: str, *cues: tuple[str, str], finding: str = "Edema") -> tuple[int, str]:
    words = sentence.split()

    def span(label: str, phrase: str) -> Span:
        parts = phrase.split()
        starts = [index for index in range(len(words)) if words[index : index + len(parts)] == parts]
        return Span(label, starts[0], starts[0] + len(parts))

    target = span(finding, mention)
    spans = sorted((span(label, phrase) for label, phrase in cues), key=lambda cue: cue.start)
    return tuple(judge(target, [target], spans, words))  # type: ignore[return-value]


NO, MAY, SEEN = ("denied before", "no"), ("doubted before", "may"), ("denied after", "not seen")


def test_denial_reaches_over_commas_to_the_end_of_the_clause() -> None:
    assert judged("no effusion , mass , edema", "edema", NO) == (0, "denied before: no")
    assert judged("no effusion but edema", "edema", NO) == (1, "affirmed")
    assert judged("edema ; no effusion", "edema", NO) == (1, "affirmed")


def test_denial_before_counts_more_than_doubt_before_it() -> None:
    assert judged("there may be no edema", "edema", MAY, NO)[0] == 0


def test_cues_after_the_mention() -> None:
    assert judged("edema not seen", "edema", SEEN) == (0, "denied after: not seen")
    assert judged("edema however effusion not seen", "edema", SEEN)[0] == 1
    assert judged("edema is not excluded", "edema", ("doubted after", "is not excluded"))[0] == -1


def test_size_is_normal_or_stable_by_the_first_word() -> None:
    heart = {"finding": "Cardiomegaly"}
    stable, normal = ("stable", "stable"), ("normal", "normal")
    assert judged("heart size is stable and normal", "heart size", stable, normal, **heart)[0] == -1
    assert judged("heart size is normal and stable", "heart size", stable, normal, **heart)[0] == 0
    assert judged("stable lungs , heart size", "heart size", stable, **heart)[0] == 1
    assert judged("stable enlargement of the heart", "the heart", stable, **heart)[0] == 1
    assert judged("stable edema", "edema", stable)[0] == 1


@pytest.mark.parametrize("kind", CUES)
def test_cues_are_lower_case_and_belong_to_one_kind(kind: str) -> None:
    others = {phrase for other, phrases in CUES.items() if other != kind for phrase in phrases}
    assert not others & set(CUES[kind])
    assert all(phrase == phrase.lower() for phrase in CUES[kind])
    assert len(set(CUES[kind])) == len(CUES[kind])
