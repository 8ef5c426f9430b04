"""Loaders of a user's own: what the task cannot know of them is said, and what trains wrongly is refused."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from medvill_pl import BackboneConfig, Batch, PretrainingTask, RetrievalTask, SyntheticDataModule

MakeTrainer = Callable[..., Trainer]
PLAIN: dict[str, Any] = {"batch_size": None, "shuffle": False}


def make_loader(task: PretrainingTask | RetrievalTask, negatives: Any, num_train: int = 40) -> DataLoader[Batch]:
    """A loader that knows nothing of a data module: a list of batches."""
    data = SyntheticDataModule(num_train, num_val=4, batch_size=8, negatives=negatives)
    data.connect(task.input_spec)
    data.setup("fit")
    return DataLoader(list(data.train_dataloader()), **PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [PretrainingTask, RetrievalTask])
def test_own_loader_trains_and_what_is_unknown_is_said(
    cls: type[Any], tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, trainer = cls(tiny), make_trainer(max_steps=3)
    with pytest.warns(UserWarning, match="the loaders do not come from a medvill_pl data module"):
        trainer.fit(task, train_dataloaders=make_loader(task, "labels"))
    assert trainer.global_step == 3
    assert task.backbone.trained_on == [{"name": "an unnamed corpus", "pairs": 0, "credentialed": True}]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("num_train", [8, 40])  # less than is needed to be sure, and more
@pytest.mark.parametrize("cls", [PretrainingTask, RetrievalTask])
def test_own_loader_without_non_matching_pairs_is_refused(
    num_train: int, cls: type[Any], tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task = cls(tiny)
    number = min(num_train, 32)
    with pytest.raises(ValueError, match=f"needs non-matching pairs, but all of the first {number} pairs match"):
        make_trainer(max_steps=100).fit(task, train_dataloaders=make_loader(task, "none", num_train))


def test_masked_tokens_of_an_own_loader_are_those_of_the_data_module(tiny: BackboneConfig) -> None:
    torch.manual_seed(0)
    task = PretrainingTask(tiny).eval()
    batch = make_loader(task, "labels").dataset[0]
    assert "mlm_input_ids" not in batch
    assert torch.equal(task.step(batch).loss, task.step(task.masking(batch)).loss)


_TWO_PROCESSES = """
from lightning.pytorch import Trainer
from medvill_pl import PretrainingTask, SyntheticDataModule
task = PretrainingTask(dict(image_encoder="resnet_tiny", image_size=32, tokenizer="synthetic", hidden_size=8,
                            num_layers=1, num_heads=1, intermediate_size=8, max_tokens=40))
data = SyntheticDataModule(num_train=8, num_val=4, batch_size=2, negatives="labels")
data.connect(task.input_spec)
data.setup("fit")
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(task, train_dataloaders=data.train_dataloader())
"""


@pytest.mark.slow
def test_loader_that_gives_every_pair_to_both_processes_is_refused() -> None:
    run = subprocess.run([sys.executable, "-c", _TWO_PROCESSES], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "2 processes would each train on every pair" in run.stderr
