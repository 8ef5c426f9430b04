"""Tests of what is shown and written while a run goes on."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from medvill_pl import (
    ClassificationTask,
    ExampleTable,
    GenerationTask,
    PretrainingTask,
    RetrievalTask,
    SyntheticDataModule,
    SyntheticVQADataModule,
    Throughput,
    VQATask,
)
from medvill_pl.batch import Batch
from medvill_pl.callbacks.example_table import table_rows
from medvill_pl.callbacks.prediction_table import PredictionTable
from medvill_pl.cli import main
from medvill_pl.models.flops import forward_flops
from medvill_pl.models.medvill import BackboneConfig

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def data() -> SyntheticDataModule:
    return SyntheticDataModule(num_train=24, num_val=8, num_test=9, image_size=64, batch_size=4, negatives="labels")


@pytest.fixture
def task(tiny: BackboneConfig) -> PretrainingTask:
    return PretrainingTask(tiny, lr=1e-3)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with open(next(folder.rglob("metrics.csv")), newline="") as file:
        return list(csv.DictReader(file))


def test_throughput_counts_pairs_over_measured_time(
    task: PretrainingTask,
    data: SyntheticDataModule,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("medvill_pl.callbacks.throughput.time.perf_counter", lambda: 0.5 * next(ticks))
    trainer = make_trainer(
        max_steps=6, logger=CSVLogger(tmp_path), log_every_n_steps=1, callbacks=[Throughput(every_n_steps=2)]
    )
    trainer.fit(task, datamodule=data)
    speeds = [row["throughput/pairs_per_second"] for row in read_metrics(tmp_path)]
    # The first batch starts the clock. Two further ones, 8 pairs, take half a second of it, and so does the last one.
    assert [float(speed) for speed in speeds if speed] == [16.0, 16.0, 8.0]


def test_throughput_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be positive, not 0"):
        Throughput(every_n_steps=0)


def test_flop_count_is_that_of_a_full_size_pair(task: PretrainingTask, data: SyntheticDataModule) -> None:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert Throughput()._count(task, batch) == 0  # no figure on a CPU
    assert forward_flops(task.backbone, None, 10) > forward_flops(task.backbone, 4, 10) > 0


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where W&B keeps the pictures of tables until they are sent."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    return tmp_path / "staged"


def count_pictures(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.read_bytes().startswith(b"\x89PNG") for path in files)


def fit_with_wandb(task: PretrainingTask, data: Any, callback: ExampleTable, folder: Path, make: MakeTrainer) -> Path:
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    make(max_epochs=1, max_steps=-1, limit_val_batches=1.0, logger=logger, callbacks=[callback]).fit(
        task, datamodule=data
    )
    logger.experiment.finish()
    return folder / "wandb"


@pytest.mark.slow
def test_example_table_holds_image_reports_and_predictions(
    task: PretrainingTask, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path, staged: Path
) -> None:
    runs = fit_with_wandb(task, data, ExampleTable(num_examples=2), tmp_path, make_trainer)
    table = next(runs.rglob("*.table.json")).read_text()
    data.setup("validate")
    assert sum(name in table for name in data.datasets["val"].examples.ids) == 2
    assert "match probability" in table
    assert "attention of the token" in table
    assert count_pictures(staged) == 2 * 3  # image, attention of CLS, attention of a word


@pytest.mark.slow
def test_examples_of_a_credentialed_corpus_are_not_sent_unless_allowed(
    task: PretrainingTask,
    data: SyntheticDataModule,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    staged: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "is_credentialed", True)
    with pytest.warns(UserWarning, match="the corpus synthetic v1 is credentialed.*allow_credentialed"):
        runs = fit_with_wandb(task, data, ExampleTable(), tmp_path / "refused", make_trainer)
    assert not list(runs.rglob("*.table.json"))
    assert count_pictures(runs) == count_pictures(staged) == 0
    sent = b"".join(path.read_bytes() for path in runs.rglob("*") if path.is_file())
    assert data.datasets["val"].examples.reports[0].encode() not in sent
    runs = fit_with_wandb(task, data, ExampleTable(allow_credentialed=True), tmp_path / "allowed", make_trainer)
    assert list(runs.rglob("*.table.json"))
    assert count_pictures(staged) > 0


def test_a_corpus_that_does_not_say_counts_as_credentialed(
    task: PretrainingTask, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(logger=WandbLogger(save_dir=tmp_path, offline=True))
    with pytest.warns(UserWarning, match=r"the corpus \(unknown\) is credentialed"):
        ExampleTable().setup(trainer, task, "fit")


def test_example_table_without_wandb_says_so(task: PretrainingTask, make_trainer: MakeTrainer) -> None:
    with pytest.warns(UserWarning, match="it needs a WandbLogger"):
        ExampleTable().setup(make_trainer(), task, "fit")


@pytest.mark.slow
def test_wandb_run_has_the_whole_configuration(
    tiny_job: list[str], recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.logger.init_args.offline=true", "--trainer.accelerator=cpu"]
    assert main(["fit", *tiny_job, "-c", str(recipes / "_trainer/wandb.yaml"), *options]) == 0
    import wandb

    config = dict(wandb.run.config)["config"]
    wandb.finish()
    assert config["data"]["init_args"]["num_train"] == 8
    assert config["model"]["init_args"]["backbone"]["hidden_size"] == 8
    assert config["trainer"]["max_epochs"] == 1
    assert config["seed_everything"] == 0
    (resolved,) = tmp_path.rglob("config.yaml")
    assert "class_path: medvill_pl.ExampleTable" in resolved.read_text()


def test_predictions_are_written_once_and_never_over_others(
    task: PretrainingTask, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "table.csv"
    make_trainer(callbacks=[PredictionTable(str(path))]).predict(task, datamodule=data)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == sorted(data.datasets["test"].examples.ids)
    probabilities = torch.tensor([float(row["match_probability"]) for row in rows])
    assert ((probabilities > 0) & (probabilities < 1)).all()
    with pytest.raises(FileExistsError, match="is there already"):
        make_trainer(callbacks=[PredictionTable(str(path))]).predict(task, datamodule=data)


# -- attention in tables -------------------------------------------------------------------------


def val_batch(data: Any) -> Batch:
    data.setup("validate")
    batch: Batch = next(iter(data.val_dataloader()))
    return batch


def test_table_shows_where_cls_and_the_hidden_word_look_that_looks_most(
    task: PretrainingTask, data: SyntheticDataModule
) -> None:
    batch = task.masking(val_batch(data))
    rows = table_rows(task.eval(), batch, num_examples=8)
    assert len(rows) == int(batch["matched"].sum())
    weights = task.backbone.attention_weights(
        images=batch["image"],
        input_ids=batch["mlm_input_ids"],
        text_mask=batch["text_mask"],
        mask_strategy="bar",
    )
    num_visual, length = task.backbone.num_visual, batch["input_ids"].shape[1]
    on_image = weights[:, -1].mean(1)[:, 2 + num_visual :, 1 : 1 + num_visual].sum(2)
    for row in rows:
        place = batch["id"].index(str(row["id"]))
        hidden = [at % length for at in batch["mlm_positions"].tolist() if at // length == place]
        tokens = task.backbone.tokenizer.tokens(batch["input_ids"][place].tolist())
        words = [at for at in hidden if tokens[at].isalnum()]  # rather than a punctuation mark
        best = max(words or hidden, key=lambda at: float(on_image[place, at]))
        assert row["token"] == tokens[best]
        for name in ("attention of CLS", "attention of the token"):
            picture = row[name]
            assert isinstance(picture, np.ndarray)
            assert picture.shape == (64, 64, 3)
        assert np.array_equal(row["image"], batch["image"][place, 0].numpy())


def test_tables_of_the_other_tasks_show_words_where_they_predict_words(
    tiny: BackboneConfig, data: SyntheticDataModule
) -> None:
    pairs, questions = val_batch(data), val_batch(SyntheticVQADataModule(4, 2, 2, image_size=64, batch_size=4))
    decoding = {"max_new_tokens": 4}
    writer = GenerationTask(tiny, decoding=decoding).eval()  # type: ignore[arg-type]
    row = table_rows(writer, pairs, 1)[0]
    assert row["token"] in writer.backbone.tokenizer.tokens(pairs["input_ids"].flatten().tolist())
    assert "attention of the token" in row
    rest = [(ClassificationTask(tiny, use_report=use), pairs) for use in (True, False)]
    rest += [(RetrievalTask(tiny), pairs), (VQATask(tiny, answers=["yes", "no"]), questions)]  # type: ignore[list-item]
    non_crossing = PretrainingTask(tiny, mask_strategy="non_crossing")  # its words do not see the image
    rest += [(non_crossing, non_crossing.masking(pairs))]  # type: ignore[list-item]
    for task, batch in rest:
        row = table_rows(task.eval(), batch, 1)[0]
        assert "token" not in row
        assert "attention of CLS" in row


def test_attention_of_an_image_alone_does_not_see_the_report(tiny: BackboneConfig, data: SyntheticDataModule) -> None:
    batch = val_batch(data)
    other = batch | {name: batch[name].flip(0) for name in ("input_ids", "text_mask")}  # type: ignore[literal-required]
    image_alone, with_report = (ClassificationTask(tiny, use_report=use).eval() for use in (False, True))
    for task, is_same in ((image_alone, True), (with_report, False)):
        pictures = [table_rows(task, each, 4)[0]["attention of CLS"] for each in (batch, other)]  # type: ignore[arg-type]
        assert np.array_equal(*pictures) == is_same  # type: ignore[arg-type]
