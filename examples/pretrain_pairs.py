"""Pre-train a small backbone on some hundred image-report pairs of your own, from a table, on a CPU.

Everything is small, for a large model soon remembers so few texts: a tiny CNN, short texts, a vocabulary of 250 tokens.
The tokenizer is learnt from the training texts. The validation loss of masked language modelling is printed beside the
unigram entropy of the validation texts: what a model that knows only how often each word occurs would reach at best.

    python examples/pretrain_pairs.py pairs.csv --image-column image --report-column report --patient-column patient
"""

import argparse
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from medvill_pl import AtomicCheckpointIO, PairsDataModule, PretrainingTask, ReportTokenizer, Throughput
from medvill_pl.data.pairs import read_reports

IMAGE_SIZE, MAX_TOKENS = 64, 64


def unigram_entropy(reports: list[str], tokenizer: ReportTokenizer) -> float:
    """Entropy of the tokens of some reports, in nats per token."""
    tokens = [token for ids in tokenizer.encode(reports) for token in ids[:MAX_TOKENS]]
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def main() -> None:
    """Prepare the pairs, learn a tokenizer, pre-train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help=".csv, .jsonl or .parquet")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--report-column", default="report")
    parser.add_argument("--patient-column")
    parser.add_argument("--image-root", help="folder of the images (default: the table's)")
    parser.add_argument("--output", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--epochs", type=int, default=120)
    options = parser.parse_args()

    seed_everything(0)
    columns = {name: getattr(options, name) for name in ("image_column", "report_column", "patient_column")}
    files = {"image_root": options.image_root, "corpus": str(options.output / "corpus")}
    tokenizer_path = options.output / "tokenizer"
    # Prepared before there is a task to take the image size from: the tokenizer is learnt from the training split.
    alone = PairsDataModule(
        options.table, tokenizer="synthetic", image_size=IMAGE_SIZE, val_fraction=0.15, **columns, **files
    )
    alone.prepare_data()
    tokenizer = ReportTokenizer.train(read_reports(options.output / "corpus", "report"), vocab_size=250)
    tokenizer.save(tokenizer_path)

    data = PairsDataModule(
        options.table,
        val_fraction=0.15,
        batch_size=16,
        negatives="labels",
        num_workers=0,
        **columns,
        **files,
    )
    task = PretrainingTask(
        backbone={
            "image_encoder": "resnet_tiny",
            "image_size": IMAGE_SIZE,
            "tokenizer": str(tokenizer_path),
            "max_tokens": MAX_TOKENS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 256,
            "dropout": 0.25,
        },
        lr=3e-3,
        warmup_steps=200,
        mlm_probability=0.3,
        mlm_on_non_matching=True,
        num_visual_samples=4,
    )
    best = ModelCheckpoint(monitor="val/mlm_loss", filename="best")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        gradient_clip_val=1.0,
        log_every_n_steps=5,
        logger=CSVLogger(str(options.output)),
        callbacks=[best, Throughput(every_n_steps=10)],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(task, datamodule=data)
    entropy = unigram_entropy(list(data.datasets["val"].examples.reports), tokenizer)
    loss = float(best.best_model_score)
    print(f"MLM validation loss {loss:.2f} nats per token, unigram entropy {entropy:.2f}: {best.best_model_path}")


if __name__ == "__main__":
    main()
