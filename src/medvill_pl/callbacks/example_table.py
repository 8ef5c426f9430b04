"""A table of examples for Weights & Biases: images, attention, and what the task makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from medvill_pl.batch import Batch
from medvill_pl.callbacks.protocols import ShowsExamples
from medvill_pl.evaluation.figures import overlay


class ExampleTable(Callback):
    """Sends a table of examples to Weights & Biases after validation: image, attention, and what the task shows.

    The attention on the image is laid over it: that of CLS and, where the task predicts tokens, that of the token
    that looks at the image most; mean over the heads of the last layer.
    Text and images of a credentialed corpus are not sent, and a corpus that does not say counts as
    credentialed: the callback warns and stays silent, unless ``allow_credentialed`` is set.

    Args:
        num_examples: rows of the table.
        allow_credentialed: send examples of a credentialed corpus too. Its terms may forbid it.

    Example:
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ExampleTable(num_examples=4)])
    """

    def __init__(self, num_examples: int = 8, allow_credentialed: bool = False) -> None:
        self.num_examples, self.allow_credentialed = num_examples, allow_credentialed
        self._batch: Batch | None = None
        self._is_on = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide whether examples are sent, and say why not."""
        self._is_on = False
        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            rank_zero_warn("ExampleTable sends nothing: it needs a WandbLogger")
        elif not isinstance(pl_module, ShowsExamples):
            rank_zero_warn(f"ExampleTable sends nothing: {type(pl_module).__name__} has no example_rows")
        elif (pl_module.data is None or pl_module.data.is_credentialed) and not self.allow_credentialed:
            name = pl_module.data.name if pl_module.data else "(unknown)"
            rank_zero_warn(
                f"ExampleTable sends nothing: the corpus {name} is credentialed, so its text and images must not leave "
                "this machine; if its terms permit it, set allow_credentialed"
            )
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
        rows = table_rows(cast(ShowsExamples, pl_module), batch, self.num_examples)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("val/examples", columns=list(rows[0]), data=[_for_wandb(row) for row in rows])


def table_rows(task: ShowsExamples, batch: Batch, num_examples: int) -> list[dict[str, object]]:
    """What a task shows of a batch, with the attention of CLS and, where the task predicts tokens, of a token.

    The token is the one that looks at the image most: of those that were masked in pre-training, of the whole
    reference in report generation.

    Args:
        task: a task of this library, or one that offers the same.
        batch: as validation gives it.
        num_examples: rows at most.

    Returns:
        Rows with ``image`` (uint8, shape ``(H, W)``), ``attention of CLS`` (uint8, shape ``(H, W, 3)``), ``token`` and
        ``attention of the token`` where there is one, and what the task shows.
    """
    attention = task.image_attention(batch)
    rows = []
    for example in list(task.example_rows(batch))[:num_examples]:
        index = batch["id"].index(str(example["id"]))
        image = batch["image"][index, 0].cpu().numpy()
        pictures: dict[str, object] = {"image": image, "attention of CLS": overlay(image, attention.cls[index])}
        if attention.tokens is not None:
            tokens = task.tokenizer.tokens(batch["input_ids"][index].tolist())
            best = _most_looking(tokens, attention.tokens[index].sum((1, 2)).tolist())
            pictures["token"] = tokens[best]
            pictures["attention of the token"] = overlay(image, attention.tokens[index, best])
        rows.append({"id": example["id"], **pictures, **example})
    return rows


def _most_looking(tokens: Sequence[str], shares: Sequence[float]) -> int:
    """Index of the token that looks at the image most; of a punctuation mark only where there is no other."""
    return max(range(len(tokens)), key=lambda at: (shares[at] > 0 and tokens[at].strip("#").isalnum(), shares[at]))


def _for_wandb(row: Mapping[str, object]) -> list[object]:
    import wandb

    return [wandb.Image(value) if isinstance(value, np.ndarray) else value for value in row.values()]
