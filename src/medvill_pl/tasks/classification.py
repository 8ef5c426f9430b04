"""Diagnosis classification: 14 findings from image and report, or from the image alone (MedViLL, Sec. IV-C.1)."""

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.attention import ImageAttention
from medvill_pl.tasks.backbone_task import BackboneTask, make_head
from medvill_pl.tasks.findings import FindingsTask, Uncertain
from medvill_pl.tasks.optimizers import Schedule


class ClassificationTask(FindingsTask, BackboneTask):
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

    fixed_hyperparameters = ("use_report", "uncertain")

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
        self.use_report = use_report
        self.unused_parameters = ("text_cls_position_embedding", "mlm_head")
        if not use_report:
            self.unused_parameters += ("report_embedding.position", "report_embedding.semantic")
        self.head = make_head(self.backbone.hparams["hidden_size"], len(FINDINGS))
        self.score_findings_as(uncertain)

    def setup(self, stage: str) -> None:
        """Build what every such task needs, and warn where the report gives the labels away.

        Raises:
            ValueError: if the corpus labels none.
        """
        super().setup(stage)
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

    def image_attention(self, batch: Batch) -> ImageAttention:
        """Where CLS looks; without the report where the task does not read it."""
        if self.use_report:
            return super().image_attention(batch)
        no_text = batch["input_ids"][:, :0]
        return super().image_attention(Batch({**batch, "input_ids": no_text, "text_mask": no_text.bool()}))
