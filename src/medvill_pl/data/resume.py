"""How a resumed run finds its position in the data: what Lightning's progress says, and what it leaves out."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop

_OF_TUNER = (".scale_batch_size_", ".lr_find_")


def loader_start(trainer: Trainer) -> tuple[int, int]:
    """Epoch and batch at which the training loader is to begin, by the trainer's progress.

    Lightning restores its counters from a checkpoint, but begins the epoch's data anew; and it starts to iterate
    before it tells the sampler the epoch.

    Example:
        >>> loader_start(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
        (0, 0)
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    epoch: int = epochs.processed
    is_unfinished = epochs.ready > epochs.processed
    if is_unfinished and batches.is_last_batch:
        return epoch + 1, 0
    return epoch, batches.current.ready if is_unfinished else 0


def reopen_epoch(trainer: Trainer) -> None:
    """Let a resumed run finish the epoch in which the saved one was stopped.

    Lightning counts an epoch as done when ``max_steps``, a time limit or early stopping ends it in its middle, and
    would go on with the next one.

    Example:
        >>> reopen_epoch(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))  # nothing was stopped
    """
    fit = trainer.fit_loop
    epochs, batches = fit.epoch_progress, fit.epoch_loop.batch_progress
    current: Any = epochs.current
    if not batches.current.ready or current.processed != current.ready:
        return
    is_whole = batches.is_last_batch
    for progress in (current, cast(Any, epochs.total)):
        progress.processed = progress.completed = progress.ready if is_whole else progress.ready - 1
    # The fit loop's own setter takes every run under max_steps for one that stopped within an epoch.
    _Loop.restarting.fset(fit, not is_whole)  # type: ignore[attr-defined]


def is_resumed(trainer: Trainer | None) -> bool:
    """Whether training goes on from a checkpoint that a user named.

    Lightning's tuner, which tries batch sizes and rates, puts the weights of before back from a file of its own.

    Example:
        >>> is_resumed(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
        False
    """
    if trainer is None or trainer.state.fn != "fit":
        return False
    return not Path(trainer.ckpt_path or "").name.startswith(_OF_TUNER)
