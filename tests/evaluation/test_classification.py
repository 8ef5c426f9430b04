"""Metrics of findings, counted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medvill_pl.evaluation.classification import choose_thresholds, classification_scores, undefined_findings

NAN = float("nan")
FINDINGS = ["Lung Opacity", "Edema", "Fracture"]
Table = list[dict[str, Any]]


def make_rows(probability: NDArray[np.float64], label: NDArray[np.float64]) -> Table:
    return [{"probability": p, "label": y} for p, y in zip(probability.tolist(), label.tolist(), strict=True)]


@pytest.fixture
def drawn() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities on a grid, so that some are equal, and labels, some of which are not known."""
    rng = np.random.default_rng(0)
    label = rng.choice([0.0, 1.0, NAN], (60, 3), p=[0.5, 0.35, 0.15])
    return (0.3 * np.nan_to_num(label) + 0.7 * rng.random((60, 3))).round(1), label


def auroc(probability: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    """How often a positive is above a negative; equal ones count half."""
    positive, negative = probability[label == 1], probability[label == 0]
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(wins)


def average_precision(probability: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    """Precision at every threshold, weighed by the recall that it adds."""
    known = ~np.isnan(label)
    probability, label = probability[known], label[known]
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(probability), reverse=True):
        predicted = probability >= threshold
        recall = (predicted & (label == 1)).sum() / (label == 1).sum()
        total += (recall - recall_before) * (predicted & (label == 1)).sum() / predicted.sum()
        recall_before = recall
    return total


def f1(predicted: NDArray[np.bool_], label: NDArray[np.float64]) -> float:
    target, known = label == 1, ~np.isnan(label)
    return float(2 * (predicted & target).sum() / ((predicted & known).sum() + target.sum()))


def calibration_error(probability: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    """Distance of confidence and share of positives, over 15 bins, weighed by their sizes."""
    known = ~np.isnan(label)
    probability, label = probability[known], label[known]
    bins = np.minimum((probability * 15).astype(int), 14)
    error = 0.0
    for number in range(15):
        inside = bins == number
        if inside.any():
            error += inside.mean() * abs(probability[inside].mean() - label[inside].mean())
    return error


def test_micro_metrics_are_over_all_known_cells(drawn: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    probability, label = drawn
    # Off the grid of bins, whose edges belong to either side.
    probability = probability * 0.97 + 0.011
    scores = classification_scores(make_rows(probability, label), {"findings": FINDINGS})
    cells = probability.ravel(), label.ravel()
    expected = {
        "auroc_micro": auroc(*cells),
        "average_precision_micro": average_precision(*cells),
        "f1_micro": f1(cells[0] > 0.5, cells[1]),
        "calibration_error_micro": calibration_error(*cells),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_metrics_of_each_finding_and_their_means(drawn: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    probability, label = drawn[0] * 0.97 + 0.011, drawn[1]
    scores = classification_scores(make_rows(probability, label), {"findings": FINDINGS})
    references = {
        "auroc": auroc,
        "average_precision": average_precision,
        "f1": lambda p, y: f1(p > 0.5, y),
        "calibration_error": calibration_error,
    }
    for name, reference in references.items():
        expected = [reference(probability[:, column], label[:, column]) for column in range(3)]
        values = [scores[f"{name}/{finding}"] for finding in ("lung_opacity", "edema", "fracture")]
        assert values == pytest.approx(expected, abs=1e-5)
        assert scores[f"{name}_macro"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_calibration_error_by_hand() -> None:
    probability, label = np.array([[0.72], [0.7], [0.1]]), np.array([[1.0], [0.0], [0.0]])
    # Two of three in the bin of 0.67 to 0.73, of which half are positive: 0.71 against 0.5.
    scores = classification_scores(make_rows(probability, label), {"findings": ["Edema"]})
    assert scores["calibration_error_micro"] == pytest.approx(2 / 3 * 0.21 + 1 / 3 * 0.1)


def test_finding_that_never_occurs_is_left_out_of_means_and_named(
    drawn: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    probability, label = drawn[0], drawn[1].copy()
    label[:, 2] = 0
    rows = make_rows(probability, label)
    scores = classification_scores(rows, {"findings": FINDINGS})
    assert "auroc/fracture" not in scores
    assert "average_precision/fracture" not in scores
    assert scores["auroc_macro"] == pytest.approx((scores["auroc/lung_opacity"] + scores["auroc/edema"]) / 2)
    assert undefined_findings(rows, FINDINGS) == ["Fracture"]
    label[:, 0], label[:, 2] = 1, NAN  # always positive; not labelled at all, which is nothing to name
    assert undefined_findings(make_rows(probability, label), FINDINGS) == ["Lung Opacity"]


def test_finding_without_labels_has_no_metrics(drawn: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    probability, label = drawn[0], drawn[1].copy()
    label[:, 1] = NAN
    scores = classification_scores(make_rows(probability, label), {"findings": FINDINGS})
    assert not [name for name in scores if name.endswith("/edema")]
    kept = classification_scores(
        make_rows(probability[:, [0, 2]], label[:, [0, 2]]), {"findings": ["Lung Opacity", "Fracture"]}
    )
    assert scores == pytest.approx(kept)


def test_frequencies_alone_rank_findings_but_not_examples() -> None:
    label = np.array([[1.0, 0], [1, 0], [1, 1], [0, 0]])
    probability = np.full((4, 2), 0.5)
    context = {"findings": ["Edema", "Fracture"], "frequency": [0.8, 0.1]}
    scores = classification_scores(make_rows(probability, label), context)
    guess = np.array([[0.8, 0.1]] * 4)
    assert scores["frequency_auroc_micro"] == pytest.approx(auroc(guess.ravel(), label.ravel()))
    expected = average_precision(guess.ravel(), label.ravel())
    assert scores["frequency_average_precision_micro"] == pytest.approx(expected)


def test_f1_at_chosen_thresholds(drawn: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    probability, label = drawn
    threshold = np.array([0.3, 0.5, 0.8], np.float32)
    scores = classification_scores(
        make_rows(probability, label), {"findings": FINDINGS, "threshold": threshold.tolist()}
    )
    predicted = probability.astype(np.float32) >= threshold  # also at the threshold
    assert scores["f1_chosen_micro"] == pytest.approx(f1(predicted.ravel(), label.ravel()))
    expected = [f1(predicted[:, column], label[:, column]) for column in range(3)]
    assert scores["f1_chosen_macro"] == pytest.approx(np.mean(expected))


def test_chosen_thresholds_reach_the_best_f1_of_all(drawn: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    probability, label = drawn
    chosen = choose_thresholds(torch.from_numpy(probability), torch.from_numpy(label))
    for column, threshold in enumerate(chosen.tolist()):
        own, target = probability[:, column], label[:, column]
        best = max(f1(own >= candidate, target) for candidate in own)
        assert f1(own >= threshold - 1e-6, target) == pytest.approx(best)


def test_threshold_without_positives_is_one_half() -> None:
    label = torch.tensor([[0.0, 1.0, NAN]] * 4)
    chosen = choose_thresholds(torch.full((4, 3), 0.2), label)
    assert chosen.tolist() == pytest.approx([0.5, 0.2, 0.5])
