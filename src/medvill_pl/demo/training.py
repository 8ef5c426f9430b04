"""Training of the demo: a small CNN, a backbone on top of it, and the four tasks on top of that."""

import copy
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from tqdm import tqdm

from medvill_pl.batch import Batch
from medvill_pl.cli.quiet import quieten
from medvill_pl.data.module import BaseDataModule
from medvill_pl.evaluation.results import Results
from medvill_pl.models.image_encoder import ImageEncoder, make_cnn
from medvill_pl.models.medvill import BackboneConfig, MedViLL, TrainingCorpus
from medvill_pl.synthetic.datamodule import SyntheticDataModule, SyntheticExamples
from medvill_pl.tasks.base import BaseTask
from medvill_pl.tasks.pretraining import PretrainingTask
from medvill_pl.tasks.result_table import ResultTable

IMAGE_SIZE = 128
BACKBONE: BackboneConfig = {
    "image_encoder": "resnet_small",
    "freeze_image_encoder_stages": 5,
    "image_size": IMAGE_SIZE,
    "tokenizer": "synthetic",
    "max_tokens": 120,
    "hidden_size": 96,
    "num_layers": 2,
    "num_heads": 8,
    "intermediate_size": 192,
    "dropout": 0.0,
}


FILMS_A_STEP = 48
"""Films of a step of a CNN alone."""
MAX_SHIFT = 4
"""Pixels by which the films of such a step are shifted at most, so that a CNN does not learn them by heart."""


class Budget(NamedTuple):
    """How much the demo does.

    Attributes:
        num_cnn: films of other patients that the CNN alone is trained on.
        num_train: pairs to train on.
        num_test: pairs of the validation and of the test split.
        num_retrieved: pairs of the test split that are searched.
        image_encoder_steps: optimizer steps of the CNN alone, with ``FILMS_A_STEP`` films each.
        pretraining: epochs of pre-training.
        classification: epochs of fine-tuning for this task, as the next three.
        retrieval: likewise.
        vqa: likewise.
        generation: likewise.
    """

    num_cnn: int = 5000
    num_train: int = 8000
    num_test: int = 400
    num_retrieved: int = 100
    image_encoder_steps: int = 1100
    pretraining: int = 5
    classification: int = 2
    retrieval: int = 1
    vqa: int = 2
    generation: int = 4


def train_image_encoder(data: SyntheticDataModule, steps: int) -> ImageEncoder:
    """Teach a small CNN to see: it predicts the findings of each training film and the words of its report.

    It stands in for the ImageNet weights that the paper's trunk starts from, which no machine can
    make in a minute.
    """
    trunk = ImageEncoder(make_cnn("resnet_small").to(memory_format=torch.channels_last))
    films, labels = training_films(data)
    targets = torch.cat([labels, _report_words(data)], dim=1)
    weights = torch.full_like(targets[0], 0.2)
    weights[: labels.shape[1]] = 1.0  # findings weigh more than a word, of which there are many
    head = nn.Linear(trunk.channels, targets.shape[1])

    def logits_of(films: Tensor) -> Tensor:
        logits: Tensor = head(trunk(films).mean((2, 3)))
        return logits

    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in tqdm(range(steps), "training the CNN"):
        step_on_targets(logits_of, films, targets, optimizer, weights)
        schedule.step()
    return trunk


def training_films(data: SyntheticDataModule) -> tuple[Tensor, Tensor]:
    """All training films, uint8, shape ``(N, 1, H, W)``, and their positive findings, float32, shape ``(N, 14)``."""
    examples = cast(SyntheticExamples, data.datasets["train"].examples)
    return examples.images(), torch.from_numpy((examples.labels == 1).astype(np.float32))


def _report_words(data: SyntheticDataModule) -> Tensor:
    """Which words each training report has, of those that neither nearly all nor nearly none have; 0 or 1, float32."""
    encoded = data.tokenizer.encode(data.datasets["train"].examples.reports)
    words = torch.zeros(len(encoded), data.tokenizer.vocab_size)
    for row, ids in zip(words, encoded, strict=True):
        row[ids] = 1
    share = words.mean(0)
    return words[:, (share > 0.005) & (share < 0.95)]


def step_on_targets(
    logits_of: Callable[[Tensor], Tensor],
    films: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    weights: Tensor | None = None,
) -> None:
    """One optimizer step of a CNN on films drawn at random, shifted a little.

    Args:
        logits_of: the CNN with its head, from films to logits.
        films: uint8, shape ``(N, 1, H, W)``.
        targets: 0 or 1, float32, shape ``(N, T)``.
        optimizer: of its weights.
        weights: of each target in the loss, shape ``(T,)``; equal by default.
    """
    chosen = torch.randint(len(films), (FILMS_A_STEP,))
    down, right = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,)).tolist()
    shifted = films[chosen].roll((down, right), (2, 3)).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=IS_BF16_FASTER):
        logits = logits_of(shifted)
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets[chosen], weights)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _is_bf16_faster() -> bool:
    """Whether this processor multiplies in bfloat16 faster than in float32, which not all do."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


IS_BF16_FASTER = _is_bf16_faster()


class FilmFeatures(nn.Module):
    """A trained trunk that is kept as it is, and so computes the features of each film once only.

    It takes the trunk's place in a backbone, and copies of it share the features.

    Args:
        trunk: the trained trunk.
        films: those whose features are kept, uint8, shape ``(N, 1, H, W)``.
    """

    def __init__(self, trunk: ImageEncoder, films: Tensor) -> None:
        super().__init__()
        self.image_encoder = trunk.eval().requires_grad_(False)
        self.channels, self.stride = trunk.channels, trunk.stride
        parts = tqdm(torch.split(films, 64), "features of films")
        self._features = torch.cat([self._compute(part) for part in parts])
        self._rows = {_digest(film): row for row, film in enumerate(films)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return self

    @torch.no_grad()
    def _compute(self, films: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=IS_BF16_FASTER):
            features: Tensor = self.image_encoder(films.contiguous(memory_format=torch.channels_last))
        return features.float().contiguous()

    def forward(self, images: Tensor) -> Tensor:
        """Features of films, uint8, shape ``(B, 1, H, W)``, as the trunk gives them."""
        rows = [self._rows.get(_digest(image)) for image in images]
        if None in rows:
            return self._compute(images)
        return self._features[rows]


def _digest(film: Tensor) -> bytes:
    return hashlib.blake2b(film.numpy().tobytes(), digest_size=16).digest()


class History(Callback):
    """Keeps the losses of training steps and of validation."""

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


def make_trainer(epochs: int, folder: Path, *callbacks: Callback, is_shown: bool = True) -> Trainer:
    """A trainer that leaves nothing behind but the results of its test."""
    bar = [TQDMProgressBar(refresh_rate=20)] if is_shown else []
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=is_shown,
        default_root_dir=folder,
        callbacks=[*callbacks, ResultTable(time_inference=False), *bar],
    )


def make_pretraining(features: FilmFeatures, seed: int) -> PretrainingTask:
    """A small backbone over the features of the trained CNN, to be pre-trained by MLM and IRM under ``bar``."""
    backbone = MedViLL(**BACKBONE)
    backbone.image_encoder = features  # type: ignore[assignment]
    return PretrainingTask.from_backbone(
        backbone,
        num_visual_samples=None,
        mlm_probability=0.3,
        lr=3e-3,
        warmup_steps=100,
        schedule="linear",
        seed=seed,
    )


class PretrainedWeights(NamedTuple):
    """What came of pre-training.

    Attributes:
        weights: of the task.
        trained_on: what the backbone notes of the data.
        history: the losses.
    """

    weights: dict[str, Tensor]
    trained_on: list[TrainingCorpus]
    history: History


def pretrain(task: PretrainingTask, data: BaseDataModule, epochs: int) -> PretrainedWeights:
    """Pre-train, in a process of its own."""
    torch.manual_seed(0)
    history = History()
    make_trainer(epochs, Path(), history).fit(task, datamodule=data)
    return PretrainedWeights(task.state_dict(), task.backbone.trained_on, history)


def save_backbone(backbone: MedViLL, folder: Path) -> None:
    """Save a backbone with its trunk in place of the features that it keeps."""
    whole = copy.copy(backbone)
    whole._modules = {**backbone._modules, "image_encoder": cast(FilmFeatures, backbone.image_encoder).image_encoder}
    whole.save_pretrained(folder)


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


def fine_tune(task: BaseTask, data: BaseDataModule, epochs: int, folder: Path) -> FineTuned:
    """Train a task and test it, in a process of its own; its results replace those of an earlier run in the folder."""
    start = time.perf_counter()
    for ending in ("parquet", "json"):
        (folder / f"test.{ending}").unlink(missing_ok=True)
    torch.manual_seed(0)
    trainer = make_trainer(epochs, folder, is_shown=False)
    trainer.limit_val_batches = 0
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    return FineTuned(task.results, task.state_dict(), time.perf_counter() - start)


def start_workers() -> ProcessPoolExecutor:
    """Processes, one a core or as many as can be used, which share the cores.

    Steps as small as a transformer's here gain little from a second thread, and much from a second task beside them.
    """
    cores = os.cpu_count() or 1
    number = min(cores, NUM_JOBS)
    context = torch.multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, initializer=_begin_worker, initargs=(max(1, cores // number),))


NUM_JOBS = 5
"""Four tasks and the plain ResNet-18."""


def _begin_worker(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
