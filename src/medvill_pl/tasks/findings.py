"""What all tasks that score the 14 findings share, whatever they score them from: targets, loss, thresholds, tables."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.evaluation.classification import choose_thresholds, undefined_findings
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.tasks.base import BaseTask
from medvill_pl.tasks.step import StepOutput

Uncertain = Literal["negative", "positive", "ignore"]


class FindingsTask(BaseTask):
    """A task whose :meth:`forward` gives the logits of the 14 findings of a batch, shape ``(B, 14)``.

    A finding that is not mentioned counts as negative; one that the corpus declares unlabelled is left
    out of loss and metrics. After each validation, the thresholds with the best F1 are kept in the task.

    A subclass calls :meth:`score_findings_as` in its constructor.

    Example:
        >>> class DarkImages(FindingsTask):
        ...     def __init__(self) -> None:
        ...         super().__init__(lr=1e-3)
        ...         self.score_findings_as(uncertain="ignore")
        ...         self.head = nn.Linear(1, len(FINDINGS))
        ...     def forward(self, batch: Batch) -> Tensor:
        ...         return self.head(batch["image"].float().mean((2, 3)) / 255)
        >>> DarkImages().score_fn
        'medvill_pl.evaluation.classification.classification_scores'
    """

    score_fn = "medvill_pl.evaluation.classification.classification_scores"
    monitor, mode = "val/auroc_micro", "max"
    uncertain: Uncertain
    threshold: Tensor

    def score_findings_as(self, uncertain: Uncertain) -> None:
        """Say what a finding that is uncertain (-1) counts as, and make room for the thresholds."""
        self.uncertain = uncertain
        self.register_buffer("threshold", torch.full((len(FINDINGS),), 0.5))

    def setup(self, stage: str) -> None:
        """Build what every task needs, and find out which findings the corpus labels.

        Raises:
            ValueError: if the corpus labels none.
        """
        super().setup(stage)
        self._is_labelled = torch.ones(len(FINDINGS), dtype=torch.bool)
        for part in self.data.datasets.values() if self.data else ():
            self._is_labelled = torch.tensor([finding in part.examples.labelled for finding in FINDINGS])
        if stage != "predict" and not self._is_labelled.any():
            raise ValueError("the corpus labels no finding, so there is nothing to classify: prepare it with labels")

    def targets(self, labels: Tensor) -> Tensor:
        """What is to be predicted: 1, 0 or NaN (not counted), shape ``(B, 14)``.

        Args:
            labels: 1, 0, -1 or NaN (not mentioned), shape ``(B, 14)``.
        """
        uncertain = {"negative": 0.0, "positive": 1.0, "ignore": float("nan")}[self.uncertain]
        known = torch.where(labels == -1, uncertain, labels.nan_to_num(0.0))
        return torch.where(self._is_labelled.to(labels.device), known, float("nan"))

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        return self.score(self(batch), batch)

    def score(self, logits: Tensor, batch: Batch) -> StepOutput:
        """Binary cross-entropy of logits, shape ``(B, 14)``: the mean over all findings that count."""
        logits, target = logits.float(), self.targets(batch["labels"])
        counted = ~target.isnan()
        cells = nn.functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
        loss = (cells * counted).sum() / counted.sum().clamp_min(1)
        if self.training:
            return StepOutput(loss)
        results: dict[str, Any] = {"id": batch["id"], "probability": logits.sigmoid(), "label": target}
        return StepOutput(loss, results=results, loss_weight=int(counted.sum()))

    def score_context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """Names, thresholds and training frequencies; on validation the thresholds are chosen anew."""
        undefined = undefined_findings(rows, FINDINGS)
        if undefined:
            rank_zero_warn(
                f"{stage}: {', '.join(undefined)} occur in all examples or in none, so they have no AUROC; the means "
                "leave them out"
            )
        if stage == "val":
            probability, label = (torch.tensor([row[name] for row in rows]) for name in ("probability", "label"))
            self.threshold.copy_(choose_thresholds(probability, label))
        examples = self.data.training_examples() if self.data else None
        frequency = None
        if examples is not None:
            target = self.targets(torch.from_numpy(examples.labels).to(self.device))
            frequency = target.nanmean(0).nan_to_num(0.0).tolist()
        return {"findings": list(FINDINGS), "threshold": self.threshold.tolist(), "frequency": frequency}

    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: the findings of the labels, and the top findings of the model."""
        rows = []
        for row, labels in zip(self.predict_step(batch, 0), batch["labels"], strict=True):
            top = sorted(FINDINGS, key=lambda finding: -row[finding])[:3]
            positive = [finding for finding, label in zip(FINDINGS, labels.tolist(), strict=True) if label == 1]
            guess = ", ".join(f"{finding} {row[finding]:.2f}" for finding in top)
            rows.append({"id": row["id"], "findings": ", ".join(positive), "top findings": guess})
        return rows

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Give the probability of every finding: rows with ``id`` and the findings' names."""
        probability = self(batch).float().sigmoid()
        return [
            {"id": i} | dict(zip(FINDINGS, row, strict=True))
            for i, row in zip(batch["id"], probability.tolist(), strict=True)
        ]
