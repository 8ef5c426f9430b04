"""A run of a trainer: the one folder it writes to, and what its processes have together."""

import csv
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Literal, TypeVar

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from medvill_pl.files import write_atomically

T = TypeVar("T")


class RunLogger(CSVLogger):
    """Lightning's CSV logger in a folder that is this run's alone: ``save_dir/name/version_N``.

    The number is taken when the trainer starts to set up, by making the folder: two runs that start at once get two
    numbers. A run that is refused gives its number back (:meth:`release`).

    Args:
        save_dir: folder of all runs.
        name: name of the runs, one folder in ``save_dir``.
        version: name of this run's folder, or its number; by default the first free number.

    Raises:
        FileExistsError: at the start of a run whose ``version`` is given and has a run already.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> [RunLogger(folder, "wide").version for _ in range(2)]
        [0, 1]
    """

    def __init__(self, save_dir: str | Path = "runs", name: str = "run", version: int | str | None = None) -> None:
        super().__init__(save_dir, name, version)
        self._run = version
        self._is_claimed = False
        self._is_continued = False

    @property
    def version(self) -> int | str:
        """Number or name of the run; asking for it makes the folder. Only the first process knows it."""
        if not self._is_claimed and is_first_process():
            self._run = self._claim(self._run)
            self._is_claimed = True
        return 0 if self._run is None else self._run

    def _claim(self, version: int | str | None) -> int | str:
        root = Path(self.root_dir)
        root.mkdir(parents=True, exist_ok=True)
        if version is not None:
            folder = root / _folder_name(version)
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()) and not self._is_continued:
                raise FileExistsError(f"{folder} has a run already: give another version, or --ckpt_path last to go on")
            return version
        for number in count():
            with suppress(FileExistsError):
                (root / _folder_name(number)).mkdir()
                return number
        raise AssertionError("unreachable")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes; the figures of a run that goes on are kept, which Lightning would delete."""
        writer: ExperimentWriter = super().experiment if self._experiment else self._open_writer()
        return writer

    def _open_writer(self) -> ExperimentWriter:
        path = Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        earlier = path.read_bytes() if path.is_file() else b""
        writer: ExperimentWriter = super().experiment
        if earlier:
            write_atomically(path, earlier)
            writer.metrics_keys = next(csv.reader(earlier.decode().splitlines()))
        return writer

    def go_on(self, folder: Path | None = None) -> None:
        """Go on in the folder of an earlier run of this name; by default in that of the ``version``, if it is there."""
        self._is_continued = True
        if folder is None:
            return
        number = folder.name.removeprefix("version_")
        self._run = int(number) if number.isdecimal() and number != folder.name else folder.name

    def find_checkpoint(self, kind: Literal["best", "last"]) -> Path | None:
        """The ``best.ckpt`` or ``last.ckpt`` of the newest run of this name: the run that wrote one last.

        With a ``version`` only that run counts.
        """
        run = "*" if self._run is None else _folder_name(self._run)
        found = Path(self.root_dir).glob(f"{run}/checkpoints/{kind}.ckpt")
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def release(self) -> None:
        """Give the number back, of a run that was refused before anything was written."""
        if not self._is_claimed or self._is_continued:
            return
        folder = Path(self.log_dir)
        if {path.name for path in folder.iterdir()} <= {ExperimentWriter.NAME_HPARAMS_FILE}:
            shutil.rmtree(folder)
            self._is_claimed, self._run, self._experiment = False, None, None
            for parent in (folder.parent, folder.parent.parent):
                with suppress(OSError):  # there is more in it
                    parent.rmdir()


def _folder_name(version: int | str) -> str:
    return version if isinstance(version, str) else f"version_{version}"


def is_first_process() -> bool:
    """Whether this is the process that writes, of all that train together."""
    return rank_zero_only(lambda: True, False)()


def folder_of_run(checkpoint: str | Path) -> Path:
    """The folder of the run that wrote a checkpoint.

    Example:
        >>> str(folder_of_run("runs/wide/version_0/checkpoints/best.ckpt")), str(folder_of_run("models/wide.ckpt"))
        ('runs/wide/version_0', 'models')
    """
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run, the same in all processes: where checkpoints, configuration and tables go.

    Validation, test and prediction of a checkpoint belong to the run that wrote it; where that folder cannot be written
    to, and else, it is the folder of the :class:`RunLogger` or of the first logger, or the trainer's root.
    """
    shared: Path = trainer.strategy.broadcast(_own_folder(trainer))
    return shared


def _own_folder(trainer: Trainer) -> Path:
    checkpoint = trainer.ckpt_path
    if checkpoint and trainer.state.fn != TrainerFn.FITTING and "://" not in str(checkpoint):
        folder = folder_of_run(checkpoint)
        if _is_writable(folder):
            return folder
    logger = next((one for one in trainer.loggers if isinstance(one, RunLogger)), trainer.logger)
    if logger is None:
        return Path(trainer.default_root_dir)
    name = "" if logger.version is None else _folder_name(logger.version)
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / name


def gather(items: Sequence[T], trainer: Trainer) -> list[T]:
    """What all processes have, together, in every process."""
    if trainer.world_size == 1:
        return list(items)
    parts: list[list[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
