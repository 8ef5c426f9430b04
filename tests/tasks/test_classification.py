"""Diagnosis classification: loss, masks, thresholds and tables, with a tiny backbone."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from medvill_pl import FINDINGS, Batch, ClassificationTask, FolderDataModule, SyntheticDataModule
from medvill_pl.batch import Split
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.synthetic.datamodule import SyntheticExamples

MakeTrainer = Callable[..., Trainer]
NAN = float("nan")
SIZES = {"num_train": 12, "num_val": 9, "num_test": 7, "image_size": 64, "batch_size": 4, "num_workers": 0}


class DrawnLabels(SyntheticDataModule):
    """The embedded corpus with labels of all kinds, of which some findings are declared unlabelled."""

    def __init__(self, labelled: tuple[str, ...] = FINDINGS, values: tuple[float, ...] = (1, 0, -1, NAN)) -> None:
        super().__init__(**SIZES)
        self.labelled, self.values = labelled, values

    def examples(self, split: Split) -> SyntheticExamples:
        examples = copy.copy(super().examples(split))
        rng = np.random.default_rng(len(split))
        examples.labels = rng.choice(np.array(self.values, np.float32), examples.labels.shape)
        examples.labelled = self.labelled  # type: ignore[assignment]
        return examples


def make_task(backbone: BackboneConfig, **arguments: Any) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(backbone, **({"use_report": False, "lr": 1e-2} | arguments)).eval()


def run_test(task: ClassificationTask, data: SyntheticDataModule, trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Rows of a test by identifier."""
    trainer.test(task, datamodule=data, verbose=False)
    return {row["id"]: dict(row) for row in task.results.rows}


def probability_of(task: ClassificationTask, batch: Batch, row: int) -> list[float]:
    """The probabilities of one example, worked out alone and in float64."""
    length = int(batch["text_mask"][row].sum()) if task.use_report else 0
    with torch.no_grad():
        output = task.backbone(
            images=batch["image"][row : row + 1],
            input_ids=batch["input_ids"][row : row + 1, :length],
            text_mask=batch["text_mask"][row : row + 1, :length],
        )
        logits = output.pooled.double() @ task.head.weight.double().T + task.head.bias.double()
    return [1 / (1 + math.exp(-logit)) for logit in logits[0].tolist()]


@pytest.mark.parametrize("use_report", [True, False])
@pytest.mark.parametrize(("uncertain", "counts_as"), [("negative", 0), ("positive", 1), ("ignore", None)])
def test_loss_is_the_cross_entropy_of_every_labelled_finding(
    uncertain: str, counts_as: int | None, use_report: bool, tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    data = DrawnLabels(labelled=FINDINGS[2:9])
    task, trainer = make_task(tiny, uncertain=uncertain, use_report=use_report), make_trainer()
    rows = run_test(task, data, trainer)
    cells = []
    for batch in data.test_dataloader():
        for number, name in enumerate(batch["id"]):
            probability = probability_of(task, batch, number)
            assert rows[name]["probability"] == pytest.approx(probability, abs=1e-5)
            for place, label in enumerate(batch["labels"][number].tolist()):
                expected = {1.0: 1, 0.0: 0, -1.0: counts_as}.get(label, 0)  # not mentioned is negative
                expected = expected if 2 <= place < 9 else None
                assert rows[name]["label"][place] == pytest.approx(NAN if expected is None else expected, nan_ok=True)
                if expected is not None:
                    cells.append(-math.log(probability[place] if expected else 1 - probability[place]))
    assert len(rows) == 7
    # A mean over cells, not over batches of 4 and 3 with their unequal numbers of cells.
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(sum(cells) / len(cells), rel=1e-5)


def test_training_loss_leaves_out_what_is_not_labelled(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, trainer = make_task(tiny), make_trainer(log_every_n_steps=1)
    before = task.head.weight.detach().clone()
    trainer.fit(task, datamodule=DrawnLabels(labelled=FINDINGS[2:9]))
    moved = (task.head.weight - before * (1 - 1e-2 * 0.01)).abs().amax(1) > 1e-6  # but for weight decay
    assert moved.tolist() == [2 <= place < 9 for place in range(14)]


def test_image_alone_does_not_read_the_report(tiny: BackboneConfig) -> None:
    data = SyntheticDataModule(**SIZES)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    other = Batch(**{**batch, "input_ids": batch["input_ids"].flip(0), "text_mask": batch["text_mask"].flip(0)})  # type: ignore[typeddict-item]
    for use_report in (True, False):
        task = make_task(tiny, use_report=use_report)
        assert torch.equal(task(batch), task(other)) != use_report


@pytest.mark.parametrize("use_report", [True, False])
def test_every_trainable_weight_has_a_gradient(
    use_report: bool, tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task = make_task(tiny, use_report=use_report)
    make_trainer().fit(task, datamodule=SyntheticDataModule(**SIZES))
    data = SyntheticDataModule(**SIZES)
    data.setup("fit")
    task.step(next(iter(data.train_dataloader()))).loss.backward()
    unused = tuple(f"backbone.{name}" for name in task.unused_parameters)
    trainable = {name: p for name, p in task.named_parameters() if not name.startswith(unused)}
    assert [name for name, p in trainable.items() if p.grad is None] == []  # DDP waits for each
    words = {name for name in trainable if name.startswith("backbone.report_embedding")}
    assert ("backbone.report_embedding.position" in words) == use_report


def test_report_as_input_is_said_to_give_the_labels_away(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    with pytest.warns(UserWarning, match="labels that were read off the reports can be read off them again"):
        make_trainer().fit(make_task(tiny, use_report=True), datamodule=SyntheticDataModule(**SIZES))


def best_f1(probability: list[float], label: list[float]) -> float:
    """The best F1 that any threshold reaches."""
    best = 0.0
    for threshold in probability:
        found = [p >= threshold for p in probability]
        both = sum(f and y == 1 for f, y in zip(found, label, strict=True))
        best = max(best, 2 * both / (sum(found) + sum(label)))
    return best


def test_thresholds_of_validation_are_kept_and_used_in_the_test(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    data, task = DrawnLabels(values=(1, 0)), make_task(tiny)
    trainer = make_trainer(limit_val_batches=1.0, max_steps=3)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    assert set(task.threshold.tolist()) != {0.5}

    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt").eval()
    assert torch.equal(loaded.threshold, task.threshold)
    pairs = [
        (probability_of(loaded, batch, row), batch["labels"][row].tolist())
        for batch in data.val_dataloader()
        for row in range(len(batch["id"]))
    ]
    for place, threshold in enumerate(loaded.threshold.tolist()):
        probability, label = [p[place] for p, _ in pairs], [y[place] for _, y in pairs]
        found = [p >= threshold - 1e-6 for p in probability]
        both = sum(f and y == 1 for f, y in zip(found, label, strict=True))
        assert 2 * both / (sum(found) + sum(label)) == pytest.approx(best_f1(probability, label))

    rows = run_test(loaded, data, tester := make_trainer()).values()
    cells = [
        (p >= t, y == 1)
        for row in rows
        for p, t, y in zip(row["probability"], task.threshold.tolist(), row["label"], strict=True)
    ]
    both = sum(found and there for found, there in cells)
    expected = 2 * both / (sum(found for found, _ in cells) + sum(there for _, there in cells))
    assert tester.callback_metrics["test/f1_chosen_micro"].item() == pytest.approx(expected)
    assert torch.equal(loaded.threshold, task.threshold)  # a test chooses nothing


def test_micro_auroc_of_validation_is_logged(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, task, trainer = DrawnLabels(values=(1, 0)), make_task(tiny), make_trainer(limit_val_batches=1.0)
    trainer.validate(task, datamodule=data, verbose=False)
    cells = [
        (p, y)
        for batch in data.val_dataloader()
        for row in range(len(batch["id"]))
        for p, y in zip(probability_of(task, batch, row), batch["labels"][row].tolist(), strict=True)
    ]
    positive, negative = ([p for p, y in cells if y == label] for label in (1, 0))
    wins = sum(one > other for one in positive for other in negative)
    logged = trainer.callback_metrics["val/auroc_micro"].item()
    assert logged == pytest.approx(wins / (len(positive) * len(negative)), rel=1e-6)


class WithoutFracture(DrawnLabels):
    """A finding never occurs, another always."""

    def examples(self, split: Split) -> SyntheticExamples:
        examples = super().examples(split)
        examples.labels[:, FINDINGS.index("Fracture")] = 0
        examples.labels[:, FINDINGS.index("Edema")] = 1
        return examples


def test_finding_that_never_occurs_is_named_and_left_out_of_the_mean(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, trainer = make_task(tiny), make_trainer()
    with pytest.warns(UserWarning, match="test: Edema, Fracture occur in all examples or in none, so they have no"):
        run_test(task, WithoutFracture(values=(1, 0)), trainer)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert not {"test/auroc/fracture", "test/auroc/edema", "test/average_precision/fracture"} & logged.keys()
    of_findings = [value for name, value in logged.items() if name.startswith("test/auroc/")]
    assert len(of_findings) == 12
    assert logged["test/auroc_macro"] == pytest.approx(np.mean(of_findings))


def test_corpus_that_labels_nothing_is_refused(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="the corpus labels no finding"):
        make_trainer().fit(make_task(tiny), datamodule=DrawnLabels(labelled=()))


def test_prediction_is_a_table_with_a_probability_a_finding(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, task = SyntheticDataModule(**SIZES), make_task(tiny)
    batches = make_trainer().predict(task, datamodule=data)
    rows = [row for batch in batches or [] for row in batch]
    expected = run_test(task, data, make_trainer())
    assert sorted(row["id"] for row in rows) == sorted(expected)
    for row in rows:
        assert list(row) == ["id", *FINDINGS]
        assert [row[finding] for finding in FINDINGS] == pytest.approx(expected[row["id"]]["probability"], abs=1e-6)


def test_folder_without_reports_is_told_to_a_task_that_reads_them(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "image.png")
    data = FolderDataModule(str(tmp_path), "", "synthetic", image_size=64, num_workers=0)
    with pytest.warns(UserWarning, match="reads image and report, but the images come without one"):
        make_trainer().predict(make_task(tiny, use_report=True), datamodule=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer().predict(make_task(tiny), datamodule=data)
    assert not [warning for warning in caught if "without one" in str(warning.message)]


def test_examples_for_a_table_name_what_is_there_and_what_is_likely(tiny: BackboneConfig) -> None:
    data, task = SyntheticDataModule(**SIZES), make_task(tiny)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    for row, name, labels in zip(task.example_rows(batch), batch["id"], batch["labels"], strict=True):
        assert row["id"] == name
        there = [finding for finding, label in zip(FINDINGS, labels.tolist(), strict=True) if label == 1]
        assert row["findings"] == ", ".join(there)
        values = [float(part.rsplit(" ", 1)[1]) for part in str(row["top findings"]).split(", ")]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
