"""Diagnosis classification: metrics over stored probabilities (MedViLL, Sec. IV-C.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
    binary_f1_score,
)

from medvill_pl.evaluation.statistics import Rows

CALIBRATION_BINS = 15
"""Bins of the expected calibration error."""


def classification_scores(rows: Rows, context: Mapping[str, Any]) -> dict[str, float]:
    """Score predicted findings.

    A finding whose examples are all positive or all negative has no AUROC and no average precision; it is
    left out of their means (see :func:`undefined_findings`).

    Args:
        rows: ``probability`` and ``label`` of each example: one number per finding; labels are 1, 0 or NaN
            (not labelled, which is not counted).
        context: ``findings``, their names; ``threshold``, the probability from which each finding counts as
            predicted, chosen on validation, or None; ``frequency``, the share of positives of each finding in
            the training split, or None.

    Returns:
        ``auroc``, ``average_precision``, ``f1`` (at 0.5), ``calibration_error`` (expected, 15 bins) as
        ``{metric}_micro`` over all cells, ``{metric}_macro`` as the mean over findings, and
        ``{metric}/{finding}``; ``f1_chosen_micro`` and ``f1_chosen_macro`` at the chosen thresholds; and
        ``frequency_auroc_micro`` and ``frequency_average_precision_micro``, what the frequencies alone reach.

    Example:
        >>> rows = [{"probability": [0.9], "label": [1.0]}, {"probability": [0.2], "label": [0.0]}]
        >>> scores = classification_scores(rows, {"findings": ["Edema"]})
        >>> scores["auroc_micro"], scores["f1/edema"]
        (1.0, 1.0)
    """
    probability, label = _matrix(rows, "probability"), _matrix(rows, "label")
    scores = _score_cells(probability, label, "_micro")
    by_finding: dict[str, dict[str, float]] = {}
    for column, finding in enumerate(context["findings"]):
        by_finding[finding] = _score_cells(probability[:, column], label[:, column], "")
    for metric in ("auroc", "average_precision", "f1", "calibration_error"):
        values = {finding: part[metric] for finding, part in by_finding.items() if metric in part}
        if values:
            scores[f"{metric}_macro"] = float(np.mean(list(values.values())))
        scores |= {f"{metric}/{_snake(finding)}": value for finding, value in values.items()}
    if context.get("threshold") is not None:
        scores |= _at_thresholds(probability, label, torch.tensor(context["threshold"]))
    if context.get("frequency") is not None:
        guess = torch.tensor(context["frequency"], dtype=torch.float32).expand(len(rows), -1)
        baseline = _score_cells(guess, label, "_micro")
        scores |= {f"frequency_{m}": baseline[m] for m in ("auroc_micro", "average_precision_micro") if m in baseline}
    return scores


def undefined_findings(rows: Rows, findings: Sequence[str]) -> list[str]:
    """Name the findings that are labelled but always positive or never, so that they have no AUROC.

    Args:
        rows: ``label`` of each example: 1, 0 or NaN per finding.
        findings: their names.

    Example:
        >>> undefined_findings([{"label": [1.0, 0.0]}, {"label": [0.0, 0.0]}], ["Edema", "Fracture"])
        ['Fracture']
    """
    label = _matrix(rows, "label")
    known = [column[~column.isnan()] for column in label.T]
    return [finding for finding, column in zip(findings, known, strict=True) if len(column) and not _has_both(column)]


def choose_thresholds(probability: Tensor, label: Tensor) -> Tensor:
    """Choose for each finding the threshold with the best F1.

    Args:
        probability: floating point in 0..1, shape ``(N, 14)``.
        label: 1, 0 or NaN, shape ``(N, 14)``.

    Returns:
        Thresholds, floating point, shape ``(14,)``: the lowest probability that counts as predicted; 0.5 for a finding
        without positive examples.

    Example:
        >>> choose_thresholds(torch.tensor([[0.9], [0.6], [0.3]]), torch.tensor([[1.0], [1.0], [0.0]]))
        tensor([0.6000])
    """
    thresholds = torch.full((probability.shape[1],), 0.5)
    for column in range(probability.shape[1]):
        known = ~label[:, column].isnan()
        order = probability[known, column].argsort(descending=True)
        candidates, is_positive = probability[known, column][order], label[known, column][order] == 1
        if not is_positive.any():
            continue
        true_positives = is_positive.cumsum(0)  # if the first, the first two, ... count as predicted
        f1 = 2 * true_positives / (torch.arange(1, len(true_positives) + 1) + is_positive.sum())
        # Among equal probabilities only the last one's counts are those of a threshold.
        is_last = torch.cat([candidates[1:] < candidates[:-1], torch.ones(1, dtype=torch.bool)])
        thresholds[column] = candidates[torch.where(is_last, f1, -1.0).argmax()]
    return thresholds


def _matrix(rows: Rows, name: str) -> Tensor:
    values: NDArray[np.float32] = np.array([row[name] for row in rows], dtype=np.float32)
    return torch.from_numpy(values)


def _has_both(label: Tensor) -> bool:
    return bool((label == 1).any() and (label == 0).any())


def _score_cells(probability: Tensor, label: Tensor, suffix: str) -> dict[str, float]:
    known = ~label.isnan()
    preds, target = probability[known], label[known].int()
    if not len(target):
        return {}
    scores = {
        "f1": binary_f1_score(preds, target),
        "calibration_error": binary_calibration_error(preds, target, n_bins=CALIBRATION_BINS),
    }
    if _has_both(target):
        scores["auroc"] = binary_auroc(preds, target)
        scores["average_precision"] = binary_average_precision(preds, target)
    return {f"{metric}{suffix}": value.item() for metric, value in scores.items()}


def _at_thresholds(probability: Tensor, label: Tensor, threshold: Tensor) -> dict[str, float]:
    predicted, known = (probability >= threshold).float(), ~label.isnan()
    columns = [
        binary_f1_score(predicted[known[:, column], column], label[known[:, column], column].int()).item()
        for column in range(label.shape[1])
        if known[:, column].any()
    ]
    micro = binary_f1_score(predicted[known], label[known].int()).item()
    return {"f1_chosen_micro": micro, "f1_chosen_macro": float(np.mean(columns))}


def _snake(finding: str) -> str:
    return finding.lower().replace(" ", "_")
