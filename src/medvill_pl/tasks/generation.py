"""Report generation: a report for an image, word after word (MedViLL, Sec. IV-C.4)."""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvill_pl.backbone import BackboneConfig
from medvill_pl.batch import Batch
from medvill_pl.decoding import DecodingConfig, generate, predict_words, word_attention, word_log_likelihood
from medvill_pl.evaluation.generation import best_constant_report
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.masks import MaskStrategy
from medvill_pl.tasks.base import BaseTask, Schedule, StepOutput, hide_words, pin_hidden_words

Objective = Literal["mlm", "every_word"]
Labeler = Callable[[Sequence[str]], NDArray[np.floating[Any]]]


class GenerationTask(BaseTask):
    """Fine-tunes a backbone to write the report of an image, under seq2seq whatever it was pre-trained with.

    Training hides words as pre-training does, and the closing SEP_L of half the reports, so that the model learns
    to stop (``objective="mlm"``, the paper). ``objective="every_word"`` instead predicts every word from the words
    before it, as decoding does: as many targets as the report has words, at about twice the cost of a step.

    Validation gives the perplexity; a test also writes the reports and compares them: BLEU, clinical
    efficacy through a labeler, diversity, and the best report that could be written for every image.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        objective: what a training step predicts.
        mlm_probability: share of word pieces to hide under ``mlm``.
        decoding: how reports are written; what is left out keeps the default of ``DecodingConfig``.
        return_attention: let ``predict`` give the attention of each word on the image.
        labeler: import path of a labeler: a class without arguments whose objects turn a list of texts into
            labels, floating point, shape ``(N, 14)``, NaN = not mentioned.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases and norms.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.
    """

    results_metrics = "medvill_pl.evaluation.generation.generation_scores"
    unused = ("text_cls_place", "pooler")

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        objective: Objective = "mlm",
        mlm_probability: float = 0.15,
        decoding: DecodingConfig | None = None,
        return_attention: bool = False,
        labeler: str = "medvill_pl.CheXpertLabeler",
        lr: float = 3e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, backbone_ckpt, lr, weight_decay, warmup_steps, compile, seed, schedule)
        backbone = dict(self.backbone.hparams)  # type: ignore[assignment]
        self.save_hyperparameters()
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability must be between 0 and 1, not {mlm_probability}")
        self.objective, self.mlm_probability = objective, mlm_probability
        self.decoding = decoding or {}
        self.return_attention = return_attention
        self._labeler_path = labeler
        # Lightning warns of the hook below wherever there is a data module.
        warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")

    @cached_property
    def _labeler(self) -> Labeler:
        module, _, name = self._labeler_path.rpartition(".")
        try:
            return cast(Labeler, getattr(import_module(module), name)())
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"labeler: {self._labeler_path!r} is no importable class ({error})") from error

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Hide words for training, on the CPU, so that the device never waits to learn how many."""
        if not self.trainer.training or self.objective != "mlm":
            return batch
        everywhere = torch.ones_like(batch["matched"])
        batch = hide_words(batch, self.backbone.tokenizer, everywhere, self.mlm_probability, ends=~batch["is_cut"])
        return pin_hidden_words(batch) if self.device.type == "cuda" else batch

    # -- likelihood --------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> StepOutput:
        visual_tokens = self.backbone.encode_image(batch["image"])
        if self.training:
            loss = self._mlm_loss if self.objective == "mlm" else self._every_word_loss
            return StepOutput(loss(batch, visual_tokens))
        counted = self._counted(batch)
        likelihood = word_log_likelihood(self.backbone, visual_tokens, batch["input_ids"], batch["text_mask"])
        of_reports = (likelihood * counted).sum(1)
        results: dict[str, Any] = {"id": batch["id"], "reference": batch["report"]}
        results |= {"log_likelihood": of_reports, "num_tokens": counted.sum(1)}
        if self.trainer.testing:
            predictions = self.write(visual_tokens, batch["seed"])
            results |= {"prediction": predictions, "prediction_labels": self._labels(predictions)}
            results |= {"reference_labels": self._labels(batch["report"])}
        return StepOutput(-of_reports.sum() / counted.sum(), results=results)

    def _counted(self, batch: Batch) -> Tensor:
        """True at the tokens to be predicted: words, and the closing SEP_L unless the report was cut; ``(B, T)``."""
        is_last = (
            torch.arange(batch["text_mask"].shape[1], device=self.device) == batch["text_mask"].sum(1)[:, None] - 1
        )
        return batch["text_mask"] & ~(is_last & batch["is_cut"][:, None])

    def _mlm_loss(self, batch: Batch, visual_tokens: Tensor) -> Tensor:
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
        counted = self._counted(batch)
        hidden = predict_words(self.backbone, visual_tokens, batch["input_ids"], batch["text_mask"])
        logits = self.backbone.mlm_logits(hidden[counted]).float()
        return nn.functional.cross_entropy(logits, batch["input_ids"][counted])

    # -- writing -----------------------------------------------------------------------------------

    def write(self, visual_tokens: Tensor, seeds: Tensor) -> list[str]:
        """Write a report for each image.

        Args:
            visual_tokens: what ``backbone.encode_image`` gives, shape ``(B, K, d)``.
            seeds: seed of each row, for sampling, int64, shape ``(B,)``.
        """
        generated = generate(self.backbone, visual_tokens, seeds=seeds, config=self.decoding)
        return [self.backbone.tokenizer.decode(one.ids) for one in generated]

    def _labels(self, texts: Sequence[str]) -> list[list[float]]:
        labels: list[list[float]] = self._labeler(list(texts)).tolist()
        return labels

    def context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """In a test, the constant report with its labels, as a baseline."""
        examples = self.training_examples() if stage == "test" else None
        if examples is None:
            return {"constant": None}
        constant = best_constant_report(examples.reports)
        return {"constant": constant, "constant_labels": self._labels([constant])[0]}

    def show(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: the reference and the report that is written."""
        return [
            {"id": row["id"], "reference": row["reference"], "prediction": row["prediction"]}
            for row in self.predict_step(batch, 0)
        ]

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Write reports: rows with ``id``, ``reference`` and ``prediction``, as RadEval and ReXrank take them.

        With ``return_attention``, ``words`` and ``attention`` too: each word's share of attention on each place of the
        image, row by row, mean over the heads of the last layer.
        """
        visual_tokens = self.backbone.encode_image(batch["image"])
        generated = generate(self.backbone, visual_tokens, seeds=batch["seed"], config=self.decoding)
        texts = [self.backbone.tokenizer.decode(one.ids) for one in generated]
        rows: list[dict[str, Any]] = [
            {"id": i, "reference": reference, "prediction": text}
            for i, reference, text in zip(batch["id"], batch["report"], texts, strict=True)
        ]
        if self.return_attention:
            for row, tokens, one in zip(rows, visual_tokens, generated, strict=True):
                maps = word_attention(self.backbone, tokens[None], [one.ids])[0]
                row["words"] = self.backbone.tokenizer.tokens(one.ids)
                row["attention"] = [[round(value, 5) for value in each.flatten().tolist()] for each in maps]
        return rows
