"""Report generation: losses, writing, results and what a run leaves behind."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from medvill_pl import FINDINGS, CheXpertLabeler, GenerationTask, MedViLL, PretrainingTask, SyntheticDataModule, labeler
from medvill_pl.batch import Batch
from medvill_pl.callbacks.prediction_table import PredictionTable
from medvill_pl.data.folder import FolderDataModule
from medvill_pl.evaluation.generation import best_constant_report, bleu
from medvill_pl.evaluation.results import Results
from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.models.decoding.generate import generate
from medvill_pl.models.decoding.likelihood import token_attention
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.result_table import ResultTable
from medvill_pl.tokenizer import mask_tokens

MakeTrainer = Callable[..., Trainer]
SHORT: dict[str, Any] = {"max_new_tokens": 8}


class EdemaEverywhere:
    """Stands for a neural labeler."""

    name = "labeler of a test"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        labels = np.full((len(texts), 14), np.nan, np.float32)
        labels[:, FINDINGS.index("Edema")] = 1
        return labels


class FewColumns(EdemaEverywhere):
    """Keeps no contract."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return super().__call__(texts)[:, :3]


class BatchNotes(Callback):
    """Notes each training batch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)


def make_data(**arguments: Any) -> SyntheticDataModule:
    sizes = {"num_train": 16, "num_val": 7, "num_test": 6, "image_size": 64, "batch_size": 4}
    return SyntheticDataModule(**(sizes | {"num_workers": 0} | arguments))


@pytest.fixture
def data() -> SyntheticDataModule:
    return make_data()


def make_task(tiny: BackboneConfig, **arguments: Any) -> GenerationTask:
    """A task in evaluation mode, with weights that follow from a seed."""
    torch.manual_seed(0)
    return GenerationTask(tiny, **({"decoding": SHORT, "lr": 1e-2} | arguments)).eval()


@pytest.fixture
def task(tiny: BackboneConfig) -> GenerationTask:
    return make_task(tiny)


@pytest.fixture
def make_quick(make_trainer: MakeTrainer) -> MakeTrainer:
    """Make a trainer that writes results without timing them."""

    def make(**arguments: Any) -> Trainer:
        callbacks = [ResultTable(time_inference=False), *arguments.pop("callbacks", [])]
        return make_trainer(**({"limit_val_batches": 1.0, "callbacks": callbacks} | arguments))

    return make


def first_batch(data: SyntheticDataModule, stage: str) -> Batch:
    data.setup(stage)
    loader = {"fit": data.train_dataloader, "validate": data.val_dataloader, "test": data.test_dataloader}[stage]
    batch: Batch = next(iter(loader()))
    return batch


@torch.no_grad()
def log_p_of_words(task: GenerationTask, batch: Batch, row: int) -> list[float]:
    """Log-probability of each token of one report, cut end left out, by a pass for each."""
    backbone, mask_id = task.backbone, task.backbone.tokenizer.mask_id
    ids = batch["input_ids"][row][batch["text_mask"][row]].tolist()
    if batch["is_truncated"][row]:
        ids = ids[:-1]
    values = []
    for place, word in enumerate(ids):
        before = torch.tensor([[*ids[:place], mask_id]])
        output = backbone(
            images=batch["image"][row : row + 1],
            input_ids=before,
            text_mask=torch.ones_like(before).bool(),
            mask_strategy="seq2seq",
        )
        values.append(backbone.mlm_logits(output.text[:, -1])[0].log_softmax(0)[word].item())
    return values


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- losses --------------------------------------------------------------------------------------


@torch.no_grad()
def test_mlm_loss_is_that_of_hidden_words_and_ends_under_seq2seq(task: GenerationTask) -> None:
    batch = first_batch(make_data(max_tokens=25, num_train=8, batch_size=8, bucket_batches=1), "fit")
    ends = ~batch["is_truncated"]
    assert 0 < ends.sum() < 8
    everywhere = torch.ones_like(ends)
    tokenizer = task.backbone.tokenizer
    masked = mask_tokens(batch["input_ids"], batch["text_mask"], batch["seed"], tokenizer, everywhere, 0.15, ends)
    output = task.backbone(
        images=batch["image"], input_ids=masked.input_ids, text_mask=batch["text_mask"], mask_strategy="seq2seq"
    )
    logits = task.backbone.mlm_logits(output.text.flatten(0, 1)).double()
    expected = nn.functional.cross_entropy(logits[masked.positions], masked.targets)
    hidden = batch | {
        "mlm_input_ids": masked.input_ids,
        "mlm_positions": masked.positions,
        "mlm_targets": masked.targets,
    }
    loss = task._mlm_loss(hidden, task.backbone.encode_image(batch["image"]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    other = task.backbone(
        images=batch["image"], input_ids=masked.input_ids, text_mask=batch["text_mask"], mask_strategy="bidirectional"
    )
    wrong = nn.functional.cross_entropy(
        task.backbone.mlm_logits(other.text.flatten(0, 1))[masked.positions], masked.targets
    )
    assert loss.item() != pytest.approx(wrong.item(), rel=1e-4)


@pytest.mark.parametrize("max_tokens", [12, 120])
def test_every_word_loss_is_the_mean_over_words_that_are_there(max_tokens: int, task: GenerationTask) -> None:
    batch = first_batch(make_data(max_tokens=max_tokens), "fit")
    values = [value for row in range(4) for value in log_p_of_words(task, batch, row)]
    assert batch["is_truncated"].any() == (max_tokens == 12)
    loss = task._every_word_loss(batch, task.backbone.encode_image(batch["image"]))
    assert loss.item() == pytest.approx(-sum(values) / len(values), rel=1e-5)
    assert len(values) == batch["text_mask"].sum() - batch["is_truncated"].sum()


def test_loss_of_no_hidden_word_is_zero(task: GenerationTask) -> None:
    batch = first_batch(make_data(), "fit")
    nothing = torch.zeros(0, dtype=torch.long)
    batch |= {"mlm_input_ids": batch["input_ids"], "mlm_positions": nothing, "mlm_targets": nothing}
    assert task._mlm_loss(batch, task.backbone.encode_image(batch["image"])).item() == 0.0


def test_the_end_is_hidden_in_half_of_the_reports_and_never_where_cut(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    notes, data = BatchNotes(), make_data(num_train=160, batch_size=32, max_tokens=40)
    task = make_task(tiny, objective="mlm")
    make_trainer(max_epochs=1, max_steps=-1, callbacks=[notes]).fit(task, datamodule=data)
    sep, num_masked, num_whole = task.backbone.tokenizer.sep_id, 0, 0
    for batch in notes.batches:
        is_target = torch.zeros(batch["input_ids"].numel(), dtype=torch.bool)
        is_target[batch["mlm_positions"]] = True
        is_target = is_target.view_as(batch["input_ids"])
        assert torch.equal(batch["input_ids"].flatten()[batch["mlm_positions"]], batch["mlm_targets"])
        has_end = (is_target & (batch["input_ids"] == sep)).any(1)
        assert not has_end[batch["is_truncated"]].any()
        ends = batch["text_mask"].sum(1) - 1
        assert (batch["mlm_input_ids"].gather(1, ends[:, None])[:, 0][has_end] == task.backbone.tokenizer.mask_id).all()
        num_masked, num_whole = num_masked + int(has_end.sum()), num_whole + int((~batch["is_truncated"]).sum())
    assert 40 < num_whole < 160
    assert abs(num_masked - num_whole / 2) < 3 * math.sqrt(num_whole) / 2


def test_every_word_needs_no_hidden_words(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    notes = BatchNotes()
    make_trainer(callbacks=[notes]).fit(make_task(tiny, objective="every_word"), datamodule=make_data())
    assert "mlm_positions" not in notes.batches[0]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "every_word"])
def test_training_lowers_perplexity(objective: str, tiny: BackboneConfig, make_quick: MakeTrainer) -> None:
    data = make_data(num_train=128, num_val=32, batch_size=16)
    task = make_task(tiny | {"dropout": 0.0}, objective=objective)
    trainer = make_quick(max_epochs=8, max_steps=-1)
    (before,) = trainer.validate(task, datamodule=data, verbose=False)
    trainer.fit(task, datamodule=data)
    after = trainer.callback_metrics["val/perplexity"].item()
    assert after < before["val/perplexity"] / (5 if objective == "every_word" else 2)


# -- stages --------------------------------------------------------------------------------------


def test_validation_gives_perplexity_of_corpus_and_reports(task: GenerationTask, make_quick: MakeTrainer) -> None:
    data = make_data(max_tokens=30)
    (scores,) = make_quick().validate(task, datamodule=data, verbose=False)
    of_reports = [
        log_p_of_words(task, batch, row) for batch in data.val_dataloader() for row in range(len(batch["id"]))
    ]
    assert len(of_reports) == 7
    every = [value for values in of_reports for value in values]
    assert scores["val/perplexity"] == pytest.approx(math.exp(-np.mean(every)), rel=1e-5)
    assert scores["val/perplexity_of_reports"] == pytest.approx(
        np.mean([math.exp(-np.mean(values)) for values in of_reports]), rel=1e-5
    )
    assert scores["val/loss"] == pytest.approx(-np.mean(every), rel=1e-5)
    assert scores.keys() == {"val/loss", "val/perplexity", "val/perplexity_of_reports"}


@pytest.mark.parametrize("objective", ["mlm", "every_word"])
def test_task_runs_through_all_stages(
    objective: str, tiny: BackboneConfig, data: SyntheticDataModule, make_quick: MakeTrainer, tmp_path: Path
) -> None:
    task = make_task(tiny, objective=objective)
    before = {name: value.clone() for name, value in task.backbone.named_parameters()}
    trainer = make_quick(max_epochs=1, max_steps=-1)
    trainer.fit(task, datamodule=data)
    assert {"train/loss", "val/loss", "val/perplexity", "val/perplexity_of_reports"} <= trainer.callback_metrics.keys()
    idle = ("text_cls_position_embedding", "pooler")
    for name, value in task.backbone.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith(idle), name

    (scores,) = trainer.test(task, datamodule=data, verbose=False)
    examples = data.datasets["test"].examples
    rows = task.results.rows
    assert [row["id"] for row in rows] == sorted(examples.ids)
    texts = dict(zip(examples.ids, examples.reports, strict=True))
    assert {row["id"]: row["reference"] for row in rows} == texts
    labels = CheXpertLabeler()
    for row in rows:
        np.testing.assert_equal(np.array(row["reference_labels"]), labels([row["reference"]])[0])
        np.testing.assert_equal(np.array(row["prediction_labels"]), labels([row["prediction"]])[0])
        image = examples.image(examples.ids.index(row["id"]))
        (written,) = generate(task.backbone, DecodingConfig(max_new_tokens=8), images=image[None])
        assert row["prediction"] == task.backbone.tokenizer.decode(written.ids)
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    assert scores["test/bleu_1"] == pytest.approx(bleu(predictions, references)["bleu_1"])
    assert task.results.context["constant"] == best_constant_report(data.datasets["train"].examples.reports)
    assert scores["test/constant_bleu_4"] > 0
    assert scores["test/clinical_f1"] == pytest.approx(task.results.scores()["clinical_f1"])

    again = Results.read(tmp_path / "test.parquet")
    assert {f"test/{name}": value for name, value in again.scores().items()} == pytest.approx(
        {name: value for name, value in scores.items() if name != "test/loss"}
    )
    assert DecodingConfig.of(again.config["hyper_parameters"]["decoding"]) == DecodingConfig(max_new_tokens=8)
    assert again.config["trained_on"][0]["name"] == data.name


def test_reports_of_a_short_limit_are_compared_with_the_whole_text(
    task: GenerationTask, make_quick: MakeTrainer
) -> None:
    data = make_data(max_tokens=6)
    make_quick().test(task, datamodule=data, verbose=False)
    dataset = data.datasets["test"]
    assert dataset.num_truncated == 6
    for row in task.results.rows:
        assert row["reference"] == dataset.examples.reports[dataset.examples.ids.index(row["id"])]
        assert row["num_tokens"] == 6  # the closing SEP of a cut report is not its own


def test_results_name_inference_time(task: GenerationTask, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.test(task, datamodule=make_data(num_test=2), verbose=False)
    times = json.loads((tmp_path / "test.json").read_text())["config"]["ms_per_example"]
    assert times.keys() == {"1", "2"}
    assert all(value > 0 for value in times.values())


def test_without_a_training_split_there_is_no_baseline(task: GenerationTask, make_quick: MakeTrainer) -> None:
    data = make_data()
    data.setup("test")
    (scores,) = make_quick().test(task, dataloaders=data.test_dataloader(), verbose=False)
    assert scores["test/bleu_1"] >= 0
    assert not [name for name in scores if "constant" in name]


def test_empty_reports_keep_all_metrics_defined(task: GenerationTask, make_quick: MakeTrainer) -> None:
    with torch.no_grad():
        task.backbone.mlm_head.bias[task.backbone.tokenizer.sep_id] = 20.0
    (scores,) = make_quick().test(task, datamodule=make_data(), verbose=False)
    assert [row["prediction"] for row in task.results.rows] == [""] * 6
    assert all(math.isfinite(value) for value in scores.values())
    assert (scores["test/empty"], scores["test/bleu_1"], scores["test/length_ratio"]) == (1.0, 0.0, 0.0)
    assert scores["test/constant_bleu_1"] > 0


def test_bfloat16_runs(tiny: BackboneConfig, data: SyntheticDataModule, make_quick: MakeTrainer) -> None:
    task, trainer = make_task(tiny), make_quick(precision="bf16-mixed")
    trainer.fit(task, datamodule=data)
    (scores,) = trainer.test(task, datamodule=data, verbose=False)
    (exact,) = make_quick().test(task, datamodule=data, verbose=False)
    assert scores["test/perplexity"] == pytest.approx(exact["test/perplexity"], rel=0.05)


# -- the labeler ---------------------------------------------------------------------------------


def test_another_labeler_is_plugged_in_by_its_path(
    tiny: BackboneConfig, make_quick: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeler, "EdemaEverywhere", EdemaEverywhere, raising=False)
    task = make_task(tiny, labeler="medvill_pl.labeler.EdemaEverywhere")
    (scores,) = make_quick().test(task, datamodule=make_data(), verbose=False)
    assert scores["test/clinical_f1"] == scores["test/clinical_f1_five"] == scores["test/clinical_accuracy"] == 1.0
    edema = FINDINGS.index("Edema")
    for row in task.results.rows:
        assert [number for number, value in enumerate(row["prediction_labels"]) if value == 1] == [edema]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_labeler_that_is_not_there_is_told_at_once(stage: str, tiny: BackboneConfig, make_quick: MakeTrainer) -> None:
    task, data = make_task(tiny, labeler="nobody.Knows"), make_data()
    with pytest.raises(ValueError, match=r"no labeler can be made of 'nobody.Knows'") as error:
        getattr(make_quick(), stage)(task, datamodule=data)
    assert "\n" not in str(error.value)


def test_labels_of_another_form_are_refused(
    tiny: BackboneConfig, make_quick: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeler, "FewColumns", FewColumns, raising=False)
    task = make_task(tiny, labeler="medvill_pl.labeler.FewColumns")
    with pytest.raises(ValueError, match=r"the labeler gave shape \(3, 3\) for 3 texts"):
        make_quick().test(task, datamodule=make_data(), verbose=False)


# -- predictions ---------------------------------------------------------------------------------


def predict(task: GenerationTask, data: Any, make_trainer: MakeTrainer, folder: Path) -> list[dict[str, Any]]:
    """Rows of the JSON lines, after the CSV has been found to hold the same texts."""
    path = folder / "predictions.csv"
    make_trainer(callbacks=[PredictionTable(str(path))]).predict(task, datamodule=data)
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    columns = ("id", "reference", "prediction")
    assert read_csv(path) == [{name: row[name] for name in columns} for row in rows]
    return rows


def test_predictions_are_rows_of_id_reference_and_prediction(
    task: GenerationTask, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    rows = predict(task, data, make_trainer, tmp_path)
    examples = data.datasets["test"].examples
    assert [row["id"] for row in rows] == sorted(examples.ids)
    for row in rows:
        assert list(row) == ["id", "reference", "prediction"]
        place = examples.ids.index(row["id"])
        assert row["reference"] == examples.reports[place]
        (written,) = generate(task.backbone, DecodingConfig(max_new_tokens=8), images=examples.image(place)[None])
        assert row["prediction"] == task.backbone.tokenizer.decode(written.ids) != ""


def test_attention_of_each_word_is_given_on_request(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    task = make_task(tiny, return_attention=True, decoding={"min_new_tokens": 5, "max_new_tokens": 5})
    examples = make_data().examples("test")
    for row in predict(task, data, make_trainer, tmp_path):
        assert list(row) == ["id", "reference", "prediction", "tokens", "attention"]
        image = examples.image(examples.ids.index(row["id"]))[None]
        (written,) = generate(task.backbone, task.decoding, images=image)
        assert row["tokens"] == task.backbone.tokenizer.tokens(written.ids)
        ids = torch.tensor([written.ids])
        weights = token_attention(
            task.backbone, images=image, input_ids=ids, text_mask=torch.ones_like(ids, dtype=torch.bool)
        )
        expected = weights[0, -1].mean(0)
        torch.testing.assert_close(torch.tensor(row["attention"]), expected, rtol=0, atol=2e-5)
        assert expected.shape == (5, 16)


def test_attention_of_an_empty_report_is_empty(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    task = make_task(tiny, return_attention=True)
    with torch.no_grad():
        task.backbone.mlm_head.bias[task.backbone.tokenizer.sep_id] = 100.0
    for row in predict(task, data, make_trainer, tmp_path):
        assert (row["prediction"], row["tokens"], row["attention"]) == ("", [], [])


def test_images_without_reports_are_written_about(
    task: GenerationTask, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("L", (70, 60), 100 * number).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    data = FolderDataModule(str(tmp_path / "images"), tokenizer="synthetic", image_size=64, num_workers=0)
    with pytest.warns(UserWarning, match="1 of 3 images cannot be read"):
        rows = predict(task, data, make_trainer, tmp_path)
    assert [(row["id"], row["reference"]) for row in rows] == [("0.png", ""), ("1.png", "")]
    assert all(row["prediction"] for row in rows)
    assert [row["id"] for row in read_csv(tmp_path / "rejected.csv")] == ["broken.png"]


def test_sampled_reports_follow_from_the_data_modules_seed(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task = make_task(tiny, decoding={"method": "sample", "max_new_tokens": 8, "temperature": 2.0})

    def texts(seed: int, batch_size: int) -> list[str]:
        batches = make_trainer().predict(task, datamodule=make_data(seed=seed, batch_size=batch_size))
        rows = sorted((row for batch in batches or [] for row in batch), key=lambda row: str(row["id"]))
        return [row["prediction"] for row in rows]

    assert texts(0, 4) == texts(0, 3) != texts(1, 4)


def test_examples_are_shown(task: GenerationTask) -> None:
    batch = first_batch(make_data(), "validate")
    rows = task.example_rows(batch)
    assert [row["id"] for row in rows] == batch["id"]
    assert [row["reference"] for row in rows] == batch["report"]
    assert all(set(row) == {"id", "reference", "prediction"} for row in rows)


# -- backbones and checkpoints -------------------------------------------------------------------


@pytest.fixture
def pretrained(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> tuple[MedViLL, Path, Path]:
    """A backbone after a step of pre-training, its checkpoint, and the folder that it was saved to."""
    torch.manual_seed(1)
    task, trainer = PretrainingTask(tiny, lr=1e-2), make_trainer()
    trainer.fit(task, datamodule=make_data(negatives="labels"))
    trainer.save_checkpoint(tmp_path / "pretraining.ckpt")
    task.backbone.save_pretrained(tmp_path / "folder")
    return task.backbone.eval(), tmp_path / "pretraining.ckpt", tmp_path / "folder"


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "object"])
def test_task_starts_from_a_pretrained_backbone(
    kind: str, pretrained: tuple[MedViLL, Path, Path], make_quick: MakeTrainer
) -> None:
    backbone, checkpoint, folder = pretrained
    if kind == "object":
        task = GenerationTask.from_backbone(backbone, decoding=SHORT)
        assert task.backbone is backbone
    else:
        task = GenerationTask(backbone_ckpt=str(checkpoint if kind == "checkpoint" else folder), decoding=SHORT)
    assert same_weights(task.backbone, backbone)
    image = make_data().examples("test").image(0)[None]
    expected = generate(backbone, DecodingConfig(max_new_tokens=8), images=image)
    assert generate(task.backbone, task.decoding, images=image) == expected
    trainer = make_quick(max_epochs=1, max_steps=-1)
    trainer.fit(task, datamodule=make_data())
    assert math.isfinite(trainer.callback_metrics["val/perplexity"].item())
    assert len(task.backbone.trained_on) == 1  # the same corpus is noted once


def test_checkpoint_keeps_how_reports_are_written(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    decoding: dict[str, Any] = {"method": "beam", "num_beams": 2, "max_new_tokens": 6}
    task, trainer = make_task(tiny, decoding=decoding, objective="every_word"), make_trainer()
    trainer.fit(task, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = GenerationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    assert loaded.decoding == DecodingConfig("beam", num_beams=2, max_new_tokens=6)
    assert (loaded.objective, loaded.return_attention) == ("every_word", False)
    batch = first_batch(make_data(), "test")
    assert loaded.eval().predict_step(batch, 0) == task.eval().predict_step(batch, 0)


def test_backbone_of_another_architecture_is_refused_in_a_line(
    tiny: BackboneConfig, pretrained: tuple[MedViLL, Path, Path], make_quick: MakeTrainer, tmp_path: Path
) -> None:
    _, checkpoint, _ = pretrained
    # Its own sizes come along with a backbone, so what can differ is the data,
    task = GenerationTask(backbone_ckpt=str(checkpoint))
    with pytest.raises(ValueError, match="the data's image_size is 128, the model's 64") as error:
        make_quick().fit(task, datamodule=make_data(image_size=128))
    assert "\n" not in str(error.value)
    # a run that goes on from a checkpoint of other sizes,
    trainer = make_quick()
    trainer.fit(make_task(tiny), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    other = make_task(tiny | {"hidden_size": 16, "num_layers": 1})
    for stage in ("fit", "test", "predict"):
        with pytest.raises(ValueError, match="hidden_size is 32 there and 16 here; num_layers is 2") as error:
            getattr(make_quick(), stage)(other, datamodule=make_data(), ckpt_path=tmp_path / "task.ckpt")
        assert "\n" not in str(error.value)
    # or weights that are not those of the configuration beside them.
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["backbone"]["intermediate_size"] = 48
    torch.save(content, tmp_path / "mixed.ckpt")
    with pytest.raises(ValueError, match=r"mixed.ckpt do not fit MedViLL: .*expand.* \(64, 32\) there") as error:
        GenerationTask(backbone_ckpt=str(tmp_path / "mixed.ckpt"))
    assert "\n" not in str(error.value)


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlm_probability": 0.0}, "mlm_probability must be between 0 and 1, not 0.0"),
        ({"mlm_probability": 1.0}, "mlm_probability must be between 0 and 1, not 1.0"),
        ({"objective": "all"}, "unknown objective 'all': choose one of mlm, every_word"),
        ({"decoding": {"method": "beam", "num_beams": 0}}, "num_beams must be 1 or more, not 0"),
        ({"decoding": {"top_k": 4}}, "top_k=4 has no effect with method 'greedy'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str, tiny: BackboneConfig) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationTask(tiny, **arguments)


def test_seed_of_a_batch_is_used_by_sampling_alone(task: GenerationTask) -> None:
    tokens: Tensor = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    one, other = (task.write(tokens, torch.tensor(seeds)) for seeds in ([0, 1], [5, 6]))
    assert one == other
