"""The checkpoints of a run: the best by the figure that its task names, and the last."""

import math
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medvill_pl.runs import run_folder

Mode = Literal["min", "max"]


@runtime_checkable
class _Monitored(Protocol):
    """A task that names the figure by which its best checkpoint is chosen."""

    monitor: str
    mode: Mode


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` in the folder of the run.

    The best is chosen by the task's own ``monitor`` and ``mode``; for a module that names none it is the newest.
    The last is written after each validation and each epoch, whether it is the best or not (Lightning's own
    ``save_last`` writes it only when something else is saved, so a run that goes on would lose what came after its
    best). A process that receives SIGTERM writes it first, so that a job that is preempted loses nothing.

    Args:
        monitor: a logged figure to choose the best by, instead of the task's.
        mode: whether the best has the smallest (``min``) or the largest (``max``); goes with ``monitor``.
        last_every_n_steps: write ``last.ckpt`` also every so many optimizer steps, not only after a validation.

    Raises:
        ValueError: if ``monitor`` and ``mode`` are not given together, or the steps are not positive.

    Example:
        >>> BestCheckpoint("val/f1_micro", "max").monitor
        'val/f1_micro'
    """

    def __init__(
        self, monitor: str | None = None, mode: Mode | None = None, last_every_n_steps: int | None = None
    ) -> None:
        if (monitor is None) != (mode is None):
            raise ValueError("give monitor and mode together: whether the best is the smallest or the largest")
        if last_every_n_steps is not None and last_every_n_steps < 1:
            raise ValueError(f"last_every_n_steps is {last_every_n_steps}: it must be positive")
        super().__init__(
            monitor=monitor, mode=mode or "min", filename="best", save_last=False, enable_version_counter=False
        )
        self.last_every_n_steps = last_every_n_steps
        self._step_of_last = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder from the run and, where it is not given, the figure from the task."""
        if self.monitor is None and isinstance(pl_module, _Monitored):
            self.monitor, self.mode = pl_module.monitor, pl_module.mode
            self.kth_value = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        if stage != "fit":
            return
        if self.dirpath is None:
            self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` where the number of steps asks for it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.last_every_n_steps and trainer.global_step % self.last_every_n_steps == 0:
            self._keep_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``last.ckpt``, if no validation has done so at this step."""
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write ``last.ckpt`` if the process received SIGTERM; Lightning raises this between two batches."""
        if isinstance(exception, SIGTERMException) and trainer.training and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"stopped by SIGTERM: step {trainer.global_step} is in {self._write_last(trainer)}")

    def _keep_last(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, once per step."""
        if trainer.global_step != self._step_of_last and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write_last(trainer)

    def _write_last(self, trainer: Trainer) -> Path:
        path = Path(str(self.dirpath), f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        self.last_model_path = str(path)
        self._step_of_last = trainer.global_step
        trainer.save_checkpoint(path)
        return path
