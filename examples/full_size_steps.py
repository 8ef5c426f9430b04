"""Run a few optimizer steps of full-size pre-training (ResNet-50 at 512 pixels, 12 layers): time and memory of each.

python examples/full_size_steps.py pairs.csv --tokenizer bert-base-uncased/vocab.txt --steps 5
"""

import argparse
import resource
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from medvill_pl import PairsDataModule, PretrainingTask
from medvill_pl.batch import Batch


class StepReport(Callback):
    """Prints loss, seconds and peak memory of each step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Print what the step took."""
        seconds = time.perf_counter() - self.start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pairs, length = batch["input_ids"].shape
        loss = float(trainer.callback_metrics["train/loss"])
        print(
            f"step {trainer.global_step}: {pairs} pairs of {length} tokens, loss {loss:.3f}, "
            f"{seconds:.1f} s, {memory:.1f} GiB",
            flush=True,
        )


def main() -> None:
    """Prepare the pairs and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help=".csv, .jsonl or .parquet")
    parser.add_argument("--tokenizer", default="bert-base-uncased", help="a hub name, a folder or a vocab.txt")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--report-column", default="report")
    parser.add_argument("--patient-column")
    parser.add_argument("--image-root", help="folder of the images (default: the table's)")
    parser.add_argument("--output", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--num-layers", type=int, default=12)
    options = parser.parse_args()

    seed_everything(0)
    data = PairsDataModule(
        options.table,
        image_column=options.image_column,
        report_column=options.report_column,
        patient_column=options.patient_column,
        image_root=options.image_root,
        corpus=str(options.output / "corpus"),
        batch_size=options.batch_size,
        negatives="labels",
        num_workers=0,
    )
    task = PretrainingTask(backbone={"tokenizer": options.tokenizer, "num_layers": options.num_layers})
    Trainer(
        accelerator="auto",
        devices=1,
        precision=options.precision,
        max_steps=options.steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        callbacks=[StepReport()],
    ).fit(task, datamodule=data)


if __name__ == "__main__":
    main()
