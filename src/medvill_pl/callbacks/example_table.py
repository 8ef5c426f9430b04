"""What is shown and written while a run goes on: throughput, example tables, predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from medvill_pl.batch import Batch
from medvill_pl.evaluation.figures import attention_on_image, overlay
from medvill_pl.masks import MaskStrategy
from medvill_pl.models.decoding.generate import token_attention
from medvill_pl.models.medvill import MedViLL
from medvill_pl.tasks.classification import ClassificationTask
from medvill_pl.tasks.generation import GenerationTask
from medvill_pl.tasks.pretraining import PretrainingTask


@runtime_checkable
class _Shows(Protocol):
    backbone: MedViLL

    def example_rows(self, batch: Batch) -> Sequence[Mapping[str, object]]: ...


class ExampleTable(Callback):
    """Sends a table of examples to Weights & Biases after validation: image, attention, and what the task shows.

    The attention on the image is laid over it: that of CLS and, where the task predicts words, that of the word that
    looks at the image most; mean over the heads of the last layer.
    Text and images of a credentialed corpus are not sent, and a corpus that does not say counts as
    credentialed: the callback warns and stays silent, unless ``allow_credentialed`` is set.

    Args:
        num_examples: rows of the table.
        allow_credentialed: send examples of a credentialed corpus too. Its terms may forbid it.
    """

    def __init__(self, num_examples: int = 8, allow_credentialed: bool = False) -> None:
        self.num_examples, self.allow_credentialed = num_examples, allow_credentialed
        self._batch: Batch | None = None
        self._is_on = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide whether examples are sent, and say why not."""
        data = getattr(trainer, "datamodule", None)
        self._is_on = False
        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            rank_zero_warn("ExampleTable sends nothing: it needs a WandbLogger")
        elif getattr(data, "is_credentialed", True) and not self.allow_credentialed:
            rank_zero_warn(
                f"ExampleTable sends nothing: the corpus {getattr(data, 'name', '(unknown)')} is credentialed, so its "
                "text and images must not leave this machine; if its terms permit it, set allow_credentialed"
            )
        elif not isinstance(pl_module, _Shows):
            rank_zero_warn(f"ExampleTable sends nothing: {type(pl_module).__name__} has no method show")
        else:
            self._is_on = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the middle batch, whose texts have the usual length."""
        num_batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        if self._is_on and batch_idx == int(num_batches[dataloader_idx]) // 2:
            self._batch = batch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the table, from the first process."""
        batch, self._batch = self._batch, None
        if batch is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = table_rows(cast(_Shows, pl_module), batch, self.num_examples)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("val/examples", columns=list(rows[0]), data=[_for_wandb(row) for row in rows])


def table_rows(task: _Shows, batch: Batch, num_examples: int) -> list[dict[str, object]]:
    """What a task shows of a batch, with the attention of CLS and, where the task predicts words, of a word.

    Attention is the mean over the heads of the last layer. The word is the one that looks at the image most: of
    those that were hidden in pre-training, of the whole reference in report generation.

    Returns:
        Rows with ``image`` (uint8, shape ``(H, W)``), ``attention of CLS`` (uint8, shape ``(H, W, 3)``), ``word`` and
        ``attention of the word`` where there is one, and what the task shows.
    """
    shown = list(task.example_rows(batch))[:num_examples]
    of_cls, of_words = _attention(task, batch)
    rows = []
    for row in shown:
        place = batch["id"].index(str(row["id"]))
        film = batch["image"][place, 0].cpu().numpy()
        pictures: dict[str, object] = {"image": film, "attention of CLS": overlay(film, of_cls[place])}
        if of_words is not None:
            tokens = task.backbone.tokenizer.tokens(batch["input_ids"][place].tolist())
            best = _most_looking(tokens, of_words[place].sum((1, 2)).tolist())
            pictures["word"] = tokens[best]
            pictures["attention of the word"] = overlay(film, of_words[place, best])
        rows.append({"id": row["id"], **pictures, **row})
    return rows


def _most_looking(tokens: Sequence[str], shares: Sequence[float]) -> int:
    """The place of the word piece that looks at the image most; of a punctuation mark only where there is no other."""
    return max(range(len(tokens)), key=lambda at: (shares[at] > 0 and tokens[at].strip("#").isalnum(), shares[at]))


def _attention(task: _Shows, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Attention on the image as the task runs its backbone: of CLS ``(B, h, w)``, of words ``(B, T, h, w)`` or None."""
    inputs = {"images": batch["image"], "input_ids": batch["input_ids"], "text_mask": batch["text_mask"]}
    strategy, of_words = MaskStrategy.BIDIRECTIONAL, None
    if isinstance(task, PretrainingTask):
        inputs["input_ids"], strategy = batch["mlm_input_ids"], task.evaluation_strategy
    elif isinstance(task, GenerationTask):
        strategy = MaskStrategy.SEQ2SEQ
        of_words = token_attention(task.backbone, **inputs)[:, -1].mean(1).nan_to_num()
    elif isinstance(task, ClassificationTask) and not task.use_report:
        inputs |= {name: inputs[name][:, :0] for name in ("input_ids", "text_mask")}
    weights = task.backbone.attention_weights(**inputs, mask_strategy=strategy)
    maps = attention_on_image(weights, task.backbone.num_visual)[:, -1].mean(1)
    if isinstance(task, PretrainingTask) and strategy is not MaskStrategy.NON_CROSSING:  # whose words see no image
        is_hidden = torch.zeros_like(batch["text_mask"]).flatten()
        is_hidden[batch["mlm_positions"]] = True
        of_words = maps[:, 1:].flatten(2) * is_hidden.view_as(batch["text_mask"])[..., None]
    return maps[:, 0], None if of_words is None else of_words.reshape(*of_words.shape[:2], *maps.shape[2:])


def _for_wandb(row: Mapping[str, object]) -> list[object]:
    import wandb

    return [wandb.Image(value) if isinstance(value, np.ndarray) else value for value in row.values()]
