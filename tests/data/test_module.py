"""Loaders of a data module, and their place in an epoch when a run is resumed."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from medvill_pl import Batch, PairsDataModule, SyntheticDataModule
from medvill_pl.data.plan import BatchPlan

NUM_TRAIN, BATCH_SIZE, NUM_BATCHES = 22, 4, 5  # two pairs are left out of every epoch
NUM_EPOCHS = 3

Visit = tuple[Any, ...]


def make_data(**options: Any) -> SyntheticDataModule:
    settings = {
        "num_train": NUM_TRAIN,
        "num_val": 7,
        "num_test": 6,
        "image_size": 32,
        "batch_size": BATCH_SIZE,
        "negatives": "labels",
        "bucket_batches": 2,
    }
    return SyntheticDataModule(**(settings | options))


def visit_of(batch: Batch) -> Visit:
    """What tells one batch from all others: its pairs, its texts and its seeds."""
    return (*batch["id"], zlib.crc32(batch["input_ids"].numpy().tobytes()), *batch["seed"].tolist())


class Diary(LightningModule):
    """Learns one useless number and notes the batches of every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[Visit] = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append((self.current_epoch, batch_idx, *visit_of(batch)))
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += batch["id"]

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveEverywhere(Callback):
    """Saves a checkpoint wherever Lightning's own might be saved; knows how many batches were trained on until then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, dict[str, int]()

    def save(self, trainer: Trainer, module: Diary, place: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{place}-{len(module.trained)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path.name] = len(module.trained)

    def on_train_batch_end(self, trainer: Trainer, module: Diary, *_: Any) -> None:  # type: ignore[override]
        self.save(trainer, module, "batch")

    def on_validation_end(self, trainer: Trainer, module: Diary) -> None:  # type: ignore[override]
        self.save(trainer, module, "validation")

    def on_train_epoch_end(self, trainer: Trainer, module: Diary) -> None:  # type: ignore[override]
        self.save(trainer, module, "epoch")


def make_trainer(folder: Path, **options: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "max_epochs": NUM_EPOCHS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(settings | options))


def train(folder: Path, num_workers: int = 0, ckpt_path: Path | None = None, **options: Any) -> list[Visit]:
    """Train and return the batches that the run saw."""
    diary = Diary()
    trainer = make_trainer(folder, **options)
    trainer.fit(diary, make_data(num_workers=num_workers), ckpt_path=ckpt_path)
    return diary.trained


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated gradients": {"accumulate_grad_batches": 2},
    "validation within the epoch": {"val_check_interval": 2},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "part of an epoch": {"limit_train_batches": 3},
    "new loaders every epoch": {"reload_dataloaders_every_n_epochs": 1},
    "no validation": {"limit_val_batches": 0},
    "as many steps": {"max_steps": NUM_EPOCHS * NUM_BATCHES, "max_epochs": -1},
    "as many steps, validation within the epoch": {
        "max_steps": NUM_EPOCHS * NUM_BATCHES,
        "max_epochs": -1,
        "val_check_interval": 2,
    },
}


def check_resuming(folder: Path, num_workers: int, every: int = 1, **options: Any) -> None:
    """Resume a run from checkpoints of many places; each time, all later batches must be seen again, and no other."""
    save = SaveEverywhere(folder)
    whole = train(folder, num_workers, callbacks=[save], **options)
    for name in list(save.saved)[::every]:
        seen = train(folder, num_workers, folder / name, **options)
        assert seen == whole[save.saved[name] :], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("run", RUNS)
def test_resumed_run_sees_what_an_uninterrupted_one_sees(run: str, tmp_path: Path) -> None:
    check_resuming(tmp_path, num_workers=0, **RUNS[run])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_resumed_run_with_workers_sees_what_an_uninterrupted_one_sees(tmp_path: Path) -> None:
    check_resuming(tmp_path, num_workers=2, every=3, accumulate_grad_batches=2, val_check_interval=3)


class StopAfter(Callback):
    """Ends a run within an epoch, as a limit of time or early stopping does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: Trainer, module: Diary, *_: Any) -> None:  # type: ignore[override]
        trainer.should_stop = len(module.trained) == self.number


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Visit]:
    """The batches of a plain run that nothing interrupts."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("stop", [5, 6, 11])
@pytest.mark.parametrize(
    "later", [{}, {"max_steps": NUM_EPOCHS * NUM_BATCHES, "max_epochs": -1}], ids=["epochs", "steps"]
)
@pytest.mark.parametrize("is_by_steps", [True, False], ids=["max_steps", "should_stop"])
def test_run_that_ended_within_an_epoch_can_go_on(
    stop: int, later: dict[str, Any], is_by_steps: bool, whole: list[Visit], tmp_path: Path
) -> None:
    options = {"max_steps": stop} if is_by_steps else {"callbacks": [StopAfter(stop)]}
    diary, trainer = Diary(), make_trainer(tmp_path, **options)
    trainer.fit(diary, make_data())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    assert diary.trained == whole[:stop]
    assert train(tmp_path, ckpt_path=tmp_path / "stopped.ckpt", **later) == whole[stop:]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_each_epoch_is_planned_by_its_number(whole: list[Visit]) -> None:
    data = make_data()
    data.setup("fit")
    dataset = data.datasets["train"]
    plan = BatchPlan(dataset.lengths, data._indices["train"], BATCH_SIZE, 1, data.seed, bucket_batches=2)
    expected = [
        [epoch, place, *(dataset.examples.ids[image] for image in images)]
        for epoch in range(NUM_EPOCHS)
        for place, (images, _) in enumerate(plan.train(epoch))
    ]
    assert len(expected) == NUM_EPOCHS * NUM_BATCHES
    assert [list(visit[: 2 + BATCH_SIZE]) for visit in whole] == expected


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    seen = []
    for num_workers in (0, 2):
        data = make_data(num_workers=num_workers)
        data.setup("fit")
        seen.append([*data.train_dataloader(), *data.val_dataloader()])
    assert len(seen[0]) == len(seen[1]) == NUM_BATCHES + 2
    for alone, together in zip(*seen, strict=True):
        assert visit_of(alone) == visit_of(together)
        torch.testing.assert_close(alone["image"], together["image"])
        torch.testing.assert_close(alone["labels"], together["labels"], equal_nan=True)


def test_loader_of_each_split() -> None:
    data = make_data()
    data.setup("fit")
    data.setup("test")
    train_ids = [name for batch in data.train_dataloader() for name in batch["id"]]
    assert len(data.train_dataloader()) == NUM_BATCHES
    assert len(train_ids) == len(set(train_ids)) == NUM_BATCHES * BATCH_SIZE
    assert set(train_ids) <= set(data.examples("train").ids)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        ids = [name for batch in loader for name in batch["id"]]
        assert sorted(ids) == sorted(data.examples(split).ids)  # type: ignore[arg-type]
    predicted = list(data.predict_dataloader())
    assert sorted(name for batch in predicted for name in batch["id"]) == sorted(data.examples("test").ids)  # type: ignore[arg-type]
    assert all(batch["matched"].all() for batch in predicted)  # each film with its own report


def test_resuming_with_other_batches_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    data, kept = make_data(), make_data().state_dict()
    data.trainer = make_trainer()
    data.load_state_dict(kept)
    data.trainer.state.fn = "fit"
    data.load_state_dict(kept)
    changed = kept | {"batch_size": 99, "num_replicas": 8}
    with pytest.raises(ValueError, match=r"batch_size was 99 and is .*, num_replicas was 8 and is 1: resume with"):
        data.load_state_dict(changed)
    data.trainer.state.fn = "test"
    data.load_state_dict(changed)  # the order does not matter to a test


@pytest.mark.parametrize(
    ("stage", "splits"), [("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"}), ("predict", {"test"})]
)
def test_setup_reads_what_the_stage_needs_once(stage: str, splits: set[str]) -> None:
    data = make_data()
    data.setup(stage)
    assert set(data.datasets) == splits
    before = dict(data.datasets)
    data.setup(stage)
    assert all(data.datasets[split] is dataset for split, dataset in before.items())


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test"), ("predict", "test")])
def test_trainer_evaluates_each_pair_once(stage: str, split: str, tmp_path: Path) -> None:
    diary, data = Diary(), make_data()
    getattr(make_trainer(tmp_path), stage)(diary, data)
    assert sorted(diary.evaluated) == sorted(data.examples(split).ids)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_overfitting_sees_the_same_batches_in_every_epoch(tmp_path: Path) -> None:
    seen = train(tmp_path, overfit_batches=2)
    epochs = [[visit[2] for visit in seen if visit[0] == epoch] for epoch in range(NUM_EPOCHS)]
    assert len(epochs[0]) == 2
    assert epochs[0] == epochs[1] == epochs[2]
    ids_and_seeds = {len([part for part in visit[2:] if isinstance(part, str)]) for visit in seen}
    assert ids_and_seeds == {BATCH_SIZE}


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch_size must be positive, not 0"):
        make_data(batch_size=0)


def test_split_without_pairs_is_an_error(make_pairs: Any) -> None:
    data = PairsDataModule(
        str(make_pairs()),
        patient_column="patient",
        tokenizer="synthetic",
        image_size=32,
        val_fraction=0,
    )
    data.prepare_data()
    with pytest.raises(ValueError, match="has no val split"):
        data.setup("fit")
