"""What follows from the findings of an image alone: a rival for every task that sees no more than 14 probabilities.

Any classifier gives the probabilities, such as :class:`ImageClassifier`. The functions take the findings of an image as
independent of each other, which they are not; a rival that knew better would be stronger.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvill_pl.batch import derive_seed
from medvill_pl.evaluation.results import Results
from medvill_pl.evaluation.retrieval import DIRECTIONS, draw_candidate_sets
from medvill_pl.tasks.gallery import CandidateSets, Entry, rank_queries

_LEAST = 1e-6
"""No finding is surer than this, or one wrong certainty would outweigh all others."""


def log_likelihood(probability: NDArray[np.float32], is_positive: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How likely each set of findings is on each image.

    Args:
        probability: of each finding on each image, 0 to 1, shape ``(N, F)``.
        is_positive: sets of findings, shape ``(M, F)``.

    Returns:
        Natural logarithms, shape ``(N, M)``.

    Example:
        >>> sets = np.array([[True, False], [False, False]])
        >>> np.exp(log_likelihood(np.array([[0.5, 0.25]], np.float32), sets)).round(3)
        array([[0.375, 0.375]], dtype=float32)
    """
    certain = np.clip(probability, _LEAST, 1 - _LEAST)
    present, absent = np.log(certain), np.log(1 - certain)
    result: NDArray[np.float32] = present @ is_positive.T + absent @ (~is_positive).T
    return result


def search_by_findings(
    ids: Sequence[str],
    labels: NDArray[np.float32],
    probability: NDArray[np.float32],
    num_candidates: int = 100,
    candidate_seed: int = 0,
) -> Results:
    """Search as :class:`RetrievalTask` does in its test, by how likely the labels of a report are on an image.

    Args:
        ids: of each test pair.
        labels: of each pair's report: 1, 0, -1 or NaN, float32, shape ``(N, 14)``.
        probability: of each finding on each pair's image, shape ``(N, 14)``.
        num_candidates: candidates of each query, its own counterpart among them.
        candidate_seed: the candidate sets follow from it alone; with equal values they are those of the task.

    Returns:
        A row for each query and direction, as the task gives them.

    Raises:
        ValueError: if there are fewer pairs than candidates.

    Example:
        >>> labels = np.eye(3, 14, dtype=np.float32)
        >>> search_by_findings(["a", "b", "c"], labels, labels, num_candidates=3).scores()["image_to_report/mrr"]
        1.0
    """
    order = np.argsort(np.array(ids))
    entries = [Entry(str(ids[index]), torch.empty(0), [], labels[index].tolist()) for index in order]
    candidate_sets = [
        CandidateSets(
            direction,
            "candidates",
            draw_candidate_sets(len(ids), num_candidates, derive_seed(candidate_seed, direction)),
        )
        for direction in DIRECTIONS
    ]
    scores = log_likelihood(probability[order], labels[order] == 1)
    rows = list(rank_queries(entries, candidate_sets, scores, None, range(len(ids))))
    return Results(rows, {}, "medvill_pl.evaluation.retrieval.retrieval_scores")


def write_by_findings(
    reports: Sequence[str], labels: NDArray[np.float32], probability: NDArray[np.float32]
) -> list[str]:
    """Write for each image the most frequent training report of the top set of findings.

    The top set is the most probable one given the image: its likelihood by :func:`log_likelihood`, times its share of
    the training reports.

    Args:
        reports: of the training split, N texts.
        labels: of each: 1, 0, -1 or NaN, float32, shape ``(N, 14)``.
        probability: of each finding on each test image, shape ``(M, 14)``.

    Returns:
        M texts.

    Example:
        >>> labels = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
        >>> write_by_findings(["A.", "B.", "B."], labels, np.array([[0.9, 0.1], [0.4, 0.6]], np.float32))
        ['A.', 'B.']
    """
    by_set: dict[bytes, Counter[str]] = {}
    for report, label in zip(reports, labels == 1, strict=True):
        by_set.setdefault(label.tobytes(), Counter())[report] += 1
    sets = np.array([np.frombuffer(key, dtype=bool) for key in by_set])
    prior = np.log([counts.total() for counts in by_set.values()])
    most_frequent = [counts.most_common(1)[0][0] for counts in by_set.values()]
    top = (log_likelihood(probability, sets) + prior).argmax(axis=1)
    return [most_frequent[index] for index in top]


class FindingsAnswers:
    """Answers questions by a logistic regression for each wording over the findings of the image.

    A question whose wording training did not have gets the most frequent answer of training.

    Args:
        questions: of the training split, N texts.
        answers: text of each.
        probability: of each finding on each question's image, shape ``(N, 14)``.
        num_steps: steps of Adam over all questions of a wording.
        lr: learning rate.

    Example:
        >>> probability = np.array([[0.9], [0.8], [0.1], [0.2]], np.float32)
        >>> model = FindingsAnswers(["edema?"] * 4, ["yes", "yes", "no", "no"], probability)
        >>> model.answer(["edema?", "edema?"], np.array([[0.95], [0.05]], np.float32))
        ['yes', 'no']
    """

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        probability: NDArray[np.float32],
        num_steps: int = 100,
        lr: float = 0.1,
    ) -> None:
        self._most_frequent = Counter(answers).most_common(1)[0][0]
        self._models: dict[str, tuple[list[str], Tensor]] = {}
        for wording, rows in _by_wording(questions).items():
            own = [answers[row] for row in rows]
            choices = sorted(set(own))
            target = torch.tensor([choices.index(answer) for answer in own])
            weight = _fit(_with_bias(probability[rows]), target, len(choices), num_steps, lr)
            self._models[wording] = choices, weight

    def answer(self, questions: Sequence[str], probability: NDArray[np.float32]) -> list[str]:
        """Answer questions about images.

        Args:
            questions: M texts.
            probability: of each finding on each question's image, shape ``(M, 14)``.
        """
        answers = [self._most_frequent] * len(questions)
        for wording, rows in _by_wording(questions).items():
            if wording not in self._models:
                continue
            choices, weight = self._models[wording]
            best = (_with_bias(probability[rows]) @ weight).argmax(1).tolist()
            for row, index in zip(rows, best, strict=True):
                answers[row] = choices[index]
        return answers


def _by_wording(questions: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(question, []).append(row)
    return rows


def _with_bias(probability: NDArray[np.float32]) -> Tensor:
    return nn.functional.pad(torch.from_numpy(probability).float(), (0, 1), value=1.0)


def _fit(inputs: Tensor, target: Tensor, num_classes: int, num_steps: int, lr: float) -> Tensor:
    """Weights of a multinomial logistic regression, from zero, shape ``(features, classes)``."""
    weight = torch.zeros(inputs.shape[1], num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=lr)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(inputs @ weight, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weight.detach()


def answer_results(tested: Results, answers: Mapping[str, str]) -> Results:
    """The results of a :class:`VQATask` with other answers in place of its own, for comparison.

    Args:
        tested: of the task's test.
        answers: the answer to each question, by the identifier of the row.

    Example:
        >>> row = {"id": "q", "answer": "yes", "answer_type": "closed", "is_known": True, "prediction": "no"}
        >>> row |= {"organ": "chest", "question_type": "presence"}
        >>> tested = Results([row], {}, "medvill_pl.evaluation.vqa.vqa_scores")
        >>> answer_results(tested, {"q": "yes"}).scores()["accuracy_closed"]
        1.0
    """
    rows: list[dict[str, Any]] = [{**row, "prediction": answers[row["id"]]} for row in tested.rows]
    controls = ("prediction_blank", "prediction_shuffled")  # of the task, not of these answers
    rows = [{name: value for name, value in row.items() if name not in controls} for row in rows]
    return Results(rows, tested.context, tested.score_fn)
