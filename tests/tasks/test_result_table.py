"""What a test run leaves in its folder, and the timing of inference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from medvill_pl import Batch, ClassificationTask, ResultTable, RetrievalTask, SyntheticDataModule
from medvill_pl.evaluation.results import Results
from medvill_pl.files import free_name
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.runs import gather
from medvill_pl.tasks.result_table import inference_time, slice_batch

MakeTrainer = Callable[..., Trainer]
SIZES = {"num_train": 8, "num_val": 4, "num_test": 7, "image_size": 64, "num_workers": 0}


def make_data(**arguments: Any) -> SyntheticDataModule:
    return SyntheticDataModule(**(SIZES | {"batch_size": 3, "seed": 5} | arguments))  # type: ignore[arg-type]


def make_task(backbone: BackboneConfig) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(backbone, use_report=False)


def test_test_run_leaves_results_that_give_its_scores_again(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(logger=CSVLogger(tmp_path, name="run", version=3))
    trainer.test(make_task(tiny), datamodule=make_data(), verbose=False)
    results = Results.read(tmp_path / "run" / "version_3" / "test.parquet")
    assert len(results.rows) == 7
    logged = {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}
    scores = results.scores()
    assert logged.keys() == scores.keys() | {"loss"}
    assert {name: logged[name] for name in scores} == pytest.approx(scores, abs=1e-6)


def test_configuration_stands_beside_the_results(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer()
    trainer.fit(make_task(tiny), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    tester = make_trainer()
    tester.test(make_task(tiny), datamodule=make_data(), ckpt_path=tmp_path / "task.ckpt", verbose=False)
    config = json.loads((tmp_path / "test.json").read_text())["config"]
    assert config["task"] == "medvill_pl.tasks.classification.ClassificationTask"
    assert config["hyper_parameters"]["use_report"] is False
    assert config["backbone"]["hidden_size"] == 32
    assert config["backbone"]["tokenizer"].endswith("tokens")  # not the whole vocabulary
    assert config["trained_on"] == [{"name": make_data().name, "pairs": 8, "credentialed": False}]
    assert (config["data"]["name"], config["data"]["seed"]) == (make_data().name, 5)
    assert config["data"]["arguments"].items() >= {"batch_size": 3, "image_size": 64}.items()
    assert config["checkpoint"] == str(tmp_path / "task.ckpt")
    assert config["device"] == "cpu, 1 threads"
    assert config["scores"] == {name: value.item() for name, value in tester.callback_metrics.items()}
    assert config["ms_per_example"].keys() == {"1", "3"}
    assert all(milliseconds > 0 for milliseconds in config["ms_per_example"].values())


def test_second_test_keeps_the_first_ones_results(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    task = make_task(tiny)
    for _ in range(2):
        make_trainer(callbacks=[ResultTable(time_inference=False)]).test(task, datamodule=make_data(), verbose=False)
    assert sorted(path.name for path in tmp_path.glob("test*")) == [
        "test-1.json",
        "test-1.parquet",
        "test.json",
        "test.parquet",
    ]


def test_own_result_table_takes_the_place_of_the_tasks(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(callbacks=[ResultTable(time_inference=False)])
    trainer.test(make_task(tiny), datamodule=make_data(), verbose=False)
    assert "ms_per_example" not in json.loads((tmp_path / "test.json").read_text())["config"]


def test_trying_out_a_batch_writes_nothing(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(fast_dev_run=True).test(make_task(tiny), datamodule=make_data(), verbose=False)
    assert list(tmp_path.glob("test*")) == []


# -- inference time ------------------------------------------------------------------------------


class Counting:
    """Notes the size of each batch that it is given, and whether gradients are off."""

    def __init__(self, batch: Batch) -> None:
        self.first_test_batch = batch
        self.sizes: list[int] = []
        self.modes: set[bool] = set()

    def predict_step(self, batch: Batch, batch_idx: int) -> object:
        self.sizes.append(len(batch["id"]))
        self.modes.add(torch.is_inference_mode_enabled())
        return None


def first_batch(size: int) -> Batch:
    data = make_data(batch_size=size)
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_inference_is_timed_at_batch_1_and_at_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    task, now = Counting(first_batch(7)), [0.0]

    def clock() -> float:
        # A batch of 1 takes 0.25 seconds and one of 7 takes 0.875; the first of each, the warm-up, takes longer.
        is_end = len(task.sizes) > clock.seen  # type: ignore[attr-defined]
        clock.seen = len(task.sizes)  # type: ignore[attr-defined]
        if is_end:
            is_first = task.sizes.count(task.sizes[-1]) == 1
            now[0] += 9.0 if is_first else {1: 0.25, 7: 0.875}[task.sizes[-1]]
        return now[0]

    clock.seen = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("medvill_pl.tasks.result_table.time.perf_counter", clock)
    times = inference_time(task, torch.device("cpu"))  # type: ignore[arg-type]
    assert times == pytest.approx({"1": 250.0, "7": 125.0})
    assert task.sizes == [1] * 9 + [7] * 4  # a warm-up each, then 2 seconds, three times at least
    assert task.modes == {True}


def test_a_batch_of_one_is_timed_once() -> None:
    assert inference_time(Counting(first_batch(1)), torch.device("cpu"), seconds=0.0).keys() == {"1"}  # type: ignore[arg-type]


def test_first_examples_of_a_batch() -> None:
    batch = first_batch(7)
    part = slice_batch(batch, 2)
    assert part.keys() == batch.keys()
    assert part["id"] == batch["id"][:2]
    assert torch.equal(part["image"], batch["image"][:2])
    assert part["report"] == batch["report"][:2]


def test_timing_does_not_change_the_task(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    torch.manual_seed(0)
    task = RetrievalTask(tiny, num_candidates=3)
    before = {name: weight.clone() for name, weight in task.state_dict().items()}
    make_trainer().test(task, datamodule=make_data(), verbose=False)
    # BatchNorm's running statistics would move if the model were timed in training mode.
    assert all(torch.equal(before[name], weight) for name, weight in task.state_dict().items())


# -- small things --------------------------------------------------------------------------------


def test_free_name_is_the_first_that_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    names = []
    for _ in range(3):
        names.append(free_name(path).name)
        free_name(path).touch()
    assert names == ["test.parquet", "test-1.parquet", "test-2.parquet"]


def test_one_process_gathers_what_it_has(make_trainer: MakeTrainer) -> None:
    assert gather((1, 2), make_trainer()) == [1, 2]
