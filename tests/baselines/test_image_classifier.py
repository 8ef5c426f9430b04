"""The image encoder's own findings: loss, tokens, shifts, checkpoints and results, with a tiny encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from medvill_pl import Batch, ClassificationTask, ImageClassifier, MedViLL, SyntheticDataModule
from medvill_pl.models.medvill import BackboneConfig

MakeTrainer = Callable[..., Trainer]


def make_task(**arguments: Any) -> ImageClassifier:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "lr": 1e-2}
    return ImageClassifier(**(defaults | arguments))


def make_data(**arguments: Any) -> SyntheticDataModule:
    return SyntheticDataModule(**({"num_train": 48, "num_val": 16, "num_test": 24, "batch_size": 16} | arguments))


def first_batch(task: ImageClassifier) -> Batch:
    data = make_data(image_size=64)
    data.setup("fit")
    task.data = data
    task.setup("fit")
    batch: Batch = next(iter(data.train_dataloader()))
    return batch


@pytest.mark.parametrize("token_weight", [0.0, 0.2])
def test_it_learns_its_training_images(token_weight: float, make_trainer: MakeTrainer) -> None:
    task, data = make_task(token_weight=token_weight, lr=3e-2), make_data()
    batch = first_batch(task)
    before = task.step(batch).loss.item()
    make_trainer(max_steps=40).fit(task, datamodule=data)
    assert task.train().score(task(batch), batch).loss.item() < 0.6 * before


def test_metrics_are_those_of_an_independent_computation(make_trainer: MakeTrainer) -> None:
    task, data = make_task().eval(), make_data()
    make_trainer().test(task, datamodule=data, verbose=False)
    rows = {row["id"]: row for row in task.results.rows}
    probability, label = [], []
    for batch in data.test_dataloader():
        with torch.no_grad():
            features = task.image_encoder(batch["image"]).double().mean((2, 3))
        logits = features @ task.head.weight.double().T + task.head.bias.double()
        probability += torch.sigmoid(logits).tolist()
        label += (batch["labels"] == 1).int().tolist()
        for name, row in zip(batch["id"], torch.sigmoid(logits).tolist(), strict=True):
            assert rows[name]["probability"] == pytest.approx(row, abs=1e-5)
    positive, negative = np.array(probability)[np.array(label) == 1], np.array(probability)[np.array(label) == 0]
    differences = positive[:, None] - negative[None]
    expected = (differences > 0).mean() + (differences == 0).mean() / 2  # share of pairs in the right order
    assert task.results.scores()["auroc_micro"] == pytest.approx(expected, abs=1e-4)


def test_its_results_compare_with_those_of_the_backbone(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, other = make_task().eval(), ClassificationTask(tiny, use_report=False).eval()
    for each in (task, other):
        make_trainer().test(each, datamodule=make_data(), verbose=False)
    assert task.results.score_fn == other.results.score_fn
    assert task.results.context["frequency"] == other.results.context["frequency"]
    for ours, theirs in zip(task.results.rows, other.results.rows, strict=True):
        assert (ours["id"], ours["label"]) == (theirs["id"], theirs["label"])


def test_loss_weighs_each_token_beside_each_finding() -> None:
    task = make_task(token_weight=0.2).train()
    batch = first_batch(task)
    loss = task.step(batch).loss
    features = task.image_encoder(batch["image"]).mean((2, 3))
    tokens = task.input_spec.tokenizer
    assert task.token_head is not None
    words = task.token_head(features)
    chosen = task.is_predicted.nonzero()[:, 0].tolist()
    shares = {
        index: sum(index in ids for ids in tokens.encode(task.data.examples("train").reports)) for index in chosen
    }
    assert all(1 <= number <= 0.95 * 48 for number in shares.values())
    assert tokens.encode(["."])[0][0] not in chosen  # all reports have it
    cells = [
        nn.functional.binary_cross_entropy_with_logits(
            words[row, chosen], torch.tensor([float(index in batch["input_ids"][row]) for index in chosen])
        )
        * len(chosen)
        for row in range(len(words))
    ]
    of_findings = nn.functional.binary_cross_entropy_with_logits(task.head(features), (batch["labels"] == 1).float())
    assert loss.item() == pytest.approx((of_findings + 0.2 / 14 * torch.stack(cells).mean()).item(), rel=1e-5)


def test_shifts_follow_from_the_seed_and_stay_within_their_limit() -> None:
    task = make_task(max_shift=2)
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 255
    positions = {tuple(task._shifted(image)[0, 0].nonzero()[0].tolist()) for _ in range(300)}
    assert positions == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    torch.manual_seed(5)
    one = task._shifted(image)
    torch.manual_seed(5)
    assert torch.equal(one, task._shifted(image))
    assert torch.equal(make_task()._shifted(image), image)


def test_checkpoint_stands_alone_and_holds_plain_values(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    task = make_task(token_weight=0.2)
    trainer = make_trainer(max_steps=-1, max_epochs=1, limit_val_batches=1.0)
    trainer.fit(task, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    assert loaded.input_spec.tokenizer == task.input_spec.tokenizer
    assert loaded.hparams["tokenizer"] == "embedded"
    images = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded.predict_images(images), task.predict_images(images))
    assert torch.equal(loaded.threshold, task.threshold)
    assert (task.threshold != 0.5).any()  # chosen on validation


def test_resumed_run_is_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    task = make_task(token_weight=0.2, max_shift=3)
    trainer = make_trainer(max_steps=2)
    trainer.fit(task, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "2.ckpt")
    resumed = make_task(token_weight=0.2, max_shift=3)
    make_trainer(max_steps=5).fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "2.ckpt", weights_only=True)
    whole = make_task(token_weight=0.2, max_shift=3)
    make_trainer(max_steps=5).fit(whole, datamodule=make_data())
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


def test_trained_encoder_goes_into_a_backbone(tiny: BackboneConfig) -> None:
    task = make_task()
    backbone = MedViLL(**tiny)
    backbone.image_encoder.load_state_dict(task.image_encoder.state_dict())
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    backbone.eval()
    task.eval()
    assert torch.equal(backbone.image_encoder(images), task.image_encoder(images))


def test_prediction_leaves_the_mode_as_it_was() -> None:
    task = make_task().train()
    images = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    together = task.predict_images(images, batch_size=2)
    assert task.training
    assert task.image_encoder.training
    torch.testing.assert_close(together, task.predict_images(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_weight": 0.2, "tokenizer": None}, "token_weight predicts the tokens of reports: give their tokenizer"),
        ({"token_weight": -1.0}, "token_weight and max_shift must be 0 or more, not -1.0 and 0"),
        ({"image_encoder": "resnet9"}, "unknown image encoder 'resnet9'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_without_a_tokenizer_the_data_is_told(make_trainer: MakeTrainer) -> None:
    task = make_task(tokenizer=None)
    assert task.input_spec is None
    with pytest.raises(ValueError, match="the data's image_size is 128, the model's 64"):
        make_trainer().fit(task, datamodule=make_data())
    make_trainer().fit(task, datamodule=make_data(image_size=64))


def test_tokens_of_own_loaders_are_refused(make_trainer: MakeTrainer) -> None:
    data = make_data(image_size=64)
    data.setup("fit")
    with pytest.raises(ValueError, match="loaders of your own do not show"):
        make_trainer().fit(make_task(token_weight=0.1), data.train_dataloader())


def test_checkpoint_of_another_size_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.fit(make_task(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    with pytest.raises(ValueError, match="image_size is 64 there and 32 here"):
        make_trainer().test(make_task(image_size=32), datamodule=make_data(), ckpt_path=tmp_path / "task.ckpt")
