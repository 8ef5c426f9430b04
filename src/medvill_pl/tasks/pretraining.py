"""Pre-training: masked language modelling and image-report matching (MedViLL, Sec. III-B.4)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy

from medvill_pl.batch import Batch, Split
from medvill_pl.masks import SEQ2SEQ_PROBABILITY, MaskName, MaskStrategy
from medvill_pl.models.flops import forward_flops
from medvill_pl.models.medvill import BackboneConfig, BackboneOutput
from medvill_pl.models.modes import evaluating
from medvill_pl.tasks.attention import ImageAttention, last_layer_maps
from medvill_pl.tasks.backbone_task import make_head
from medvill_pl.tasks.masking import TokenMasking
from medvill_pl.tasks.matching import MatchingTask
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput


class _Mean(MeanMetric):
    """A mean that does not look for NaN, which would make the device wait; the task looks at the loss."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")


class TokenLoss(_Mean):
    """Mean cross-entropy of predicted tokens, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add tokens: logits of shape ``(M, V)`` and ids of shape ``(M,)``."""
        if len(target):
            super().update(nn.functional.cross_entropy(preds.float(), target, reduction="none"))


class TokenPerplexity(TokenLoss):
    """Exponential of the mean cross-entropy of predicted tokens."""

    def compute(self) -> Tensor:
        """Perplexity so far."""
        return super().compute().exp()


class TokenAccuracy(_Mean):
    """Share of tokens whose highest logit is right."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add tokens: logits of shape ``(M, V)`` and ids of shape ``(M,)``."""
        if len(target):
            super().update((preds.argmax(dim=1) == target).float())


class MatchingLoss(_Mean):
    """Mean binary cross-entropy of matching probabilities, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add pairs: probabilities and 0 or 1, both of shape ``(B,)``."""
        with torch.autocast(preds.device.type, enabled=False):  # which refuses this function on a GPU
            super().update(nn.functional.binary_cross_entropy(preds.float(), target.float(), reduction="none"))


class MaskedReport(NamedTuple):
    """A report with masked tokens and what the model puts there.

    Attributes:
        id: identifier of the pair.
        tokens: tokens of the report, with SEP.
        masked: positions of the masked tokens.
        predictions: for each masked position, the top tokens, best first.
        probabilities: their probabilities.
        match_probability: how likely image and report belong together.
    """

    id: str
    tokens: list[str]
    masked: list[int]
    predictions: list[list[str]]
    probabilities: list[list[float]]
    match_probability: float


class PretrainingTask(MatchingTask):
    """Pre-trains a backbone by MLM and IRM under a mask strategy.

    The batches need non-matching pairs: give the data module ``negatives="labels"``. Tokens are
    masked in all reports, but predicted in matching pairs only (Eq. 5). The loss is their sum.

    Under ``seq2seq``, CLS cannot see the report, so IRM cannot be learnt and stays at ln 2.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        mask_strategy: who attends to whom.
        num_visual_samples: visual tokens drawn from each image in training steps; None takes all.
        mlm_probability: share of tokens to mask.
        mlm_on_non_matching: predict masked tokens of non-matching pairs too, as the released code does.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout, sampling and draws.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Example:
        >>> small = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...          "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> task = PretrainingTask(backbone=small, mask_strategy="bar", lr=1e-3)
    """

    head_parameters = ("mlm_head",)
    fixed_hyperparameters = ("mask_strategy",)

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        mask_strategy: MaskName = "bar",
        num_visual_samples: int | None = 180,
        mlm_probability: float = 0.15,
        mlm_on_non_matching: bool = False,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
        freeze_backbone: bool = False,
    ) -> None:
        self._strategy = MaskStrategy(mask_strategy)
        super().__init__(
            backbone, backbone_ckpt, lr, weight_decay, warmup_steps, schedule, compile, seed, freeze_backbone
        )
        mask_strategy = self._strategy.value
        self.save_hyperparameters()
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability must be between 0 and 1, not {mlm_probability}")
        if num_visual_samples is not None and num_visual_samples < 1:
            raise ValueError(f"num_visual_samples must be positive, not {num_visual_samples}")
        self.unused_parameters = () if self._strategy is MaskStrategy.NON_CROSSING else ("text_cls_position_embedding",)
        self.irm_head = make_head(self.backbone.hparams["hidden_size"], 1)
        self.num_visual_samples = num_visual_samples
        self.mlm_probability = mlm_probability
        self.mlm_on_non_matching = mlm_on_non_matching

    def metrics(self, stage: str) -> Mapping[str, MetricCollection]:
        """MLM loss, accuracy and perplexity, IRM loss and accuracy; for bi_seq2seq under both strategies."""
        runs = ("seq2seq", "bidirectional") if self._runs_both(stage) else ("",)
        groups: dict[str, MetricCollection] = {}
        for run in runs:
            postfix = f"_{run}" if run else None
            mlm = {"mlm_loss": TokenLoss(), "mlm_accuracy": TokenAccuracy(), "mlm_perplexity": TokenPerplexity()}
            irm = {"irm_loss": MatchingLoss(), "irm_accuracy": BinaryAccuracy(validate_args=False)}
            groups[f"mlm{run}"] = MetricCollection(dict(mlm), postfix=postfix, compute_groups=False)
            groups[f"irm{run}"] = MetricCollection(dict(irm), postfix=postfix, compute_groups=False)
        return groups

    def _runs_both(self, stage: str) -> bool:
        return self._strategy is MaskStrategy.BI_SEQ2SEQ and stage != "train"

    def batch_transform(self, split: Split) -> Callable[[Batch], Batch]:
        """Mask tokens in every split."""
        return self.masking

    @property
    def masking(self) -> TokenMasking:
        """Adds masked tokens to a batch; each pair's draw follows from its seed alone."""
        return TokenMasking(self.backbone.tokenizer, self.mlm_probability, non_matching=self.mlm_on_non_matching)

    def forward(self, batch: Batch, strategy: MaskStrategy) -> BackboneOutput:
        """Embed pairs with masked tokens under a strategy."""
        num_sampled = self.num_visual_samples if self.training else None
        visual_tokens = self.backbone.encode_image(batch["image"], num_sampled)
        output: BackboneOutput = self.backbone(
            visual_tokens=visual_tokens,
            input_ids=batch["mlm_input_ids"],
            text_mask=batch["text_mask"],
            mask_strategy=strategy,
        )
        return output

    def score(self, batch: Batch, strategy: MaskStrategy) -> tuple[Tensor, Tensor]:
        """Score masked tokens and matching under a strategy.

        Args:
            batch: pairs with masked tokens (see :attr:`masking`), on the device of the task.
            strategy: any but ``bi_seq2seq``.

        Returns:
            Vocabulary logits of the positions to predict, shape ``(M, V)``, and matching logits, shape ``(B,)``.
        """
        output = self(batch, strategy)
        masked = output.text.flatten(0, 1)[batch["mlm_positions"]]
        return self.backbone.mlm_logits(masked), self.irm_head(output.pooled).squeeze(1)

    def _losses(self, batch: Batch, mlm_logits: Tensor, irm_logits: Tensor) -> tuple[Tensor, Tensor]:
        # The sum keeps the graph whole where a batch has nothing to predict.
        mlm_sum = nn.functional.cross_entropy(mlm_logits.float(), batch["mlm_targets"], reduction="sum")
        mlm = mlm_sum / max(1, len(batch["mlm_targets"]))
        irm = nn.functional.binary_cross_entropy_with_logits(irm_logits.float(), batch["matched"].float())
        return mlm, irm

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        if "mlm_input_ids" not in batch:  # of a user's own loader
            batch = self.masking(batch)
        if self._strategy is MaskStrategy.BI_SEQ2SEQ and not self.training:
            return self._evaluate_both(batch)
        strategy = self._strategy.draw(self.global_step, self.seed)
        mlm_logits, irm_logits = self.score(batch, strategy)
        mlm, irm = self._losses(batch, mlm_logits, irm_logits)
        scored = {"mlm": (mlm_logits, batch["mlm_targets"]), "irm": (irm_logits.float().sigmoid(), batch["matched"])}
        losses = {"mlm_loss_step": mlm, "irm_loss_step": irm}
        results = {} if self.training else _results(batch, mlm_logits, irm_logits)
        return StepOutput(mlm + irm, scored, losses, results)

    def _evaluate_both(self, batch: Batch) -> StepOutput:
        """Score bi_seq2seq under seq2seq and bidirectional; the loss weighs them as training does."""
        total, scored = torch.zeros((), device=self.device), {}
        for strategy, weight in (("seq2seq", SEQ2SEQ_PROBABILITY), ("bidirectional", 1 - SEQ2SEQ_PROBABILITY)):
            mlm_logits, irm_logits = self.score(batch, MaskStrategy(strategy))
            mlm, irm = self._losses(batch, mlm_logits, irm_logits)
            total = total + weight * (mlm + irm)
            scored[f"mlm{strategy}"] = (mlm_logits, batch["mlm_targets"])
            scored[f"irm{strategy}"] = (irm_logits.float().sigmoid(), batch["matched"])
            if strategy == "seq2seq":
                results = _results(batch, mlm_logits, irm_logits)
        return StepOutput(total, scored, results=results)

    @property
    def evaluation_strategy(self) -> MaskStrategy:
        """The strategy under which tables and predictions are made: for ``bi_seq2seq``, seq2seq."""
        return MaskStrategy.SEQ2SEQ if self._strategy is MaskStrategy.BI_SEQ2SEQ else self._strategy

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Tell how likely each image and its own report belong together: rows with ``id`` and ``match_probability``."""
        output = self.backbone(
            images=batch["image"],
            input_ids=batch["input_ids"],
            text_mask=batch["text_mask"],
            mask_strategy=self.evaluation_strategy,
        )
        probabilities = self.irm_head(output.pooled).squeeze(1).float().sigmoid()
        return [{"id": i, "match_probability": p} for i, p in zip(batch["id"], probabilities.tolist(), strict=True)]

    def image_attention(self, batch: Batch) -> ImageAttention:
        """Where CLS and the masked tokens look; under ``non_crossing`` no token sees the image."""
        strategy = self.evaluation_strategy
        maps = last_layer_maps(self.backbone, batch["image"], batch["mlm_input_ids"], batch["text_mask"], strategy)
        if strategy is MaskStrategy.NON_CROSSING:
            return ImageAttention(maps[:, 0])
        is_masked = torch.zeros_like(batch["text_mask"]).flatten()
        is_masked[batch["mlm_positions"]] = True
        return ImageAttention(maps[:, 0], maps[:, 1:] * is_masked.view_as(batch["text_mask"])[..., None, None])

    def flops_per_pair(self, num_text: int) -> int:
        """Floating point operations of the forward pass of one pair, with the visual tokens that are sampled."""
        return forward_flops(self.backbone, self.num_visual_samples, num_text)

    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: report, masked tokens with the model's predictions, and matching."""
        return [
            {
                "id": report.id,
                "report": " ".join(f"[{t}]" if at in report.masked else t for at, t in enumerate(report.tokens)),
                "masked tokens: predictions": "; ".join(
                    f"{report.tokens[position]}: {tokens[0]} {probability[0]:.2f}"
                    for position, tokens, probability in zip(
                        report.masked, report.predictions, report.probabilities, strict=True
                    )
                ),
                "match probability": report.match_probability,
            }
            for report in self.fill_masks(batch)
        ]

    @torch.no_grad()
    def fill_masks(self, batch: Batch, num_candidates: int = 5) -> list[MaskedReport]:
        """Show, for tables and pages, which tokens were masked and what the model predicts there.

        Args:
            batch: pairs with masked tokens, on the device of the task.
            num_candidates: top tokens to give for each masked position.

        Returns:
            One entry per matching pair.
        """
        with evaluating(self):
            mlm_logits, irm_logits = self.score(batch, self.evaluation_strategy)
        best = mlm_logits.float().softmax(dim=1).topk(num_candidates, dim=1)
        rows = batch["mlm_positions"] // batch["input_ids"].shape[1]
        positions = batch["mlm_positions"] % batch["input_ids"].shape[1]
        tokens = self.backbone.tokenizer.tokens
        reports = []
        for row in batch["matched"].nonzero()[:, 0].tolist():
            indices = (rows == row).nonzero()[:, 0]
            reports.append(
                MaskedReport(
                    batch["id"][row],
                    tokens(batch["input_ids"][row][batch["text_mask"][row]].tolist()),
                    positions[indices].tolist(),
                    [tokens(ids) for ids in best.indices[indices].tolist()],
                    best.values[indices].tolist(),
                    irm_logits[row].sigmoid().item(),
                )
            )
        return reports


def _results(batch: Batch, mlm_logits: Tensor, irm_logits: Tensor) -> dict[str, Tensor | list[str]]:
    """What is kept of each pair: matching, and the summed MLM loss of its masked tokens, in nats, with their number."""
    size, length = batch["input_ids"].shape
    loss = nn.functional.cross_entropy(mlm_logits.detach().float(), batch["mlm_targets"], reduction="none")
    rows = batch["mlm_positions"] // length
    return {
        "id": batch["id"],
        "matched": batch["matched"],
        "match_probability": irm_logits.detach().float().sigmoid(),
        "mlm_loss": loss.new_zeros(size).index_add(0, rows, loss),
        "num_masked": torch.bincount(rows, minlength=size),
    }
