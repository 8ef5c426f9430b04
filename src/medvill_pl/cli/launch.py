"""What the launcher of a process (`fabric run`, `torchrun`, SLURM) has decided: nothing else knows launchers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer


class TrainerArguments(TypedDict, total=False):
    """The arguments of the trainer that a launcher decides."""

    devices: int | str
    num_nodes: int
    accelerator: str
    strategy: str
    precision: str


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
    trainer: TrainerArguments

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Launch | None":
        """Read the environment that `fabric run`, `torchrun` or `srun` made; None where there is no launcher.

        Example:
            >>> Launch.read({}) is None
            True
        """
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
        trainer = TrainerArguments(devices=chosen if "," in chosen else per_node, num_nodes=num_nodes)
        if "LT_ACCELERATOR" in environ:
            trainer["accelerator"] = environ["LT_ACCELERATOR"]
        if "LT_STRATEGY" in environ:
            trainer["strategy"] = environ["LT_STRATEGY"]
        if "LT_PRECISION" in environ:
            trainer["precision"] = environ["LT_PRECISION"]
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
