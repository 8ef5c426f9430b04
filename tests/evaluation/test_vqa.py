"""Accuracy of answers, counted by hand."""

from typing import Any

import pytest

from medvill_pl.evaluation.vqa import most_frequent_answers, vqa_scores

COLUMNS = ("answer", "answer_type", "organ", "question_type", "is_known", "prediction", "blank", "shuffled")
TABLE = [
    ("yes", "closed", "chest", "presence", True, "yes", "yes", "no"),
    ("no", "closed", "chest", "presence", True, "yes", "yes", "no"),
    ("yes", "closed", "head", "size", True, "yes", "no", "yes"),
    ("left", "open", "chest", "position", True, "left", "right", "right"),
    ("hilum", "open", "head", "position", False, "left", "right", "left"),
]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in TABLE]
    return [row | {"prediction_blank": row["blank"], "prediction_shuffled": row["shuffled"]} for row in rows]


def test_accuracy_of_all_closed_and_open_questions(rows: list[dict[str, Any]]) -> None:
    scores = vqa_scores(rows, {})
    expected = {"accuracy": 3 / 5, "accuracy_closed": 2 / 3, "accuracy_open": 1 / 2}
    expected |= {"accuracy_blank": 1 / 5, "accuracy_blank_closed": 1 / 3, "accuracy_blank_open": 0}
    expected |= {"accuracy_shuffled": 2 / 5, "accuracy_shuffled_closed": 2 / 3, "accuracy_shuffled_open": 0}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_accuracy_by_organ_and_question_type(rows: list[dict[str, Any]]) -> None:
    scores = vqa_scores(rows, {})
    kinds = {name: value for name, value in scores.items() if "/" in name}
    expected = {"accuracy/organ/chest": 2 / 3, "accuracy/organ/head": 1 / 2}
    expected |= {"accuracy/type/presence": 1 / 2, "accuracy/type/size": 1, "accuracy/type/position": 1 / 2}
    expected |= {"accuracy_closed/organ/chest": 1 / 2, "accuracy_closed/organ/head": 1}
    expected |= {"accuracy_open/organ/chest": 1, "accuracy_open/organ/head": 0}
    assert kinds == pytest.approx(expected)


def test_ceiling_is_the_share_of_answers_that_occur_in_training(rows: list[dict[str, Any]]) -> None:
    scores = vqa_scores(rows, {})
    assert (scores["ceiling"], scores["ceiling_closed"], scores["ceiling_open"]) == (4 / 5, 1, 1 / 2)


def test_unseen_answer_counts_as_wrong(rows: list[dict[str, Any]]) -> None:
    unseen = [row for row in rows if not row["is_known"]]
    assert vqa_scores(unseen, {})["accuracy"] == 0


def test_most_frequent_answers_stand_beside(rows: list[dict[str, Any]]) -> None:
    assert "accuracy_most_frequent" not in vqa_scores(rows, {"most_frequent": None})
    scores = vqa_scores(rows, {"most_frequent": {"closed": "yes", "open": "right"}})
    assert scores["accuracy_most_frequent"] == pytest.approx(2 / 5)
    assert scores["accuracy_most_frequent_closed"] == pytest.approx(2 / 3)
    assert scores["accuracy_most_frequent_open"] == 0
    assert (
        vqa_scores(rows, {"most_frequent": {"closed": "no"}})["accuracy_most_frequent_open"] == 0
    )  # no open ones in training


def test_without_controls_and_kinds_there_are_no_figures_for_them() -> None:
    row = dict(zip(COLUMNS, TABLE[0], strict=True)) | {"organ": "", "question_type": ""}
    names = set(vqa_scores([row], {}))
    assert names == {"accuracy", "ceiling", "accuracy_closed", "ceiling_closed"}


def test_most_frequent_answer_of_each_type() -> None:
    answers = ["yes", "no", "yes", "left", "hilum", "no", "right"]
    kinds = ["closed", "closed", "closed", "open", "open", "closed", "open"]
    # Of equally frequent ones, the first in the alphabet.
    assert most_frequent_answers(answers, kinds) == {"closed": "no", "open": "hilum"}
    assert most_frequent_answers([], []) == {}
