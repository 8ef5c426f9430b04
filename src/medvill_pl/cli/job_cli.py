"""LightningCLI with this project's defaults: one folder per run, errors in one line."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medvill_pl.atomic_checkpoint_io import AtomicCheckpointIO
from medvill_pl.callbacks.prediction_table import PredictionTable
from medvill_pl.cli.checkpoint import choose_checkpoint
from medvill_pl.cli.launch import Launch
from medvill_pl.files import free_name, write_atomically
from medvill_pl.runs import RunLogger, is_first_process, run_folder

_STOPPED = 128 + signal.SIGTERM


class _KeepConfig(SaveConfigCallback):
    """Writes the resolved configuration into the folder of the run and logs it, so that W&B shows all of it.

    This is done when nothing can be refused any more: a folder without a configuration has no run.
    """

    folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Too early: data, task and checkpoint may still be refused."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        if self.folder is not None:
            return
        self.folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        resolved = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": resolved})
        self.folder.mkdir(parents=True, exist_ok=True)
        verb = str(trainer.state.fn.value) if trainer.state.fn else "fit"
        path = self.folder / ("config.yaml" if verb == "fit" else f"{verb}.yaml")
        write_atomically(free_name(path), self.parser.dump(self.config, skip_unset=False).encode())


class JobCLI(LightningCLI):
    """LightningCLI for any task and data module, named by ``class_path``.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: its options.
        name: name of the run, where the recipe gives none.

    Raises:
        ValueError: if the configuration is wrong, in one line.
    """

    def __init__(self, verb: str, arguments: list[str], name: str) -> None:
        self._verb = verb
        self._launch = Launch.read(os.environ)
        self._run_logger: RunLogger | None = None
        self._keep_config: _KeepConfig | None = None
        logger = {"class_path": "medvill_pl.RunLogger", "init_args": {"save_dir": "runs", "name": name}}
        kwargs: dict[str, Any] = {"exit_on_error": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=_KeepConfig,
            trainer_defaults={**(self._launch.trainer if self._launch else {}), "logger": [logger]},
            seed_everything_default=0,
            parser_kwargs={**kwargs, verb: kwargs},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[verb, *arguments],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb that is run: each parser takes a good part of a second to build."""
        return {self._verb: LightningCLI.subcommands()[self._verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the callbacks of all jobs as defaults, which ``--print_config`` shows."""
        callbacks = [{"class_path": "medvill_pl.Throughput"}, {"class_path": "medvill_pl.BestCheckpoint"}]
        parser.set_defaults({"trainer.callbacks": callbacks})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse recipes and options; what is wrong with them becomes one line."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, TypeError) as error:
            raise ValueError(_shorten(str(error))) from error

    def instantiate_classes(self) -> None:
        """Build data module, task and trainer; what they refuse is said in their own words."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(_shorten(str(error))) from error

    def _parse_ckpt_path(self) -> None:
        """Let the recipe stand: Lightning would put the checkpoint's hyper-parameters over it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with atomic checkpoints, in the folder of its run, and compare it with the launcher."""
        config = self._get(self.config_init, "trainer")
        kwargs["plugins"] = _with_plugins(_as_list(config.get("plugins")), self._launch)
        loggers = config.get("logger")
        is_switch = isinstance(loggers, bool)  # on or off, by Lightning's own choice
        chosen = self._choose_folder([] if is_switch else _as_list(loggers))
        kwargs["logger"] = loggers if is_switch else chosen or False
        callbacks = _as_list(config.get("callbacks"))
        if self.subcommand == "predict":
            callbacks = _with_writers(callbacks)
        kwargs["callbacks"] = callbacks
        if self._launch and isinstance(config.get("devices"), int):
            self._launch.check_number(config["devices"] * config["num_nodes"])  # before Lightning says it at length
        trainer = super().instantiate_trainer(**kwargs)
        self._keep_config = next((one for one in trainer.callbacks if isinstance(one, _KeepConfig)), None)  # type: ignore[attr-defined]
        if self._launch:
            self._launch.check(trainer)
        return trainer

    def _choose_folder(self, loggers: list[Logger]) -> list[Logger]:
        """Find the checkpoint that ``--ckpt_path`` means; a job that only reads one makes no folder of its own."""
        options = self.config_init[self._verb]
        self._run_logger = next((one for one in loggers if isinstance(one, RunLogger)), None)
        options["ckpt_path"] = choose_checkpoint(self._verb, options["ckpt_path"], self._run_logger)
        if self._verb != "fit" and options["ckpt_path"] and self._run_logger:
            loggers = [one for one in loggers if one is not self._run_logger]
            self._run_logger = None
        return loggers

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb and say what it wrote.

        If it fails, give the number of the run back, and end the processes that Lightning started, which would wait.
        """
        if subcommand != "fit" and not self._get(self.config_init, "ckpt_path"):
            rank_zero_warn(f"no --ckpt_path is given: {subcommand} runs on initial weights")
        start = time.time() - 0.1  # file systems round times
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGTERM)
            if self._run_logger and is_first_process():
                self._run_logger.release()
            if isinstance(error, SIGTERMException):
                print(f"medvill {subcommand}: stopped by SIGTERM; --ckpt_path last goes on", file=sys.stderr)
                raise SystemExit(_STOPPED) from error
            raise
        self._print_written(start)

    @rank_zero_only
    def _print_written(self, start: float) -> None:
        """Print the paths that were written since ``start``."""
        if self._keep_config is None or self._keep_config.folder is None:
            return
        tables = (one.path for one in self.trainer.callbacks if isinstance(one, PredictionTable))  # type: ignore[attr-defined]
        folders = {self._keep_config.folder, *(Path(path).parent for path in tables if path)}
        files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
        print("written:", *sorted(str(path) for path in files if path.stat().st_mtime >= start), sep="\n  ")


def _as_list(value: Any) -> list[Any]:
    """What jsonargparse gives for an option that may be one object, many or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _with_plugins(plugins: list[Any], launch: Launch | None) -> list[Any]:
    """Add atomic checkpoints; and under SLURM leave the requeueing to SLURM.

    Lightning's own puts its checkpoint into the working folder, where two jobs take each other's.
    """
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins = [*plugins, AtomicCheckpointIO()]
    is_given = any(isinstance(plugin, SLURMEnvironment) for plugin in plugins)
    if launch and launch.launcher == "SLURM" and not is_given:
        plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
    return plugins


def _with_writers(callbacks: list[Callback]) -> list[Callback]:
    """Add what writes predictions, and beside them the page of a search, where the recipe does not name it itself."""
    from medvill_pl.callbacks.search_page import SearchPage  # takes long, for its labeler

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
    reasons = [line for line in lines if line and not line.startswith(_NOISE)]
    return re.sub('Parser key "([^"]+)"', r"\1", " ".join(dict.fromkeys(reasons)))
