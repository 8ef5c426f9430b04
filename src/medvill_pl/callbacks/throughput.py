"""How fast a run trains."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medvill_pl.batch import Batch
from medvill_pl.callbacks.protocols import CountsFlops

_DENSE_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
"""FLOPs a second of NVIDIA GPUs in bfloat16 without sparsity, as the maker states them: the first part that a GPU's
name holds is taken."""


class Throughput(Callback):
    """Logs the speed of training: ``throughput/pairs_per_second`` over all processes.

    On a GPU also ``throughput/memory_gib``, the peak of this process so far, and in bfloat16 on a
    GPU whose peak speed is known ``throughput/mfu``, the model FLOP utilisation: the share of it that
    forward and backward pass of the model use, padding included, recomputation left out. The time
    of validation is not counted.

    Args:
        every_n_steps: batches over which the speed is taken. The device is waited for so often.

    Example:
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Throughput(every_n_steps=10)])
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be positive, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._begin(None)

    def _begin(self, start: float | None) -> None:
        """Begin a window of batches."""
        self._start, self._pause = start, 0.0
        self._batches, self._pairs, self._flops = 0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._begin(None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause = _now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if self._start is not None:
            self._start += _now(pl_module.device) - self._pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch, and log when the window is full."""
        if self._start is None:  # the first batch is not counted: workers start and kernels are chosen in it
            self._begin(_now(pl_module.device))
            return
        self._batches += 1
        self._pairs += len(batch["id"])
        self._flops += self._count(pl_module, batch)
        if self._batches == self.every_n_steps:
            self._log(trainer, pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left."""
        if self._batches:
            self._log(trainer, pl_module.device)

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        now = _now(device)
        assert self._start is not None
        figures = self._figures(trainer, device, now - self._start)
        for logger in trainer.loggers:  # `self.log` would repeat them at every step until the next window
            logger.log_metrics(figures, step=trainer.global_step)
        self._begin(now)

    def _count(self, task: LightningModule, batch: Batch) -> int:
        """FLOPs of forward and backward pass, which costs twice the forward."""
        if task.device.type != "cuda" or not isinstance(task, CountsFlops):
            return 0
        size, length = batch["input_ids"].shape
        return 3 * size * task.flops_per_pair(length)

    def _figures(self, trainer: Trainer, device: torch.device, seconds: float) -> dict[str, float]:
        figures = {"throughput/pairs_per_second": self._pairs * trainer.world_size / seconds}
        if device.type == "cuda":
            figures["throughput/memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            name = torch.cuda.get_device_name(device)
            peaks = [peak for part, peak in _DENSE_PEAKS.items() if part in name]
            if peaks and "bf16" in str(trainer.precision):
                figures["throughput/mfu"] = self._flops / seconds / peaks[0]
        return figures


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
