"""Diagnosis classification: 14 findings from image and report, or from the image alone (MedViLL, Sec. IV-C.1)."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.evaluation.classification import choose_thresholds, undefined_findings
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.attention import ImageAttention
from medvill_pl.tasks.backbone_task import BackboneTask, make_head
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput

Uncertain = Literal["negative", "positive", "ignore"]


class ClassificationTask(BackboneTask):
    """Fine-tunes a backbone to tell which findings an image (with its report) shows: one output per finding, on CLS.

    The labels of most corpora are read off the reports, so with the report as input they can be read off
    the text they came from: metrics are then near 1 and say little about images.

    A finding that is not mentioned counts as negative; one that the corpus declares unlabelled is left
    out of loss and metrics. After each validation, the thresholds with the best F1 are kept in the task.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        use_report: take image and report (the paper), or the image alone.
        uncertain: what a finding that is uncertain (-1) counts as.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Example:
        >>> small = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...          "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> task = ClassificationTask(backbone=small, use_report=False)
    """

    score_fn = "medvill_pl.evaluation.classification.classification_scores"
    monitor, mode = "val/auroc_micro", "max"
    fixed_hyperparameters = ("use_report",)
    threshold: Tensor

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        use_report: bool = True,
        uncertain: Uncertain = "negative",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(
            backbone, backbone_ckpt, lr, weight_decay, warmup_steps, schedule, compile, seed, freeze_backbone
        )
        self.save_hyperparameters()
        self.use_report, self.uncertain = use_report, uncertain
        self.unused_parameters = ("text_cls_position_embedding", "mlm_head")
        if not use_report:
            self.unused_parameters += ("report_embedding.position", "report_embedding.semantic")
        self.head = make_head(self.backbone.hparams["hidden_size"], len(FINDINGS))
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
        if self.use_report and self.data is not None and not self.data.has_texts:
            rank_zero_warn("the task reads image and report, but the images come without one: give the folder a text")
        if self.use_report and stage == "fit":
            rank_zero_warn(
                "the report is part of the input: labels that were read off the reports can be read off them again, "
                "so the metrics say little about images (set use_report to false for the image alone)"
            )

    def forward(self, batch: Batch) -> Tensor:
        """Score the findings of each example.

        Returns:
            Logits, shape ``(B, 14)``.
        """
        text = slice(None) if self.use_report else slice(0)
        output = self.backbone(
            images=batch["image"], input_ids=batch["input_ids"][:, text], text_mask=batch["text_mask"][:, text]
        )
        logits: Tensor = self.head(output.pooled)
        return logits

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
        logits, target = self(batch).float(), self.targets(batch["labels"])
        counted = ~target.isnan()
        cells = nn.functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
        loss = (cells * counted).sum() / counted.sum().clamp_min(1)
        if self.training:
            return StepOutput(loss)
        results = {"id": batch["id"], "probability": logits.sigmoid(), "label": target}
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

    def image_attention(self, batch: Batch) -> ImageAttention:
        """Where CLS looks; without the report where the task does not read it."""
        if self.use_report:
            return super().image_attention(batch)
        no_text = batch["input_ids"][:, :0]
        return super().image_attention(Batch({**batch, "input_ids": no_text, "text_mask": no_text.bool()}))

    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: the findings of the labels, and the top findings of the model."""
        rows = []
        for row, labels in zip(self.predict_step(batch, 0), batch["labels"], strict=True):
            top = sorted(FINDINGS, key=lambda finding: -row[finding])[:3]
            there = [finding for finding, label in zip(FINDINGS, labels.tolist(), strict=True) if label == 1]
            guess = ", ".join(f"{finding} {row[finding]:.2f}" for finding in top)
            rows.append({"id": row["id"], "findings": ", ".join(there), "top findings": guess})
        return rows

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Give the probability of every finding: rows with ``id`` and the findings' names."""
        probability = self(batch).float().sigmoid()
        return [
            {"id": i} | dict(zip(FINDINGS, row, strict=True))
            for i, row in zip(batch["id"], probability.tolist(), strict=True)
        ]
