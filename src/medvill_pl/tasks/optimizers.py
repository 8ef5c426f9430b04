"""The optimizer of every task: AdamW with an optional warm-up (MedViLL, Sec. IV-B)."""

from collections.abc import Iterable
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

Schedule = Literal["constant", "linear"]


def make_adamw(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; biases, norms and other vectors do not decay.

    Args:
        parameters: those without ``requires_grad`` are left out.
        lr: learning rate.
        weight_decay: of all weights but vectors and scalars.
        fused: one kernel for all parameters.

    Example:
        >>> optimizer = make_adamw(nn.Linear(4, 2).parameters(), lr=1e-3, weight_decay=0.01)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.01), (1, 0.0)]
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def rate_at(step: int, warmup_steps: int, schedule: Schedule, total_steps: float) -> float:
    """The share of the learning rate that one optimizer step takes, 0 to 1.

    Args:
        step: number of the optimizer step, from 0.
        warmup_steps: steps over which the rate rises linearly.
        schedule: the rate after that: ``constant``, or ``linear`` down to 0 at ``total_steps``.
        total_steps: optimizer steps of the whole run; only ``linear`` reads it.

    Example:
        >>> [rate_at(step, 2, "constant", 10) for step in range(3)]
        [0.5, 1.0, 1.0]
        >>> rate_at(9, 2, "linear", 10)
        0.125
    """
    rising = min(1.0, (step + 1) / max(1, warmup_steps))
    if schedule == "constant":
        return rising
    return min(rising, max(0.0, (total_steps - step) / max(1.0, total_steps - warmup_steps)))


def configure_adamw(
    task: LightningModule, lr: float, weight_decay: float, warmup_steps: int, schedule: Schedule
) -> OptimizerLRScheduler:
    """The optimizer of a task in its trainer, with a schedule only where the rate changes.

    A schedule that does nothing would stand in the way of callbacks that add parameters or change the rate
    (``BackboneFinetuning``, ``LearningRateFinder``).
    """
    trainer = task.trainer
    # Lightning does not clip gradients of a fused optimizer in mixed precision.
    fused = not (trainer.precision.endswith("-mixed") and trainer.gradient_clip_val)
    optimizer = make_adamw(task.parameters(), lr, weight_decay, fused)
    if schedule == "constant" and warmup_steps == 0:
        return optimizer
    total = float(trainer.estimated_stepping_batches) if schedule == "linear" else 0.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, warmup_steps, schedule, total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
