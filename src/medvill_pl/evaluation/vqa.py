"""Visual question answering: accuracy by kind of question (MedViLL, Sec. IV-C.3)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medvill_pl.evaluation.statistics import Rows

_CONTROLS = {"blank": "prediction_blank", "shuffled": "prediction_shuffled"}


def vqa_scores(rows: Rows, context: Mapping[str, Any]) -> dict[str, float]:
    """Score answers; an answer that is not in the training vocabulary counts as wrong.

    Args:
        rows: ``answer``, ``answer_type`` (``closed`` or ``open``), ``organ``, ``question_type``, ``is_known`` (whether
            the answer occurs in training), ``prediction``, and ``prediction_blank`` and
            ``prediction_shuffled``, the predictions with a black and with another image, or None.
        context: ``most_frequent``: for each answer type, its most frequent training answer; or None.

    Returns:
        ``accuracy`` over all questions, with ``_closed`` and ``_open`` for those alone, by
        ``/organ/{organ}`` and ``/type/{question_type}``; ``ceiling`` (also ``_closed`` and ``_open``), the share of
        answers that occur in training; ``accuracy_blank``, ``accuracy_shuffled`` and ``accuracy_most_frequent``,
        the same without the image's help.

    Example:
        >>> row = {"answer": "left", "answer_type": "open", "organ": "", "question_type": "side", "is_known": True}
        >>> vqa_scores([row | {"prediction": "left"}], {"most_frequent": {"open": "right"}})["accuracy_open"]
        1.0
    """
    groups: dict[str, list[Mapping[str, Any]]] = {"": list(rows)}
    for row in rows:
        groups.setdefault(f"_{row['answer_type']}", []).append(row)
    scores: dict[str, float] = {}
    for group, members in groups.items():
        scores[f"accuracy{group}"] = _accuracy(members, "prediction")
        scores[f"ceiling{group}"] = sum(row["is_known"] for row in members) / len(members)
        for name, column in _CONTROLS.items():
            if members[0].get(column) is not None:
                scores[f"accuracy_{name}{group}"] = _accuracy(members, column)
        if context.get("most_frequent"):
            num_right = sum(row["answer"] == context["most_frequent"].get(row["answer_type"]) for row in members)
            scores[f"accuracy_most_frequent{group}"] = num_right / len(members)
    return scores | _by_kind(rows)


def _by_kind(rows: Rows) -> dict[str, float]:
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for name, value in (("organ", row["organ"]), ("type", row["question_type"])):
            if value:
                kinds.setdefault(f"accuracy/{name}/{value}", []).append(row)
            if name == "organ" and value:
                kinds.setdefault(f"accuracy_{row['answer_type']}/{name}/{value}", []).append(row)
    return {kind: _accuracy(members, "prediction") for kind, members in kinds.items()}


def _accuracy(rows: Rows, column: str) -> float:
    return sum(bool(row[column] == row["answer"]) for row in rows) / len(rows)


def most_frequent_answers(answers: Sequence[str], answer_types: Sequence[str]) -> dict[str, str]:
    """The most frequent answer of each answer type; of equally frequent ones, the first in the alphabet.

    Args:
        answers: the training answers.
        answer_types: the type of each.

    Example:
        >>> most_frequent_answers(["yes", "no", "yes", "left"], ["closed", "closed", "closed", "open"])
        {'closed': 'yes', 'open': 'left'}
    """
    counts: dict[str, Counter[str]] = {}
    for answer, answer_type in zip(answers, answer_types, strict=True):
        counts.setdefault(answer_type, Counter())[answer] += 1
    return {kind: min(number, key=lambda a: (-number[a], a)) for kind, number in counts.items()}
