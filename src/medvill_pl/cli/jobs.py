"""Jobs: recipes run by LightningCLI, alone or under a launcher (`fabric run`, `torchrun`, SLURM)."""

import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from medvill_pl.callbacks.prediction_table import PredictionTable
from medvill_pl.callbacks.search_page import SearchPage
from medvill_pl.checkpoint_io import AtomicCheckpointIO
from medvill_pl.files import free_name, write_atomically
from medvill_pl.runs import run_folder

_PRECISION_ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Launch:
    """What the launcher of this process has decided, which Trainer does not read by itself.

    Attributes:
        launcher: its name, for messages.
        world_size: processes it started, on all nodes together.
        trainer: the arguments of the trainer that follow.
    """

    launcher: str
    world_size: int
    trainer: dict[str, Any]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Launch | None":
        """Read the environment that `fabric run`, `torchrun` or `srun` made; None where there is no launcher."""
        if TorchElasticEnvironment.detect():
            launcher = "fabric run" if "LT_CLI_USED" in environ else "torchrun"
            world_size, per_node = int(environ["WORLD_SIZE"]), int(environ["LOCAL_WORLD_SIZE"])
            num_nodes = world_size // per_node
        elif SLURMEnvironment.detect():
            launcher = "SLURM"
            world_size, num_nodes = int(environ["SLURM_NTASKS"]), int(environ.get("SLURM_NNODES", "1"))
            per_node = world_size // num_nodes
        else:
            return None
        chosen = environ.get("LT_DEVICES", "")
        trainer: dict[str, Any] = {"devices": chosen if "," in chosen else per_node, "num_nodes": num_nodes}
        for name in ("accelerator", "strategy", "precision"):
            if f"LT_{name.upper()}" in environ:
                trainer[name] = environ[f"LT_{name.upper()}"]
        return cls(launcher, world_size, trainer)

    def check_number(self, number: int) -> None:
        """Refuse another number of processes than was started."""
        if number != self.world_size:
            raise ValueError(
                f"{self.launcher} started {self.world_size} processes, but trainer.devices and trainer.num_nodes make "
                f"{number}: leave them out of the configuration, or make them agree"
            )

    def check(self, trainer: Trainer) -> None:
        """Refuse a trainer that would ignore the launcher.

        Raises:
            ValueError: if the number of processes, the precision or the kind of device is another.
        """
        self.check_number(trainer.world_size)
        accelerator = self.trainer.get("accelerator", "auto")
        device = trainer.strategy.root_device.type
        if {"gpu": device if device != "cpu" else "gpu", "auto": device}.get(accelerator, accelerator) != device:
            raise ValueError(
                f"{self.launcher} was given accelerator {accelerator}, but trainer.accelerator gives {device}: "
                "leave one of them out, or make them agree"
            )
        precision = self.trainer.get("precision")
        if precision and _PRECISION_ALIASES.get(precision, precision) != trainer.precision:
            raise ValueError(
                f"{self.launcher} was given precision {precision}, but trainer.precision is {trainer.precision}: "
                "leave one of them out, or make them agree"
            )


class _KeepConfig(SaveConfigCallback):
    """Writes the resolved configuration into the folder of the run and logs it, so that W&B shows all of it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        resolved = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": resolved})
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(free_name(folder / "config.yaml"), self.parser.dump(self.config, skip_unset=False).encode())


class JobCLI(LightningCLI):
    """LightningCLI for any task and data module, named by ``class_path``.

    Args:
        args: the verb (``fit``, ``validate``, ``test`` or ``predict``) and its options.

    Raises:
        ValueError: if the configuration is wrong, in one line.
    """

    def __init__(self, args: list[str]) -> None:
        self._launch = Launch.read(os.environ)
        kwargs: dict[str, Any] = {"exit_on_error": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=_KeepConfig,
            trainer_defaults=self._launch.trainer if self._launch else None,
            seed_everything_default=0,
            parser_kwargs={**kwargs, **dict.fromkeys(self.subcommands(), kwargs)},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse recipes and options; what is wrong with them becomes one line."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, TypeError) as error:
            raise ValueError(_shorten(str(error))) from error

    def instantiate_classes(self) -> None:
        """Build data module, task and trainer; what they refuse is told in their own words."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(_shorten(str(error))) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; if it fails, end the processes that Lightning started, which would wait for this one."""
        if subcommand != "fit" and not self._get(self.config_init, "ckpt_path"):
            rank_zero_warn(f"no --ckpt_path is given: {subcommand} runs on initial weights")
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            raise

    def _parse_ckpt_path(self) -> None:
        """Let the recipe stand: Lightning would put the checkpoint's hyper-parameters over it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with atomic checkpoints, and compare it with the launcher."""
        config = self._get(self.config_init, "trainer")
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.subcommand == "predict":
            callbacks = config.get("callbacks") or []
            kwargs["callbacks"] = _with_writers(callbacks if isinstance(callbacks, list) else [callbacks])
        if self._launch and isinstance(config.get("devices"), int):
            self._launch.check_number(config["devices"] * config["num_nodes"])  # before Lightning says it at length
        trainer = super().instantiate_trainer(**kwargs)
        if self._launch:
            self._launch.check(trainer)
        return trainer


def _with_writers(callbacks: list[Callback]) -> list[Callback]:
    """Add what writes predictions, and beside them the page of a search, where the recipe does not name it itself."""
    table = next((one for one in callbacks if isinstance(one, PredictionTable)), None)
    beside = str(Path(table.path).with_name("search.html")) if table and table.path else None
    writers: list[Callback] = [] if table else [PredictionTable()]
    if not any(isinstance(one, SearchPage) for one in callbacks):
        writers.append(SearchPage(beside))
    return [*callbacks, *writers]


_NOISE = (
    "Does not validate",
    "Subtype",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Problem with given",
)


def _shorten(message: str) -> str:
    """Bring jsonargparse's tree of attempts down to what went wrong."""
    lines = [line.strip(" -|") for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(_NOISE)]
    return re.sub('Parser key "([^"]+)"', r"\1", " ".join(dict.fromkeys(told)))


def quieten() -> None:
    """Silence what Lightning says of things that are as they should be here, and its advertisements."""
    for message in (
        "LightningCLI's args parameter",
        ".*LeafSpec.*",
        ".*dataloader.*is not resumable.*",
        ".*does not have many workers.*",
        "The dirpath has changed",
        "Couldn't infer the batch indices",
        "Precision bf16-mixed is not supported by the model summary",
    ):
        warnings.filterwarnings("ignore", message=message)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())


def run(verb: str, arguments: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    quieten()
    sys.path.append(os.getcwd())  # a class_path may name a module beside the recipe
    JobCLI([verb, *arguments])
