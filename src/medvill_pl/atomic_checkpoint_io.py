"""Checkpoints that are whole or not there at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from medvill_pl.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs it to the disk and renames it into place.

    A full disk, a kill or a power cut leaves the checkpoint that was there before. Paths with a
    protocol (``s3://``) are left to Lightning, whose stores do the same.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            OSError: if it cannot be written; what was at ``path`` is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = str(cause).splitlines()[0]
            raise OSError(
                f"the checkpoint {target} could not be written ({reason}); an earlier one is still whole"
            ) from error
