"""Visual question answering: accuracy by kind of question (MedViLL, Sec. IV-C.3)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_CONTROLS = {"blank": "prediction_blank", "shuffled": "prediction_shuffled"}


def vqa_scores(rows: Sequence[Row], context: Mapping[str, Any]) -> dict[str, float]:
    """Score answers; an answer that is not in the training vocabulary counts as wrong.

    Args:
        rows: ``answer``, ``answer_type`` (``closed`` or ``open``), ``organ``, ``question_type``, ``is_known`` (whether
            the answer occurs in training), ``prediction``, and ``prediction_blank`` and
            ``prediction_shuffled``, the predictions with a black and with another image, or None.
        context: ``most_frequent``: for each answer type, the most_frequent training answer; or None.

    Returns:
        ``accuracy`` over all questions, with ``_closed`` and ``_open`` for those alone, by
        ``/organ/{organ}`` and ``/type/{question_type}``; ``ceiling`` (also ``_closed`` and ``_open``), the share of
        answers that occur in training; ``accuracy_blank``, ``accuracy_shuffled`` and ``accuracy_commonest``,
        the same without the image's help.
    """
    groups: dict[str, list[Row]] = {"": list(rows)}
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
            right = sum(row["answer"] == context["most_frequent"].get(row["answer_type"]) for row in members)
            scores[f"accuracy_commonest{group}"] = right / len(members)
    return scores | _by_kind(rows)


def _by_kind(rows: Sequence[Row]) -> dict[str, float]:
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        for name, value in (("organ", row["organ"]), ("type", row["question_type"])):
            if value:
                kinds.setdefault(f"accuracy/{name}/{value}", []).append(row)
            if name == "organ" and value:
                kinds.setdefault(f"accuracy_{row['answer_type']}/{name}/{value}", []).append(row)
    return {kind: _accuracy(members, "prediction") for kind, members in kinds.items()}


def _accuracy(rows: Sequence[Row], column: str) -> float:
    return sum(bool(row[column] == row["answer"]) for row in rows) / len(rows)


def most_frequent_answers(answers: Sequence[str], answer_types: Sequence[str]) -> dict[str, str]:
    """The most_frequent answer of each answer type; of equally common ones, the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for answer, answer_type in zip(answers, answer_types, strict=True):
        counts.setdefault(answer_type, Counter())[answer] += 1
    return {kind: min(of_kind, key=lambda a: (-of_kind[a], a)) for kind, of_kind in counts.items()}
