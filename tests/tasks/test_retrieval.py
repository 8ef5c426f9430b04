"""Image-report retrieval: loss, candidate sets and search, with a tiny backbone."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from medvill_pl import Batch, RetrievalTask, SyntheticDataModule
from medvill_pl.batch import derive_seed
from medvill_pl.callbacks.prediction_table import PredictionTable
from medvill_pl.data.images import read_grey
from medvill_pl.evaluation.retrieval import draw_candidate_sets
from medvill_pl.models.medvill import BackboneConfig

MakeTrainer = Callable[..., Trainer]
SIZES = {"num_train": 12, "num_val": 9, "num_test": 11, "image_size": 64, "batch_size": 4, "num_workers": 0}


def make_data(**arguments: Any) -> SyntheticDataModule:
    return SyntheticDataModule(**(SIZES | {"negatives": "labels"} | arguments))  # type: ignore[arg-type]


def make_task(backbone: BackboneConfig, **arguments: Any) -> RetrievalTask:
    """A task whose scores differ enough between pairs to be told apart."""
    torch.manual_seed(0)
    task = RetrievalTask(backbone, **({"num_candidates": 5, "lr": 1e-2} | arguments))
    for weight in (task.head.weight, task.backbone.report_embedding.word.weight):
        torch.nn.init.normal_(weight)
    return task.eval()


def one_batch(data: SyntheticDataModule, stage: str = "validate") -> Batch:
    data.setup(stage)
    return next(iter(data.val_dataloader() if stage == "validate" else data.test_dataloader()))


@torch.no_grad()
def logit_of(task: RetrievalTask, image: Tensor, report: str) -> float:
    """The matching logit of one pair, from pixels and text, alone."""
    tokenizer = task.backbone.tokenizer
    ids = torch.tensor([[*tokenizer.encode([report])[0], tokenizer.sep_id]])
    output = task.backbone(images=image[None], input_ids=ids, text_mask=torch.ones_like(ids, dtype=torch.bool))
    return float((output.pooled.double() @ task.head.weight.double().T + task.head.bias.double()).squeeze())


# -- matching ------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_of_matching(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, task, trainer = make_data(), make_task(tiny), make_trainer(limit_val_batches=1.0)
    trainer.validate(task, datamodule=data, verbose=False)
    losses, hits, scores = [], [], []
    for batch in data.val_dataloader():
        for row in range(len(batch["id"])):
            text = task.backbone.tokenizer.decode(batch["input_ids"][row].tolist())
            p = 1 / (1 + math.exp(-logit_of(task, batch["image"][row], text)))
            is_own = bool(batch["matched"][row])
            losses.append(-math.log(p if is_own else 1 - p))
            hits.append((p > 0.5) == is_own)
            scores.append((p, is_own))
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["val/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert logged["val/match_accuracy"] == pytest.approx(np.mean(hits))
    own, other = ([p for p, y in scores if y == label] for label in (True, False))
    wins = sum(a > b for a in own for b in other) / (len(own) * len(other))
    assert logged["val/match_auroc"] == pytest.approx(wins)


def test_every_trainable_weight_has_a_gradient(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, data = make_task(tiny), make_data()
    make_trainer().fit(task, datamodule=data)
    task.step(next(iter(data.train_dataloader()))).loss.backward()
    unused = tuple(f"backbone.{name}" for name in task.unused_parameters)
    assert {name for name, p in task.named_parameters() if p.grad is None and not name.startswith(unused)} == set()


def test_training_without_non_matching_pairs_is_refused(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="set the data module's negatives to 'labels'"):
        make_trainer().fit(make_task(tiny), datamodule=make_data(negatives="none"))


# -- candidate sets -----------------------------------------------------------------------------


def brute_force(task: RetrievalTask, data: SyntheticDataModule, gallery: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rank by sorting: every pair is scored alone, from pixels and text."""
    examples = data.examples("test")
    order = sorted(range(len(examples.ids)), key=lambda index: examples.ids[index])
    scores = [[logit_of(task, examples.image(i), examples.reports[j]) for j in order] for i in order]
    sets = [frozenset(np.flatnonzero(examples.labels[index] == 1).tolist()) for index in order]
    ranks = {}
    for direction in ("image_to_report", "report_to_image"):
        size = task.num_candidates if gallery == "candidates" else len(order)
        candidate_sets = draw_candidate_sets(len(order), size, derive_seed(task.candidate_seed, direction))
        for query, candidates in enumerate(candidate_sets.tolist()):
            of = [scores[query][c] if direction == "image_to_report" else scores[c][query] for c in candidates]
            ranked = sorted(range(size), key=lambda place: -of[place])
            hits = [sets[candidates[place]] == sets[query] for place in ranked]
            ranks[examples.ids[order[query]], direction] = {
                "num_candidates": size,
                "num_positives": sum(hits),
                "first_rank": hits.index(True) + 1,
                "own_rank": ranked.index(0) + 1,
                "positives_in": [sum(hits[:cut]) for cut in (1, 5, 10)],
            }
    return ranks


@pytest.mark.parametrize("at_once", [128, 7])
@pytest.mark.parametrize("full_gallery", [False, True])
def test_ranks_of_all_candidate_sets_are_those_of_scoring_each_pair_alone(
    full_gallery: bool, at_once: int, tiny: BackboneConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvill_pl.tasks.gallery.PAIRS_AT_ONCE", at_once)
    data, task = make_data(), make_task(tiny, full_gallery=full_gallery)
    make_trainer().test(task, datamodule=data, verbose=False)
    galleries = ["candidates", "full"] if full_gallery else ["candidates"]
    assert len(task.results.rows) == 11 * 2 * len(galleries)
    for gallery in galleries:
        expected = brute_force(task, data, gallery)
        rows = {(row["id"], row["direction"]): row for row in task.results.rows if row["gallery"] == gallery}
        assert rows.keys() == expected.keys()
        for key, values in expected.items():
            assert {name: rows[key][name] for name in values} == values, key


def test_every_image_passes_the_cnn_once(
    tiny: BackboneConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, task, seen, scored = make_data(), make_task(tiny, full_gallery=True), [], []
    task.backbone.image_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    task.backbone.encoder.register_forward_hook(lambda module, args, output: scored.append(len(output)))
    trainer = make_trainer()
    monkeypatch.setattr("medvill_pl.tasks.result_table.inference_time", lambda *args: {})
    trainer.test(task, datamodule=data, verbose=False)
    assert sum(seen) == 11
    assert sum(scored) == 11 * 11  # every pair of the pool once, although it is in both directions


def test_candidate_sets_are_scored_in_the_precision_of_the_trainer(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, modes = make_task(tiny), []
    task.backbone.encoder.register_forward_hook(lambda *args: modes.append(torch.is_autocast_enabled("cpu")))
    make_trainer(precision="bf16-mixed").test(task, datamodule=make_data(), verbose=False)
    assert modes
    assert all(modes)


def test_frequency_ranker_knows_label_frequencies_only(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    data, task = make_data(), make_task(tiny, num_candidates=11)
    make_trainer().test(task, datamodule=data, verbose=False)
    train, test = data.examples("train").labels == 1, data.examples("test").labels == 1
    frequency = np.clip(train.mean(0), 1e-6, 1 - 1e-6)
    likelihood = np.log(np.where(test, frequency, 1 - frequency)).sum(1)
    ids = data.examples("test").ids
    for row in task.results.rows:
        query = ids.index(row["id"])
        hit = max(likelihood[(test == test[query]).all(1)])
        is_other = (test != test[query]).any(1)
        # Ties go against the ranker.
        assert row["frequency_first_rank"] == 1 + (likelihood[is_other] >= hit - 1e-9).sum()


def test_candidate_sets_follow_from_their_seed_alone(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    def ranks(candidate_seed: int, **arguments: Any) -> list[int]:
        task = make_task(tiny, candidate_seed=candidate_seed)
        make_trainer().test(task, datamodule=make_data(**arguments), verbose=False)
        return [row["own_rank"] for row in task.results.rows]

    assert ranks(0) == ranks(0, seed=5, batch_size=3) != ranks(1)


def test_gallery_smaller_than_a_candidate_set_is_refused_before_any_work(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, seen = make_task(tiny, num_candidates=100), []
    task.backbone.image_encoder.register_forward_hook(lambda *args: seen.append(1))
    with pytest.raises(ValueError, match="needs 100 pairs, but the gallery has 11: set num_candidates to 11"):
        make_trainer().test(task, datamodule=make_data(), verbose=False)
    assert seen == []


@pytest.mark.parametrize("arguments", [{"num_candidates": 1}, {"query_text": "a", "query_image": "b"}])
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], tiny: BackboneConfig) -> None:
    with pytest.raises(ValueError, match=r"num_candidates must be 2 or more|give either query_image or query_text"):
        RetrievalTask(tiny, **arguments)


def test_missing_query_image_is_named(tiny: BackboneConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"query_image: no such file: image\.png"):
        RetrievalTask(tiny, query_image="image.png")


# -- search --------------------------------------------------------------------------------------


def search(task: RetrievalTask, data: SyntheticDataModule, trainer: Trainer) -> list[dict[str, Any]]:
    batches = trainer.predict(task, datamodule=data) or []
    return [dict(row) for row in task.arrange_predictions([row for batch in batches for row in batch])]


def assert_ranked(found: list[dict[str, Any]], expected: dict[str, float]) -> None:
    """Compare a ranked list with the matching logit of each identifier."""
    assert [row["rank"] for row in found] == list(range(1, len(expected) + 1))
    assert [row["id"] for row in found] == sorted(expected, key=lambda name: -expected[name])
    for row in found:
        assert row["match_probability"] == pytest.approx(1 / (1 + math.exp(-expected[row["id"]])), abs=1e-5)


def test_search_by_text_ranks_the_images(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    text, data = "mild cardiomegaly . no edema .", make_data()
    task = make_task(tiny, query_text=text)
    found = search(task, data, make_trainer())
    examples = data.examples("test")
    assert_ranked(found, {name: logit_of(task, examples.image(index), text) for index, name in enumerate(examples.ids)})
    assert {row["id"]: row["report"] for row in found} == dict(zip(examples.ids, examples.reports, strict=True))


def test_search_by_image_ranks_the_reports(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    path, data = tmp_path / "image.png", make_data()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    task, seen = make_task(tiny, query_image=str(path)), []
    task.backbone.image_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    found = search(task, data, make_trainer())
    assert seen == [1]  # the reports' own images are not needed
    examples, image = data.examples("test"), torch.from_numpy(read_grey(path).copy())[None]
    assert_ranked(
        found, {name: logit_of(task, image, text) for name, text in zip(examples.ids, examples.reports, strict=True)}
    )


def test_ranked_list_is_written(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    task, table = make_task(tiny, query_text="no edema ."), tmp_path / "found.csv"
    trainer = make_trainer(callbacks=[PredictionTable(str(table))])
    expected = search(task, make_data(), trainer)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["rank", "id", "match_probability", "report"]
    assert [(int(row["rank"]), row["id"]) for row in rows] == [(row["rank"], row["id"]) for row in expected]


def test_without_a_query_every_image_is_matched_with_its_own_report(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    data, task = make_data(), make_task(tiny)
    found, examples = search(task, data, make_trainer()), data.examples("test")
    assert [row["id"] for row in found] == sorted(examples.ids)
    for row in found:
        index = examples.ids.index(row["id"])
        expected = logit_of(task, examples.image(index), examples.reports[index])
        assert row["match_probability"] == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-5)


def test_examples_for_a_table_show_the_report_that_was_lent(tiny: BackboneConfig) -> None:
    task, batch = make_task(tiny), one_batch(make_data())
    rows = task.example_rows(batch)
    assert [row["matched"] for row in rows] == batch["matched"].tolist()
    for row, image in zip(rows, batch["image"], strict=True):
        logit = logit_of(task, image, str(row["report"]))
        assert row["match probability"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
