"""Report generation: a report for an image, token after token (MedViLL, Sec. IV-C.4)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvill_pl.batch import Batch, Split
from medvill_pl.evaluation.generation import best_constant_report
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.labeler.base import Labeler, check_labels, load_labeler
from medvill_pl.masks import MaskStrategy
from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.models.decoding.generate import generate
from medvill_pl.models.decoding.likelihood import log_likelihood, mask_query_hidden, token_attention
from medvill_pl.models.decoding.search import Generated
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.attention import ImageAttention, last_layer_maps
from medvill_pl.tasks.backbone_task import BackboneTask
from medvill_pl.tasks.masking import TokenMasking
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput

Objective = Literal["mlm", "every_word"]


class GenerationTask(BackboneTask):
    """Fine-tunes a backbone to write the report of an image, under seq2seq whatever it was pre-trained with.

    Training masks tokens as pre-training does, and the closing SEP_L of half the reports, so that the model learns
    to stop (``objective="mlm"``, the paper). ``objective="every_word"`` instead predicts every token from the tokens
    before it, as decoding does: as many targets as the report has tokens, at about twice the cost of a step.

    Validation gives the perplexity; a test also writes the reports and compares them: BLEU, clinical
    efficacy through a labeler, diversity, and the best report that could be written for every image.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        objective: what a training step predicts.
        mlm_probability: share of tokens to mask under ``mlm``.
        decoding: how reports are written: a :class:`DecodingConfig`, or its values by name; what is left out keeps its
            default.
        return_attention: let ``predict`` give the attention of each token on the image.
        labeler: import path of a labeler: a class without arguments whose objects turn a list of texts into
            labels, floating point, shape ``(N, 14)``, NaN = not mentioned.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Example:
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> task = GenerationTask(tiny, decoding={"method": "beam", "num_beams": 2})
        >>> task.decoding.num_beams
        2
    """

    monitor, mode = "val/perplexity", "min"
    score_fn = "medvill_pl.evaluation.generation.generation_scores"
    head_parameters = ("mlm_head",)
    unused_parameters = ("text_cls_position_embedding", "pooler")

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        objective: Objective = "mlm",
        mlm_probability: float = 0.15,
        decoding: DecodingConfig | dict[str, Any] | None = None,
        return_attention: bool = False,
        labeler: str = "medvill_pl.CheXpertLabeler",
        lr: float = 3e-5,
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
        self.decoding = DecodingConfig.of(decoding)
        decoding = asdict(self.decoding)  # plain values, which a checkpoint can hold
        self.save_hyperparameters()
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability must be between 0 and 1, not {mlm_probability}")
        if objective not in ("mlm", "every_word"):
            raise ValueError(f"unknown objective {objective!r}: choose one of mlm, every_word")
        self.objective, self.mlm_probability = objective, mlm_probability
        self.return_attention = return_attention
        self._labeler_path = labeler

    @cached_property
    def _labeler(self) -> Labeler:
        return load_labeler(self._labeler_path)

    def setup(self, stage: str) -> None:
        """Load the labeler too, so that a wrong name is an error before hours of training."""
        super().setup(stage)
        if stage in ("fit", "test"):
            _ = self._labeler

    def batch_transform(self, split: Split) -> Callable[[Batch], Batch] | None:
        """Mask tokens for training under ``mlm``."""
        return self._masking if split == "train" and self.objective == "mlm" else None

    @property
    def _masking(self) -> TokenMasking:
        return TokenMasking(self.backbone.tokenizer, self.mlm_probability, non_matching=True, ends=True)

    # -- likelihood --------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        visual_tokens = self.backbone.encode_image(batch["image"])
        if self.training:
            loss = self._mlm_loss if self.objective == "mlm" else self._every_word_loss
            return StepOutput(loss(batch, visual_tokens))
        likelihood = log_likelihood(
            self.backbone,
            visual_tokens=visual_tokens,
            input_ids=batch["input_ids"],
            text_mask=batch["text_mask"],
            has_end=~batch["is_truncated"],
        )
        counted = ~likelihood.isnan()
        of_reports = likelihood.nansum(1)
        results: dict[str, Any] = {"id": batch["id"], "reference": batch["report"]}
        results |= {"log_likelihood": of_reports, "num_tokens": counted.sum(1)}
        if self.trainer.testing:
            predictions = self._texts(self.write(visual_tokens, batch["seed"]))
            results |= {"prediction": predictions, "prediction_labels": self._labels(predictions)}
            results |= {"reference_labels": self._labels(batch["report"])}
        return StepOutput(-of_reports.sum() / counted.sum(), results=results, loss_weight=int(counted.sum()))

    def _mlm_loss(self, batch: Batch, visual_tokens: Tensor) -> Tensor:
        if "mlm_input_ids" not in batch:  # of a user's own loader
            batch = self._masking(batch)
        output = self.backbone(
            visual_tokens=visual_tokens,
            input_ids=batch["mlm_input_ids"],
            text_mask=batch["text_mask"],
            mask_strategy=MaskStrategy.SEQ2SEQ,
        )
        hidden = output.text.flatten(0, 1)[batch["mlm_positions"]]
        logits = self.backbone.mlm_logits(hidden).float()
        return nn.functional.cross_entropy(logits, batch["mlm_targets"], reduction="sum") / max(1, len(logits))

    def _every_word_loss(self, batch: Batch, visual_tokens: Tensor) -> Tensor:
        mask = batch["text_mask"]
        is_last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1)[:, None] - 1
        counted = mask & ~(is_last & batch["is_truncated"][:, None])
        hidden = mask_query_hidden(self.backbone, visual_tokens, batch["input_ids"])
        logits = self.backbone.mlm_logits(hidden[counted]).float()
        return nn.functional.cross_entropy(logits, batch["input_ids"][counted])

    # -- writing -----------------------------------------------------------------------------------

    def write(self, visual_tokens: Tensor, seeds: Tensor) -> list[Generated]:
        """Write a report for each image.

        Args:
            visual_tokens: what ``backbone.encode_image`` gives, shape ``(B, K, d)``.
            seeds: seed of each image, for sampling, int64, shape ``(B,)``.
        """
        seeds_or_none = seeds if self.decoding.method == "sample" else None
        return generate(self.backbone, self.decoding, visual_tokens=visual_tokens, seeds=seeds_or_none)

    def _texts(self, generated: Sequence[Generated]) -> list[str]:
        return [self.backbone.tokenizer.decode(one.ids) for one in generated]

    def _labels(self, texts: Sequence[str]) -> list[list[float]]:
        labels: list[list[float]] = check_labels(self._labeler(list(texts)), len(texts)).tolist()
        return labels

    def score_context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """In a test, the constant report with its labels, as a baseline."""
        examples = self.data.training_examples() if self.data and stage == "test" else None
        if examples is None:
            return {"constant": None}
        constant = best_constant_report(examples.reports)
        return {"constant": constant, "constant_labels": self._labels([constant])[0]}

    def image_attention(self, batch: Batch) -> ImageAttention:
        """Where CLS looks, and where the MASK looked that each token of the reference is predicted from."""
        inputs = {"images": batch["image"], "input_ids": batch["input_ids"], "text_mask": batch["text_mask"]}
        cls = last_layer_maps(self.backbone, **inputs, strategy=MaskStrategy.SEQ2SEQ)[:, 0]
        tokens = token_attention(self.backbone, **inputs)[:, -1].mean(1).nan_to_num()
        return ImageAttention(cls, tokens.reshape(*tokens.shape[:2], *cls.shape[1:]))

    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: the reference and the report that is written."""
        return [
            {"id": row["id"], "reference": row["reference"], "prediction": row["prediction"]}
            for row in self.predict_step(batch, 0)
        ]

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Write reports: rows with ``id``, ``reference`` and ``prediction``, as RadEval and ReXrank take them.

        With ``return_attention``, ``tokens`` and ``attention`` too: each token's share of attention on each position of
        the feature map, row by row, mean over the heads of the last layer.
        """
        visual_tokens = self.backbone.encode_image(batch["image"])
        generated = self.write(visual_tokens, batch["seed"])
        texts = self._texts(generated)
        rows: list[dict[str, Any]] = [
            {"id": i, "reference": reference, "prediction": text}
            for i, reference, text in zip(batch["id"], batch["report"], texts, strict=True)
        ]
        if self.return_attention:
            for row, tokens, one in zip(rows, visual_tokens, generated, strict=True):
                row |= {
                    "tokens": self.backbone.tokenizer.tokens(one.ids),
                    "attention": self._attention(tokens, one.ids),
                }
        return rows

    def _attention(self, visual_tokens: Tensor, ids: list[int]) -> list[list[float]]:
        """The attention of each token on the image, one list per token."""
        if not ids:
            return []
        input_ids = torch.tensor([ids], device=visual_tokens.device)
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        weights = token_attention(self.backbone, input_ids=input_ids, text_mask=mask, visual_tokens=visual_tokens[None])
        on_image = weights[0, -1].mean(0).tolist()
        return [[round(share, 5) for share in token] for token in on_image]
