"""The runs of the demo: the image encoder, pre-training, and a task with its test."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from medvill_pl import BaseDataModule, BaseTask, Batch, ImageClassifier, MedViLL, PretrainingTask, Results, ResultTable
from medvill_pl.demo.settings import BACKBONE, Budget, Data, make_classifier, make_pretraining


class History(Callback):
    """Keeps the losses of pre-training.

    Attributes:
        train: MLM and IRM loss of each training step.
        val: step and loss of each validation.
    """

    def __init__(self) -> None:
        self.train: dict[str, list[float]] = {"mlm": [], "irm": []}
        self.val: dict[str, list[tuple[int, float]]] = {"mlm": [], "irm": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the losses of the step."""
        for name, losses in self.train.items():
            losses.append(float(trainer.callback_metrics[f"train/{name}_loss_step"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the losses of the validation split."""
        for name, losses in self.val.items():
            losses.append((trainer.global_step, float(trainer.callback_metrics[f"val/{name}_loss"])))


def make_trainer(folder: Path, *callbacks: Callback, has_bar: bool = False, **arguments: Any) -> Trainer:
    """A trainer that leaves nothing behind but the results of a test, in ``folder``."""
    bar = [TQDMProgressBar(refresh_rate=20)] if has_bar else []
    return Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=has_bar,
        default_root_dir=folder,
        callbacks=[*callbacks, ResultTable(time_inference=False), *bar],
        **arguments,
    )


def train_image_encoder(data: Data, budget: Budget, folder: Path, seed: int) -> ImageClassifier:
    """Teach a small image encoder to see, on findings and reports of other patients, and test its own findings."""
    classifier = make_classifier(budget, seed)
    steps = budget.image_encoder_steps
    fit(classifier, data.image_encoder, make_trainer(folder, has_bar=True, max_steps=steps, limit_val_batches=0))
    test(classifier, data.classification, folder)
    return classifier.eval()


def start_backbone(classifier: ImageClassifier, images: Tensor) -> MedViLL:
    """A backbone around the trained image encoder, which computes the features of each image once."""
    backbone = MedViLL(**BACKBONE)
    backbone.image_encoder.load_state_dict(classifier.image_encoder.state_dict())
    backbone.cache_features(images)
    return backbone


def pretrain(backbone: MedViLL, data: Data, epochs: int, folder: Path, seed: int) -> tuple[PretrainingTask, History]:
    """Pre-train a backbone, and tell how its losses fell."""
    seed_everything(seed, verbose=False)
    task, history = make_pretraining(backbone, seed), History()
    fit(task, data.pretraining, make_trainer(folder, history, has_bar=True, max_epochs=epochs, gradient_clip_val=1.0))
    return task.eval(), history


class FineTuned(NamedTuple):
    """What came of a task.

    Attributes:
        results: of its test.
        weights: of the task.
        seconds: how long training and test took.
    """

    results: Results
    weights: dict[str, Tensor]
    seconds: float


def fine_tune(task: BaseTask, data: BaseDataModule, epochs: int, folder: Path, seed: int) -> FineTuned:
    """Train a task and test it, in a process of its own."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    fit(task, data, make_trainer(folder, max_epochs=epochs, gradient_clip_val=1.0, limit_val_batches=0))
    test(task, data, folder)
    return FineTuned(task.results, task.state_dict(), time.perf_counter() - start)


def fit(task: BaseTask, data: BaseDataModule, trainer: Trainer) -> None:
    """Train a task."""
    trainer.fit(task, datamodule=data)
    _forget_trainer(task, data)


def test(task: BaseTask, data: BaseDataModule, folder: Path) -> None:
    """Test a task; its results replace those of an earlier run in the folder."""
    for ending in ("parquet", "json"):
        (folder / f"test.{ending}").unlink(missing_ok=True)
    make_trainer(folder).test(task, datamodule=data, verbose=False)
    _forget_trainer(task, data)


def _forget_trainer(task: BaseTask, data: BaseDataModule) -> None:
    """Lightning leaves the trainer with both; it would go along with each copy, and to other processes."""
    task.trainer = None
    data.trainer = None
