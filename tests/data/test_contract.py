"""What a data module and a task say to each other: each value is said once, contradictions are refused early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from medvill_pl import (
    BackboneConfig,
    ClassificationTask,
    InputSpec,
    MedViLL,
    PairsDataModule,
    PretrainingTask,
    ReportTokenizer,
    SyntheticDataModule,
    SyntheticVQADataModule,
    VQATask,
)

MakeTrainer = Callable[..., Trainer]
MakePairs = Callable[..., Path]


def make_data(**arguments: Any) -> SyntheticDataModule:
    return SyntheticDataModule(num_train=8, num_val=4, num_test=4, batch_size=4, **arguments)


def test_data_take_everything_from_the_task(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, task = make_data(negatives="labels"), PretrainingTask(tiny)
    make_trainer().fit(task, datamodule=data)
    assert data.input_spec == task.input_spec == InputSpec(ReportTokenizer.load("synthetic"), 64, 120)


def test_pairs_are_prepared_at_the_size_of_the_task(
    tiny: BackboneConfig, make_trainer: MakeTrainer, make_pairs: MakePairs
) -> None:
    data = PairsDataModule(str(make_pairs(30)), patient_column="patient", num_workers=0, negatives="text")
    trainer = make_trainer()
    trainer.fit(PretrainingTask(tiny), datamodule=data)
    assert trainer.global_step == 1
    assert (data.image_size, data.tokenizer.vocab_size) == (64, 272)


def test_corpus_folder_is_that_of_the_same_options_told(make_pairs: MakePairs, backbone: MedViLL) -> None:
    table = str(make_pairs(12))
    told = PairsDataModule(table, tokenizer="synthetic", image_size=64)
    taken = PairsDataModule(table)
    taken.connect(backbone.input_spec)
    other = PairsDataModule(table, tokenizer="synthetic", image_size=32)
    assert told.corpus == taken.corpus != other.corpus


def test_data_that_nobody_told_say_what_they_do_not_know(make_pairs: MakePairs) -> None:
    data = PairsDataModule(str(make_pairs(12)), tokenizer="synthetic")
    with pytest.raises(ValueError, match=r"PairsDataModule does not know image_size: use it in a trainer with a task"):
        _ = data.image_size


def test_embedded_corpus_has_a_size_and_words_of_its_own() -> None:
    assert (make_data().image_size, make_data().tokenizer.vocab_size) == (128, 272)


def test_shorter_texts_than_the_model_reads_may_be_told(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data = make_data(max_tokens=10, negatives="labels")
    make_trainer().fit(PretrainingTask(tiny), datamodule=data)
    assert (data.max_tokens, max(data.datasets["train"].lengths)) == (10, 11)


def test_contradiction_is_refused_before_anything_is_tokenised(
    tiny: BackboneConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = PretrainingTask(tiny), make_data(image_size=32)

    def encode(*_: object) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(ReportTokenizer, "encode", encode)
    with pytest.raises(ValueError, match="the data's image_size is 32, the model's 64"):
        make_trainer().fit(task, datamodule=data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_data_module_serves_one_model_after_the_other(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data = make_data(negatives="labels")
    for size in (64, 32):
        make_trainer().fit(PretrainingTask({**tiny, "image_size": size}), datamodule=data)
        assert data.datasets["train"][next(iter(data.train_dataloader().sampler))]["image"].shape[-1] == size  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_task_knows_its_data_while_a_stage_runs_only(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, data = ClassificationTask(tiny), make_data()
    seen = []
    task.on_train_start = lambda: seen.append(task.data)  # type: ignore[method-assign]
    make_trainer().fit(task, datamodule=data)
    assert (seen, task.data) == ([data], None)
    loader = data.train_dataloader()
    make_trainer().fit(task, train_dataloaders=loader)
    assert seen == [data, None]


def test_questions_have_images_of_the_size_of_the_task(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data = SyntheticVQADataModule(4, 2, 2, batch_size=4)
    make_trainer().fit(VQATask(tiny), datamodule=data)
    assert data.examples("train").image(0).shape == (1, 64, 64)
