"""What a task can and cannot know of loaders that do not come from a data module of this library."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from medvill_pl.data.module import BaseDataModule


def check_loaders(trainer: Trainer, data: BaseDataModule | None) -> None:
    """Say what is unknown of a user's own training loaders; refuse those that would give every pair to every process.

    Raises:
        ValueError: if several processes run and a loader's sampler does not divide the pairs among them.
    """
    if data is not None:
        return
    rank_zero_warn(
        "the loaders do not come from a medvill_pl data module: their corpus counts as credentialed, and no figures "
        "from the training split stand beside the scores"
    )
    for loader in CombinedLoader(trainer.train_dataloader).flattened if trainer.world_size > 1 else ():
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
            rank_zero_warn("an IterableDataset must itself divide its pairs among the processes")
        elif not _divides(loader, trainer.world_size):
            raise ValueError(
                f"{trainer.world_size} processes would each train on every pair, since the loader's sampler does not "
                "divide them: pass the data module (trainer.fit(task, datamodule=data)) or a DistributedSampler"
            )


def _divides(loader: object, world_size: int) -> bool:
    """Whether a loader gives each process its share; loaders of other kinds are trusted."""
    if not isinstance(loader, DataLoader):
        return True
    sampler = loader.batch_sampler.sampler if isinstance(loader.batch_sampler, BatchSampler) else loader.sampler
    return isinstance(sampler, DistributedSampler) and sampler.num_replicas == world_size
