"""What is shown and written while a run goes on: throughput, example tables, predictions."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvill_pl.backbone import MedViLL
from medvill_pl.batch import Batch
from medvill_pl.decoding import word_attention
from medvill_pl.evaluation.figures import attention_on_image, overlay
from medvill_pl.files import write_atomically
from medvill_pl.masks import MaskStrategy
from medvill_pl.results import free_name, gather, run_folder
from medvill_pl.tasks.classification import ClassificationTask
from medvill_pl.tasks.generation import GenerationTask
from medvill_pl.tasks.pretraining import PretrainingTask

_DENSE_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
"""FLOPs a second of NVIDIA GPUs in bfloat16 without sparsity, as the maker states them: the first part that a GPU's
name holds is taken."""


class Throughput(Callback):
    """Logs the speed of training: ``throughput/pairs_per_second`` over all processes.

    On a GPU also ``throughput/memory_gib``, the peak of this process so far, and in bfloat16 on a
    GPU whose peak speed is known ``throughput/mfu``, the model FLOP utilisation: the share of it that
    forward and backward pass of the model use, padding included, recomputation left out. The time
    of validation is not counted.

    Args:
        every_n_steps: batches over which the speed is taken. The device is waited for so often.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be positive, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._begin(None)

    def _begin(self, start: float | None) -> None:
        """Begin a window of batches."""
        self._start, self._pause = start, 0.0
        self._batches, self._pairs, self._flops = 0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._begin(None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause = _now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if self._start is not None:
            self._start += _now(pl_module.device) - self._pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch, and log when the window is full."""
        if self._start is None:  # the first batch is not counted: workers start and kernels are chosen in it
            self._begin(_now(pl_module.device))
            return
        self._batches += 1
        self._pairs += len(batch["id"])
        self._flops += self._count(pl_module, batch)
        if self._batches == self.every_n_steps:
            self._log(trainer, pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left."""
        if self._batches:
            self._log(trainer, pl_module.device)

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        now = _now(device)
        assert self._start is not None
        figures = self._figures(trainer, device, now - self._start)
        for logger in trainer.loggers:  # `self.log` would repeat them at every step until the next window
            logger.log_metrics(figures, step=trainer.global_step)
        self._begin(now)

    def _count(self, task: LightningModule, batch: Batch) -> int:
        """FLOPs of forward and backward pass, which costs twice the forward."""
        backbone = getattr(task, "backbone", None)
        if task.device.type != "cuda" or not isinstance(backbone, MedViLL):
            return 0
        size, length = batch["input_ids"].shape
        return 3 * size * backbone.flops(getattr(task, "num_visual_samples", None), length)

    def _figures(self, trainer: Trainer, device: torch.device, seconds: float) -> dict[str, float]:
        figures = {"throughput/pairs_per_second": self._pairs * trainer.world_size / seconds}
        if device.type == "cuda":
            figures["throughput/memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            name = torch.cuda.get_device_name(device)
            peaks = [peak for part, peak in _DENSE_PEAKS.items() if part in name]
            if peaks and "bf16" in str(trainer.precision):
                figures["throughput/mfu"] = self._flops / seconds / peaks[0]
        return figures


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@runtime_checkable
class _Shows(Protocol):
    backbone: MedViLL

    def show(self, batch: Batch) -> Sequence[Mapping[str, object]]: ...


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
    shown = list(task.show(batch))[:num_examples]
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
        of_words = word_attention(task.backbone, **inputs)[:, -1].mean(1).nan_to_num()
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


class PredictionTable(BasePredictionWriter):
    """Writes what ``predict`` gives, rows of all processes together, as ``predictions.csv`` and ``predictions.jsonl``.

    Columns of lists are in the JSON lines only. Images that could not be read are listed in ``rejected.csv`` beside.

    Args:
        path: where to write the CSV; by default into the folder of the run.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to write over an older table before any work is done.

        Raises:
            FileExistsError: if there is a file at ``path``.
        """
        self._target = Path(self.path) if self.path else run_folder(trainer) / "predictions.csv"
        if stage == "predict" and self._target.exists():
            raise FileExistsError(f"{self._target} is there already: move it away or give another path")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Sequence[Mapping[str, object]]],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the rows of all processes and write them, sorted by identifier."""
        rows = gather([row for batch in predictions for row in batch], trainer)
        if not trainer.is_global_zero:
            return
        rows = list(getattr(pl_module, "arrange_predictions", list)(rows))
        columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
        self._target.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self._target.with_suffix(".jsonl"), lines.encode())
        write_atomically(self._target, _to_csv(columns, rows))
        rank_zero_info(f"{len(rows):,} predictions are in {self._target}")
        rejected = getattr(getattr(trainer, "datamodule", None), "rejected", [])
        if rejected:
            path = free_name(self._target.with_name("rejected.csv"))
            write_atomically(path, _to_csv(list(rejected[0]), rejected))
            rank_zero_info(f"images that could not be read: {len(rejected):,}, see {path}")


def _to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
