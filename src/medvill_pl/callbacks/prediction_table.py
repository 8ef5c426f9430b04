"""Predictions as a table on disk."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from medvill_pl.callbacks.protocols import Arranges
from medvill_pl.files import free_name, write_atomically
from medvill_pl.runs import gather, run_folder


class PredictionTable(BasePredictionWriter):
    """Writes what ``predict`` gives, rows of all processes together, as ``predictions.csv`` and ``predictions.jsonl``.

    Columns of lists are in the JSON lines only. Images that could not be read are listed in ``rejected.csv`` beside.

    Args:
        path: where to write the CSV; by default into the folder of the run.

    Example:
        >>> from tempfile import mkdtemp
        >>> from medvill_pl import ClassificationTask, SyntheticDataModule
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> table = Path(mkdtemp(), "predictions.csv")
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[PredictionTable(str(table))],
        ...                   enable_progress_bar=False)
        >>> _ = trainer.predict(ClassificationTask(tiny, use_report=False), datamodule=SyntheticDataModule(num_test=3))
        >>> len(table.read_text().splitlines())
        4
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to write over an older table before any work is done.

        Raises:
            FileExistsError: if there is a file at ``path``.
        """
        if stage == "predict" and self.path and Path(self.path).exists():
            raise FileExistsError(f"{self.path} is there already: move it away or give another path")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the file: in the folder of the run, a name that is free."""
        self._target = Path(self.path) if self.path else free_name(run_folder(trainer) / "predictions.csv")

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
        task = pl_module if isinstance(pl_module, Arranges) else None
        rows = list(task.arrange_predictions(rows)) if task else rows
        columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
        self._target.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self._target.with_suffix(".jsonl"), lines.encode())
        write_atomically(self._target, _to_csv(columns, rows))
        rank_zero_info(f"{len(rows):,} predictions are in {self._target}")
        rejected = task.data.rejected if task and task.data else ()
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
