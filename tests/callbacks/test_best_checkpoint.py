"""Tests of the checkpoints of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medvill_pl import BestCheckpoint, RunLogger

MakeTrainer = Callable[..., Trainer]
SCORES = (0.2, 0.9, 0.4)
"""Of the epochs of a run."""


class Line(LightningModule):
    """Logs a score of its own per epoch; names no figure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val/score", SCORES[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Scored(Line):
    """Names its figure."""

    monitor = "val/score"
    mode: Literal["min", "max"] = "max"


def fit(make_trainer: MakeTrainer, tmp_path: Path, module: Line, *callbacks: Callback) -> Path:
    """Fit three epochs of two steps and return the folder of the checkpoints."""
    trainer = make_trainer(
        max_steps=-1,
        max_epochs=3,
        limit_val_batches=1,
        enable_checkpointing=True,
        logger=RunLogger(tmp_path, "line"),
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader(torch.ones(4, 1), batch_size=2), DataLoader(torch.ones(2, 1)))
    return tmp_path / "line/version_0/checkpoints"


def step_of(path: Path) -> int:
    step: int = torch.load(path, weights_only=False)["global_step"]
    return step


def test_best_is_chosen_by_the_figure_of_the_task(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = fit(make_trainer, tmp_path, Scored(), BestCheckpoint())
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (step_of(folder / "best.ckpt"), step_of(folder / "last.ckpt")) == (4, 6)


def test_another_figure_can_be_given(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = fit(make_trainer, tmp_path, Scored(), BestCheckpoint("val/score", "min"))
    assert step_of(folder / "best.ckpt") == 2


def test_module_without_a_figure_keeps_its_newest(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = fit(make_trainer, tmp_path, Line(), BestCheckpoint())
    assert (step_of(folder / "best.ckpt"), step_of(folder / "last.ckpt")) == (6, 6)


class Stop(Callback):
    """Ends the run in the second epoch, as Lightning does after a SIGTERM, or by an error."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if trainer.global_step == 3:
            raise self.exception


@pytest.mark.parametrize(("exception", "step"), [(SIGTERMException(), 3), (ValueError("wrong"), 2)])
def test_last_is_written_when_the_process_receives_sigterm(
    exception: BaseException, step: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    with pytest.raises(type(exception)):
        fit(make_trainer, tmp_path, Scored(), BestCheckpoint(), Stop(exception))
    folder = tmp_path / "line/version_0/checkpoints"
    assert step_of(folder / "last.ckpt") == step
    assert step_of(folder / "best.ckpt") == 2  # still the best


def test_last_is_written_every_few_steps(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"):
        fit(make_trainer, tmp_path, Scored(), BestCheckpoint(last_every_n_steps=1), Stop(ValueError("wrong")))
    assert step_of(tmp_path / "line/version_0/checkpoints/last.ckpt") == 3


def test_best_is_found_after_last_was_written_at_the_same_step(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = fit(make_trainer, tmp_path, Scored(), BestCheckpoint(last_every_n_steps=2))
    assert step_of(folder / "best.ckpt") == 4


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="give monitor and mode together"):
        BestCheckpoint("val/f1_micro")
    with pytest.raises(ValueError, match="last_every_n_steps is 0: it must be positive"):
        BestCheckpoint(last_every_n_steps=0)
