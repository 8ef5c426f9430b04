"""Visual question answering: answers, controls and tables, with a tiny backbone."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from medvill_pl import Batch, FolderDataModule, SyntheticDataModule, SyntheticVQADataModule, VQATask
from medvill_pl.batch import Split
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.synthetic.datamodule import SyntheticQuestions

MakeTrainer = Callable[..., Trainer]
SIZES = {"num_train": 6, "num_val": 3, "num_test": 3, "image_size": 64, "num_workers": 0}


def make_data(**arguments: Any) -> SyntheticVQADataModule:
    return SyntheticVQADataModule(**(SIZES | {"batch_size": 8} | arguments))


class NewAnswers(SyntheticVQADataModule):
    """Some answers of the test split do not occur in training."""

    def examples(self, split: Split) -> SyntheticQuestions:
        examples = copy.copy(super().examples(split))
        if split == "test":
            examples.answers = ["a hiatal hernia" if n % 3 == 0 else a for n, a in enumerate(examples.answers)]
        return examples


def make_task(backbone: BackboneConfig, answers: list[str] | None = None, **arguments: Any) -> VQATask:
    """A task whose answers depend on image and question."""
    torch.manual_seed(0)
    task = VQATask(backbone, answers=answers, **({"lr": 1e-2} | arguments))
    for name, weight in task.named_parameters():
        if weight.ndim == 2 and "image_encoder" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return task.eval()


def test_head_starts_with_equally_likely_answers(tiny: BackboneConfig) -> None:
    task = VQATask(tiny, answers=["left", "no", "right", "yes"])
    assert task.head is not None
    assert task.head.bias.sigmoid().tolist() == pytest.approx([0.25] * 4)


def training_answers(data: SyntheticVQADataModule) -> list[str]:
    return sorted(set(data.examples("train").answers))


@torch.no_grad()
def probabilities(task: VQATask, image: Tensor, question: str) -> dict[str, float]:
    """The probability of every answer to one question, alone and in float64."""
    assert task.head is not None
    tokenizer = task.backbone.tokenizer
    ids = torch.tensor([[*tokenizer.encode([question])[0], tokenizer.sep_id]])
    output = task.backbone(images=image[None], input_ids=ids, text_mask=torch.ones_like(ids, dtype=torch.bool))
    logits = output.pooled.double() @ task.head.weight.double().T + task.head.bias.double()
    values = [1 / (1 + math.exp(-logit)) for logit in logits[0].tolist()]
    return dict(zip(task.answers, values, strict=True))


def top_answer(of_answers: dict[str, float]) -> str:
    return max(of_answers, key=lambda answer: of_answers[answer])


def test_classes_are_the_answers_of_the_training_split(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, data = make_task(tiny), make_data()
    assert task.head is None
    make_trainer().fit(task, datamodule=data)
    assert task.answers == training_answers(data)
    assert task.head is not None
    assert task.head.out_features == len(task.answers)


def test_test_scores_every_question_with_the_real_a_black_and_another_image(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    data = NewAnswers(**SIZES, batch_size=8)
    task, trainer = make_task(tiny, training_answers(data)), make_trainer()
    trainer.test(task, datamodule=data, verbose=False)
    examples = data.examples("test")
    rows = {row["id"]: row for row in task.results.rows}
    assert list(rows) == sorted(examples.ids)
    losses, size = [], len(examples.ids)
    for index, name in enumerate(examples.ids):
        row, question, answer = rows[name], examples.questions[index], examples.answers[index]
        image, other = examples.image(index), examples.image((index + size // 2) % size)
        of_answers = probabilities(task, image, question)
        assert row["prediction"] == top_answer(of_answers)
        assert row["prediction_blank"] == top_answer(probabilities(task, torch.zeros_like(image), question))
        assert row["prediction_shuffled"] == top_answer(probabilities(task, other, question))
        assert (row["question"], row["answer"], row["organ"]) == (question, answer, "chest")
        assert (row["answer_type"], row["question_type"]) == (
            examples.answer_types[index],
            examples.question_types[index],
        )
        assert row["is_known"] == (answer in of_answers)
        losses.append(sum(-math.log(p if a == answer else 1 - p) for a, p in of_answers.items()))
    for column in ("prediction_blank", "prediction_shuffled"):
        assert any(row[column] != row["prediction"] for row in rows.values())  # else the image would not matter
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["test/loss"] == pytest.approx(np.mean(losses), rel=1e-5)

    # An answer that is not in the vocabulary is wrong; how many there are is the ceiling.
    is_known = [answer in training_answers(data) for answer in examples.answers]
    assert logged["test/ceiling"] == pytest.approx(np.mean(is_known))
    for name, column in (("", "prediction"), ("_blank", "prediction_blank"), ("_shuffled", "prediction_shuffled")):
        hits = [row[column] == row["answer"] for row in rows.values()]
        assert logged[f"test/accuracy{name}"] == pytest.approx(np.mean(hits))
    assert logged["test/accuracy"] <= logged["test/ceiling"] < 1


def test_most_frequent_answer_of_training_stands_beside_the_model(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    data, trainer = make_data(), make_trainer()
    task = make_task(tiny, training_answers(data))
    trainer.test(task, datamodule=data, verbose=False)
    train, test = data.examples("train"), data.examples("test")
    most_frequent = {}
    for kind in ("closed", "open"):
        counts = Counter(a for a, k in zip(train.answers, train.answer_types, strict=True) if k == kind)
        most_frequent[kind] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
    assert task.results.context["most_frequent"] == most_frequent
    hits = [most_frequent[kind] == answer for answer, kind in zip(test.answers, test.answer_types, strict=True)]
    assert trainer.callback_metrics["test/accuracy_most_frequent"].item() == pytest.approx(np.mean(hits))


def test_validation_scores_accuracy_without_the_controls(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, trainer = make_data(), make_trainer(limit_val_batches=1.0)
    task = make_task(tiny, training_answers(data))
    trainer.validate(task, datamodule=data, verbose=False)
    examples = data.examples("val")
    hits = [
        top_answer(probabilities(task, examples.image(index), question)) == examples.answers[index]
        for index, question in enumerate(examples.questions)
    ]
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(np.mean(hits))
    assert "val/accuracy_blank" not in trainer.callback_metrics


def test_every_trainable_weight_has_a_gradient(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, data = make_task(tiny), make_data()
    make_trainer().fit(task, datamodule=data)
    task.step(next(iter(data.train_dataloader()))).loss.backward()
    unused = tuple(f"backbone.{name}" for name in task.unused_parameters)
    assert {name for name, p in task.named_parameters() if p.grad is None and not name.startswith(unused)} == set()


# -- predictions ---------------------------------------------------------------------------------


def test_prediction_gives_the_top_five_answers(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data = make_data()
    task = make_task(tiny, training_answers(data))
    rows = {row["id"]: row for batch in make_trainer().predict(task, datamodule=data) or [] for row in batch}
    examples = data.examples("test")
    assert sorted(rows) == sorted(examples.ids)
    for index, name in enumerate(examples.ids):
        of_answers = probabilities(task, examples.image(index), examples.questions[index])
        best = sorted(of_answers, key=lambda answer: -of_answers[answer])[:5]
        row = rows[name]
        assert row["question"] == examples.questions[index]
        assert [row[f"answer_{place}"] for place in range(1, 6)] == best
        given = [row[f"probability_{place}"] for place in range(1, 6)]
        assert given == pytest.approx([of_answers[answer] for answer in best], abs=1e-5)


def test_fewer_answers_than_five_are_all_given(tiny: BackboneConfig) -> None:
    data = make_data()
    data.setup("test")
    (row, *_) = make_task(tiny, ["no", "yes"]).predict_step(next(iter(data.test_dataloader())), 0)
    assert list(row) == ["id", "question", "answer_1", "probability_1", "answer_2", "probability_2"]
    assert {row["answer_1"], row["answer_2"]} == {"no", "yes"}


def test_examples_for_a_table_show_answer_and_prediction(tiny: BackboneConfig) -> None:
    data = make_data()
    data.setup("test")
    batch: Batch = next(iter(data.test_dataloader()))
    task = make_task(tiny, training_answers(data))
    for example, row, answer in zip(
        task.example_rows(batch), task.predict_step(batch, 0), batch["answer"], strict=True
    ):
        assert (example["prediction"], example["probability"]) == (row["answer_1"], row["probability_1"])
        assert (example["question"], example["answer"]) == (row["question"], answer)


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    """A checkpoint after one step."""
    trainer = make_trainer()
    trainer.fit(make_task(tiny), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    return tmp_path / "task.ckpt"


def test_checkpoint_keeps_the_answers(checkpoint: Path) -> None:
    loaded = VQATask.load_from_checkpoint(checkpoint)
    assert loaded.answers == training_answers(make_data())
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert loaded.head is not None
    assert torch.equal(loaded.head.weight, weights["head.weight"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "images/a.png")
    return tmp_path / "images"


def of_folder(images: Path, question: str) -> FolderDataModule:
    return FolderDataModule(str(images), question, "synthetic", image_size=64, num_workers=0)


def test_checkpoint_answers_a_question_about_a_folder(
    tiny: BackboneConfig, checkpoint: Path, images: Path, make_trainer: MakeTrainer
) -> None:
    data = of_folder(images, "is there edema?")
    ((row,),) = make_trainer().predict(make_task(tiny), datamodule=data, ckpt_path=checkpoint) or []
    expected = probabilities(
        VQATask.load_from_checkpoint(checkpoint).eval(), data.examples("test").image(0), "is there edema?"
    )
    assert (row["id"], row["answer_1"]) == ("a.png", top_answer(expected))
    assert row["probability_1"] == pytest.approx(max(expected.values()), abs=1e-5)


def test_checkpoint_is_tested_with_its_own_answers_whatever_the_training_split_has(
    tiny: BackboneConfig, checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    task = make_task(tiny)
    make_trainer().test(task, datamodule=make_data(num_train=40), ckpt_path=checkpoint, verbose=False)
    assert task.answers == training_answers(make_data())
    assert {row["prediction"] for row in task.results.rows} <= set(task.answers)


def test_resuming_with_other_answers_is_refused(
    tiny: BackboneConfig, checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    other = make_data(num_train=40)
    ours, theirs = len(training_answers(other)), len(training_answers(make_data()))
    assert ours != theirs
    message = f"the checkpoint knows {theirs} answers, the training split has {ours} others: resume with the same data"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=2).fit(make_task(tiny), datamodule=other, ckpt_path=checkpoint)


# -- bad input -----------------------------------------------------------------------------------


def test_image_without_a_question_is_refused(
    tiny: BackboneConfig, checkpoint: Path, images: Path, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match=r"FolderDataModule has no questions: give .* a question as its text"):
        make_trainer().predict(make_task(tiny), datamodule=of_folder(images, ""), ckpt_path=checkpoint)


def test_question_without_an_image_is_refused(images: Path) -> None:
    (images / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="images holds no images"):
        of_folder(images, "is there edema?")
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        of_folder(images, "is there edema?").setup("predict")
    with pytest.raises(FileNotFoundError, match=r"no such folder or image: .*missing\.png"):
        of_folder(images / "missing.png", "is there edema?")


def test_question_without_an_image_is_refused_by_the_model(tiny: BackboneConfig) -> None:
    data = make_data()
    data.setup("test")
    batch: Batch = next(iter(data.test_dataloader()))
    with pytest.raises(ValueError, match="give either images or visual_tokens"):
        make_task(tiny, ["no", "yes"])(None, batch)


def test_corpus_of_reports_is_refused(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="SyntheticDataModule has no questions"):
        make_trainer().fit(make_task(tiny), datamodule=SyntheticDataModule(**SIZES))


def test_task_without_answers_says_so(tiny: BackboneConfig, images: Path, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="this task knows no answers yet: train it, or load a checkpoint"):
        make_trainer().predict(make_task(tiny), datamodule=of_folder(images, "is there edema?"))


class Unanswered(SyntheticVQADataModule):
    """Questions without any answers."""

    def examples(self, split: Split) -> SyntheticQuestions:
        examples = copy.copy(super().examples(split))
        examples.answers = []
        return examples


def test_training_split_without_answers_is_refused(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="the training split has no answers to learn"):
        make_trainer().fit(make_task(tiny), datamodule=Unanswered(**SIZES))
