"""A run of a trainer: where it writes, and what its processes have together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Trainer

T = TypeVar("T")


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run, the same in all processes: where checkpoints, configuration and tables go."""
    folder = Path(trainer.default_root_dir)
    if trainer.logger is not None:
        version = trainer.logger.version
        name = version if isinstance(version, str) else f"version_{version}"
        folder = Path(trainer.logger.save_dir or folder) / str(trainer.logger.name) / name
    shared: Path = trainer.strategy.broadcast(folder)
    return shared


def gather(items: Sequence[T], trainer: Trainer) -> list[T]:
    """What all processes have, together, in every process."""
    if trainer.world_size == 1:
        return list(items)
    parts: list[list[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
