"""What follows from the findings of an image alone, against cases worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from medvill_pl import Results, RetrievalTask, SyntheticDataModule
from medvill_pl.baselines.findings_rival import (
    FindingsAnswers,
    answer_results,
    log_likelihood,
    search_by_findings,
    write_by_findings,
)
from medvill_pl.models.medvill import BackboneConfig

MakeTrainer = Callable[..., Trainer]


def test_likelihood_takes_findings_as_independent() -> None:
    probability = np.array([[0.9, 0.2], [0.5, 0.5]], dtype=np.float32)
    sets = np.array([[True, False], [False, True], [False, False]])
    expected = np.log([[0.9 * 0.8, 0.1 * 0.2, 0.1 * 0.8], [0.25, 0.25, 0.25]])
    np.testing.assert_allclose(log_likelihood(probability, sets), expected, rtol=1e-5)


def test_certainty_stays_finite() -> None:
    likelihood = log_likelihood(np.array([[1.0, 0.0]], dtype=np.float32), np.array([[False, True]]))
    assert np.isfinite(likelihood).all()


def test_search_ranks_reports_by_the_likelihood_of_their_labels() -> None:
    labels = np.zeros((3, 14), dtype=np.float32)
    labels[0, 0], labels[1, 1], labels[2, 1] = 1, 1, -1  # uncertain is not positive
    probability = np.full((3, 14), 0.01, dtype=np.float32)
    probability[0, 0] = 0.9  # sees its own finding
    probability[1, 0] = 0.8  # takes the second image for the first
    probability[2] = 0.01  # sees nothing, which is right
    results = search_by_findings(["c", "a", "b"], labels, probability, num_candidates=3)
    rows = {(row["direction"], row["id"]): row for row in results.rows}
    assert [rows["image_to_report", name]["own_rank"] for name in "cab"] == [1, 3, 1]
    assert rows["image_to_report", "a"]["first_rank"] == 3
    assert rows["report_to_image", "c"]["own_rank"] == 1
    # The image of a has 0.99 / 0.01 against a finding at its place as all others have, but is sure of another one.
    assert rows["report_to_image", "a"]["own_rank"] == 2
    assert results.scores()["image_to_report/mrr"] == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_search_has_the_candidate_sets_of_the_task(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data = SyntheticDataModule(num_train=8, num_val=4, num_test=12, negatives="labels")
    task = RetrievalTask(tiny, num_candidates=5, candidate_seed=3).eval()
    make_trainer().test(task, datamodule=data, verbose=False)
    examples = data.datasets["test"].examples
    results = search_by_findings(
        examples.ids, examples.labels, np.full((12, 14), 0.5, dtype=np.float32), num_candidates=5, candidate_seed=3
    )
    for ours, theirs in zip(
        sorted(results.rows, key=lambda row: (row["id"], row["direction"])),
        sorted(task.results.rows, key=lambda row: (row["id"], row["direction"])),
        strict=True,
    ):
        for name in ("id", "direction", "gallery", "num_candidates", "num_positives"):
            assert ours[name] == theirs[name]


def test_written_report_is_the_most_frequent_one_of_the_top_set() -> None:
    labels = np.zeros((6, 14), dtype=np.float32)
    labels[:3, 5] = 1
    labels[3, 5], labels[3, 6] = np.nan, 1
    reports = ["rare edema", "edema", "edema", "consolidation", "normal", "normal"]
    probability = np.zeros((3, 14), dtype=np.float32)
    probability[0, 5], probability[1, 6] = 0.9, 0.9
    assert write_by_findings(reports, labels, probability) == ["edema", "consolidation", "normal"]


def test_frequency_of_a_set_decides_where_the_image_does_not() -> None:
    labels = np.zeros((4, 14), dtype=np.float32)
    labels[:3, 2] = 1
    probability = np.zeros((1, 14), dtype=np.float32)
    probability[0, 2] = 0.5
    assert write_by_findings(["large heart"] * 3 + ["normal"], labels, probability) == ["large heart"]
    probability[0, 2] = 0.2  # 3 / 4 * 0.2 is less than 1 / 4 * 0.8
    assert write_by_findings(["large heart"] * 3 + ["normal"], labels, probability) == ["normal"]


def test_each_wording_has_a_regression_of_its_own() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((400, 14), dtype=np.float32)
    questions = ["edema?" if row % 2 else "which side?" for row in range(400)]
    answers = [
        ("yes" if p[5] > 0.5 else "no") if question == "edema?" else ("left" if p[3] > p[4] else "right")
        for question, p in zip(questions, probability, strict=True)
    ]
    state = torch.random.get_rng_state()
    model = FindingsAnswers(questions, answers, probability)
    right = [a == b for a, b in zip(model.answer(questions, probability), answers, strict=True)]
    assert np.mean(right) > 0.95
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_wording_gets_the_most_frequent_answer() -> None:
    one = np.zeros((3, 14), dtype=np.float32)
    model = FindingsAnswers(["a?", "a?", "b?"], ["no", "no", "left"], one)
    assert model.answer(["c?", "b?"], one[:2]) == ["no", "left"]


def test_answers_take_the_place_of_the_tasks_own() -> None:
    row = {"answer": "yes", "answer_type": "closed", "organ": "", "question_type": "", "is_known": True}
    rows = [{**row, "id": name, "prediction": "yes", "prediction_blank": "yes"} for name in "ab"]
    tested = Results(rows, {"most_frequent": {"closed": "no"}}, "medvill_pl.evaluation.vqa.vqa_scores")
    scores = answer_results(tested, {"a": "yes", "b": "no"}).scores()
    assert scores["accuracy_closed"] == 0.5
    assert scores["accuracy_most_frequent_closed"] == 0.0
    assert "accuracy_blank_closed" not in scores  # a control of the task
    assert tested.rows[1]["prediction"] == "yes"
