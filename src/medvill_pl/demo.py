"""The demo: a small backbone pre-trained on the embedded corpus in minutes, and a page that shows what it learnt."""

import logging
import math
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, multilabel_auroc
from tqdm import tqdm

from medvill_pl import page
from medvill_pl.backbone import BackboneConfig
from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.jobs import quieten
from medvill_pl.masks import MaskStrategy
from medvill_pl.synthetic.datamodule import SyntheticDataModule, SyntheticExamples
from medvill_pl.tasks.pretraining import MaskedReport, PretrainingTask
from medvill_pl.vision import VisionTrunk, make_trunk

NUM_TRAIN, NUM_TEST = 4000, 400
TRUNK_STEPS, EPOCHS = 600, 4
BACKBONE: BackboneConfig = {
    "vision": "resnet_small",
    "image_size": 128,
    "tokenizer": "synthetic",
    "max_words": 120,
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 512,
    "dropout": 0.0,
}


def run(output: Path, seed: int = 0) -> None:
    """Pre-train, test and write ``report.html``.

    Args:
        output: folder of the page and the backbone.
        seed: seed of weights, order and masking.

    Raises:
        OSError: if the folder cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    quieten()
    logging.getLogger("lightning").setLevel(logging.WARNING)
    start = time.perf_counter()
    seed_everything(seed)
    data = SyntheticDataModule(
        num_train=NUM_TRAIN,
        num_val=NUM_TEST,
        num_test=NUM_TEST,
        batch_size=16,
        negatives="labels",
        max_words=120,
        seed=seed,
    )
    data.setup("fit")
    data.setup("test")
    weights = output / "trunk.pt"
    auroc = warm_up_trunk(data, weights)
    task = PretrainingTask(
        backbone={**BACKBONE, "vision_weights": str(weights)},
        mask_strategy=MaskStrategy.BAR.value,
        num_visual_samples=None,
        mlm_probability=0.3,
        lr=1e-3,
        warmup_steps=100,
        seed=seed,
    )
    history = History()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[history, TQDMProgressBar(refresh_rate=10)],
    )
    trainer.fit(task, datamodule=data)
    task.backbone.save_pretrained(output / "backbone")
    task.eval()
    ...
