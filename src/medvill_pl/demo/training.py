"""Training of the demo: a small CNN, a backbone on top of it, and the four tasks on top of that."""

import copy
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from tqdm import tqdm

from medvill_pl.backbone import BackboneConfig, MedViLL
from medvill_pl.batch import Batch
from medvill_pl.data.module import BaseDataModule
from medvill_pl.evaluation.results import Results
from medvill_pl.results import ResultTable
from medvill_pl.synthetic.datamodule import SyntheticDataModule
from medvill_pl.tasks.base import BaseTask
from medvill_pl.tasks.pretraining import PretrainingTask
from medvill_pl.vision import VisionTrunk, make_trunk

IMAGE_SIZE = 128
BACKBONE: BackboneConfig = {
    "vision": "resnet_small",
    "freeze_vision_stages": 4,
    "image_size": IMAGE_SIZE,
    "tokenizer": "synthetic",
    "max_words": 120,
    "hidden_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 384,
    "dropout": 0.0,
}


class Budget(NamedTuple):
    """How much the demo does.

    Attributes:
        num_train: pairs to train on.
        num_test: pairs of the validation and of the test split.
        num_retrieved: pairs of the test split that are searched.
        trunk_steps: optimizer steps of the CNN alone, with 64 films each.
        pretraining: epochs of pre-training.
        classification: epochs of fine-tuning for this task, as the next three.
        retrieval: likewise.
        vqa: likewise.
        generation: likewise.
    """

    num_train: int = 5000
    num_test: int = 400
    num_retrieved: int = 200
    trunk_steps: int = 600
    pretraining: int = 6
    classification: int = 4
    retrieval: int = 4
    vqa: int = 2
    generation: int = 4


def train_trunk(data: SyntheticDataModule, steps: int) -> VisionTrunk:
    """Teach a small CNN to see: it predicts the findings of each training film and the words of its report.

    It stands in for the ImageNet weights that the paper's trunk starts from, which no machine can
    make in a minute.
    """
    trunk = VisionTrunk(make_trunk("resnet_small").to(memory_format=torch.channels_last))
    films, labels = training_films(data)
    targets = torch.cat([labels, _report_words(data)], dim=1)
    head = nn.Linear(2 * trunk.channels, targets.shape[1])

    def logits_of(films: Tensor) -> Tensor:
        features = trunk(films).flatten(2)
        logits: Tensor = head(torch.cat([features.mean(2), features.amax(2)], dim=1))
        return logits

    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in tqdm(range(steps), "training the CNN"):
        step_on_targets(logits_of, films, targets, optimizer)
        schedule.step()
    return trunk


def training_films(data: SyntheticDataModule) -> tuple[Tensor, Tensor]:
    """All training films, uint8, shape ``(N, 1, H, W)``, and their positive findings, float32, shape ``(N, 14)``."""
    examples = data.datasets["train"].examples
    labels = torch.from_numpy((examples.labels == 1).astype(np.float32))
    return torch.stack([examples.image(index) for index in tqdm(range(len(labels)), "drawing films")]), labels


def _report_words(data: SyntheticDataModule) -> Tensor:
    """Which words each training report has, of those that neither nearly all nor nearly none have; 0 or 1, float32."""
    encoded = data.tokenizer.encode(data.datasets["train"].examples.reports)
    words = torch.zeros(len(encoded), data.tokenizer.vocab_size)
    for row, ids in zip(words, encoded, strict=True):
        row[ids] = 1
    share = words.mean(0)
    return words[:, (share > 0.005) & (share < 0.95)]


def step_on_targets(logits_of: Any, films: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step of a CNN on 64 films drawn at random, towards targets of 0 and 1, one column each."""
    chosen = torch.randint(len(films), (64,))
    with torch.autocast("cpu", torch.bfloat16, enabled=IS_BF16_FASTER):
        logits = logits_of(films[chosen].contiguous(memory_format=torch.channels_last))
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets[chosen])
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

    It takes the trunk's place in a backbone and may be shared by many.

    Args:
        trunk: the trained trunk.
    """

    def __init__(self, trunk: VisionTrunk) -> None:
        super().__init__()
        self.trunk = trunk.eval().requires_grad_(False)
        self.channels, self.stride = trunk.channels, trunk.stride
        self._features: dict[bytes, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of films, uint8, shape ``(B, 1, H, W)``, as the trunk gives them."""
        names = [image.numpy().tobytes() for image in images]
        new = {name: row for row, name in enumerate(names) if name not in self._features}
        if new:
            with torch.autocast("cpu", torch.bfloat16, enabled=IS_BF16_FASTER):
                computed = self.trunk(images[list(new.values())].contiguous(memory_format=torch.channels_last))
            self._features |= zip(new, computed.float(), strict=True)
        return torch.stack([self._features[name] for name in names])


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


def make_trainer(epochs: int, folder: Path, *callbacks: Callback) -> Trainer:
    """A trainer that leaves nothing behind but the results of its test."""
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, ResultTable(time_inference=False), TQDMProgressBar(refresh_rate=20)],
    )


def pretrain(
    data: SyntheticDataModule, trunk: VisionTrunk, epochs: int, history: History, seed: int
) -> PretrainingTask:
    """Pre-train a small backbone by MLM and IRM under ``bar``, over the features of the trained CNN."""
    backbone = MedViLL(**BACKBONE)
    backbone.trunk.load_state_dict(trunk.state_dict())
    task = PretrainingTask.from_backbone(
        with_film_features(backbone),
        num_visual_samples=None,
        mlm_probability=0.3,
        lr=2e-3,
        warmup_steps=100,
        schedule="linear",
        seed=seed,
    )
    make_trainer(epochs, Path(), history).fit(task, datamodule=data)
    return task.eval()


def with_film_features(backbone: MedViLL) -> MedViLL:
    """The backbone, with its trunk replaced by one that remembers."""
    backbone.trunk = FilmFeatures(backbone.trunk)  # type: ignore[assignment]
    return backbone


def fine_tune(task: BaseTask, data: BaseDataModule, epochs: int, folder: Path) -> Results:
    """Train a task, test it and return the results, which also go into the folder."""
    trainer = make_trainer(epochs, folder)
    trainer.limit_val_batches = 0
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    return task.results


def copy_of(backbone: MedViLL) -> MedViLL:
    """A backbone for a task of its own; the films' features are shared."""
    return copy.deepcopy(backbone)
