"""Questions about images: answered as the study says, of every type, never about what is hedged."""

import hashlib
import re
from collections import Counter
from itertools import islice
from typing import get_args

import pytest

from medvill_pl.batch import FINDINGS
from medvill_pl.synthetic.questions import Question, QuestionType, ask
from medvill_pl.synthetic.study import DEVICES, Observation, Study, View, studies
from medvill_pl.tokenizer import ReportTokenizer

FINDING_OF = {
    "mediastinal widening": "Enlarged Cardiomediastinum",
    "cardiomegaly": "Cardiomegaly",
    "nodule": "Lung Lesion",
    "nodules": "Lung Lesion",
    "hazy opacity": "Lung Opacity",
    "edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "rib fracture": "Fracture",
    "broken ribs": "Fracture",
    "device": "Support Devices",
}
# What is asked, and how a reader who sees the whole study answers.
RULES = [
    ("presence", r"is there any (?P<name>[\w ]+)\?"),
    ("presence", r"does the film show (?P<name>[\w ]+)\?"),
    ("presence", r"is (?!the)(?P<name>[\w ]+) present\?"),
    ("side", r"is the (?P<name>[\w ]+) only on the (?P<value>left|right) side\?"),
    ("side", r"which side is the (?P<name>[\w ]+) on\?"),
    ("zone", r"in which zone is the (?P<name>[\w ]+)\?"),
    ("severity", r"is the (?P<name>[\w ]+) (?P<value>severe)\?"),
    ("severity", r"how severe is the (?P<name>[\w ]+)\?"),
    ("count", r"are there several (?P<name>[\w ]+)\?"),
    ("count", r"how many (?P<name>[\w ]+) are there\?"),
    ("device", r"which device is seen\?"),
    ("view", r"is the projection (?P<value>ap|pa)\?"),
    ("view", r"what is the projection\?"),
]


def understand(question: str) -> tuple[str, str | None, str | None]:
    """Type, finding and proposed value of a question, read from its words alone."""
    matches = [(kind, match.groupdict()) for kind, rule in RULES if (match := re.fullmatch(rule, question))]
    assert len(matches) == 1, question
    kind, parts = matches[0]
    return kind, FINDING_OF[parts["name"]] if "name" in parts else None, parts.get("value")


def answer(study: Study, question: str) -> str:
    """The answer by the study."""
    kind, finding, value = understand(question)
    seen = [observation for observation in study.observations if observation.finding == finding]
    if kind == "presence":
        return "yes" if seen else "no"
    if kind == "device":
        (device,) = (observation.device for observation in study.observations if observation.device)
        return str(device)
    if kind == "view":
        truth: str = study.view.lower()
    elif kind == "count":
        several = {1: "no", 2: "yes", 3: "yes"}
        words = {1: "one", 2: "two", 3: "three"}
        return (several if question.startswith("are") else words)[seen[0].count]
    elif kind == "severity":
        strength = seen[0].strength
        truth = "severe" if strength >= 0.75 else "moderate" if strength >= 0.45 else "mild"
    else:
        truth = str(seen[0].side if kind == "side" else seen[0].zone)
    return truth if value is None else "yes" if truth == value else "no"


def study_of(*observations: Observation, name: str = "a-study", view: View = "AP") -> Study:
    return Study(name, "a-patient", "a-patient", view, observations)


Asked = list[tuple[Study, Question]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    return [(study, question) for study in islice(studies("train"), 2000) for question in ask(study)]


def test_answers_agree_with_the_study(asked: Asked) -> None:
    for study, question in asked:
        assert question.answer == answer(study, question.question), (study, question)


def test_types_agree_with_the_words(asked: Asked) -> None:
    for _, question in asked:
        assert question.question_type == understand(question.question)[0]
        opens_with = question.question.split()[0]
        assert question.answer_type == ("closed" if opens_with in ("is", "are", "does") else "open")


def test_closed_questions_are_answered_by_yes_or_no_and_open_ones_never(asked: Asked) -> None:
    for _, question in asked:
        assert (question.answer in ("yes", "no")) == (question.answer_type == "closed")


def test_a_version_of_the_questions_never_changes() -> None:
    first = [ask(study) for study in islice(studies("train"), 200)]
    assert hashlib.sha256(repr(first).encode()).hexdigest()[:16] == "9f52cdd28c8bf2a7"
    assert first[0][0] == Question("does the film show consolidation?", "yes", "closed", "presence")


def test_the_same_study_gets_the_same_questions() -> None:
    study = study_of(Observation("Edema", 0.9, "bilateral"))
    assert ask(study) == ask(study)
    others = [ask(study_of(*study.observations, name=f"study-{number}")) for number in range(10)]
    assert any(questions != others[0] for questions in others)


def test_an_image_is_not_asked_the_same_twice(asked: Asked) -> None:
    seen = Counter((study.id, question.question) for study, question in asked)
    assert max(seen.values()) == 1


def test_hedged_findings_are_never_asked_about(asked: Asked) -> None:
    hedged = 0
    for study, question in asked:
        doubtful = {observation.finding for observation in study.observations if not observation.is_certain}
        hedged += bool(doubtful)
        assert understand(question.question)[1] not in doubtful
    assert hedged > 500


@pytest.mark.parametrize("finding", FINDINGS[1:-1])
def test_an_image_with_one_faint_finding_is_asked_about_others(finding: str) -> None:
    for number in range(8):
        questions = ask(study_of(Observation(finding, 0.1, "left", "mid"), name=f"study-{number}"))
        assert {question.answer for question in questions if question.question_type == "presence"} == {"no"}
        assert {question.question_type for question in questions} == {"presence", "view"}


def test_every_type_occurs_with_every_answer(asked: Asked) -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for _, question in asked:
        answers.setdefault((question.question_type, question.answer_type), set()).add(question.answer)
    assert {kind for kind, _ in answers} == set(get_args(QuestionType))
    for kind in ("presence", "side", "severity", "view", "count"):
        assert answers.pop((kind, "closed")) == {"yes", "no"}
    assert answers == {
        ("side", "open"): {"left", "right", "bilateral"},
        ("zone", "open"): {"upper", "mid", "lower"},
        ("severity", "open"): {"mild", "moderate", "severe"},
        ("view", "open"): {"ap", "pa"},
        ("count", "open"): {"one", "two", "three"},
        ("device", "open"): set(DEVICES),
    }


def test_every_finding_is_asked_about_where_it_is_and_where_it_is_not(asked: Asked) -> None:
    seen = {(understand(q.question)[1], q.answer) for _, q in asked if q.question_type == "presence"}
    assert seen == {(finding, value) for finding in FINDINGS[1:] for value in ("yes", "no")}


@pytest.mark.parametrize("kind", ["presence", "side", "severity", "view", "count"])
def test_no_closed_question_is_answered_by_its_words(asked: Asked, kind: str) -> None:
    closed = [
        question.answer for _, question in asked if (question.question_type, question.answer_type) == (kind, "closed")
    ]
    assert 0.2 < closed.count("yes") / len(closed) < 0.6


def test_as_many_findings_that_are_there_are_asked_about_as_ones_that_are_not() -> None:
    for study in islice(studies("test"), 300):
        answers = [question.answer for question in ask(study) if question.question_type == "presence"]
        certain = {observation.finding for observation in study.observations if observation.is_certain}
        assert answers.count("yes") == min(3, len(certain))
        assert answers.count("no") == max(1, answers.count("yes"))


def test_details_of_one_finding_are_asked_for() -> None:
    questions = ask(study_of(Observation("Lung Lesion", 0.8, "left", "upper", count=2), view="PA"))
    assert Counter(question.question_type for question in questions) == {
        "presence": 2,
        "side": 1,
        "zone": 1,
        "count": 1,
        "view": 1,
    }


def test_the_device_is_asked_for_where_it_is_the_only_one() -> None:
    tube = Observation("Support Devices", 0.5, device="endotracheal tube")
    pacemaker = Observation("Support Devices", 0.9, "left", device="pacemaker")
    one = [question for question in ask(study_of(tube)) if question.question_type == "device"]
    assert one == [Question("which device is seen?", "endotracheal tube", "open", "device")]
    assert not [question for question in ask(study_of(tube, pacemaker)) if question.question_type == "device"]


def test_the_tokenizer_knows_questions_and_answers(asked: Asked) -> None:
    tokenizer = ReportTokenizer.load("synthetic")
    texts = sorted({text for _, question in asked for text in (question.question, question.answer)})
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids).replace(" ?", "?") == text
