"""The embedded corpus as batches: what they hold, that they follow from seeds, and that images are rendered once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from medvill_pl.batch import Batch, Split
from medvill_pl.synthetic import datamodule
from medvill_pl.synthetic.datamodule import SyntheticDataModule, SyntheticExamples
from medvill_pl.synthetic.grammar import write_report
from medvill_pl.synthetic.rendering import render
from medvill_pl.synthetic.study import Study, studies


def make(**changed: Any) -> SyntheticDataModule:
    """A corpus of 24, 10 and 10 small images, all stages set up."""
    arguments = {"num_train": 24, "num_val": 10, "num_test": 10, "image_size": 32, "batch_size": 8}
    data = SyntheticDataModule(**(arguments | changed))
    data.setup("fit")
    data.setup("test")
    return data


def loader(data: SyntheticDataModule, split: Split) -> DataLoader[Batch]:
    return {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()


def ids(data: SyntheticDataModule, split: Split) -> list[str]:
    return [name for batch in loader(data, split) for name in batch["id"]]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the studies that are rendered, in order."""
    ids: list[str] = []

    def render_and_note(study: Study, size: int) -> NDArray[np.uint8]:
        ids.append(study.id)
        return render(study, size)

    monkeypatch.setattr(datamodule, "render", render_and_note)
    datamodule._examples.cache_clear()  # the images of a process are rendered once for all its data modules
    return ids


# -- what a batch holds -------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_batches_are_as_documented(split: Split) -> None:
    for batch in loader(make(), split):
        size, length = batch["input_ids"].shape
        shapes_and_types = {
            "image": ((size, 1, 32, 32), torch.uint8),
            "input_ids": ((size, length), torch.int64),
            "text_mask": ((size, length), torch.bool),
            "labels": ((size, 14), torch.float32),
            "matched": ((size,), torch.bool),
            "is_truncated": ((size,), torch.bool),
            "seed": ((size,), torch.int64),
        }
        texts = {"id"} if split == "train" else {"id", "report"}
        assert set(batch) == texts | set(shapes_and_types)
        for name, (shape, dtype) in shapes_and_types.items():
            tensor = batch[name]  # type: ignore[literal-required]
            assert (tensor.shape, tensor.dtype) == (shape, dtype), name
        assert len(batch["id"]) == size
        assert batch["text_mask"].all(dim=0)[0]
        assert batch["text_mask"].any(dim=0)[-1]  # padded to the longest and no further


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_rows_of_a_batch_belong_to_one_study(split: Split) -> None:
    data = make()
    tokenizer, known = data.tokenizer, {study.id: study for study in islice(studies(split), 24)}
    for batch in loader(data, split):
        for row, name in enumerate(batch["id"]):
            report = write_report(known[name])
            np.testing.assert_array_equal(batch["image"][row, 0].numpy(), render(known[name], 32))
            np.testing.assert_array_equal(batch["labels"][row].numpy(), report.labels)
            words = batch["input_ids"][row][batch["text_mask"][row]].tolist()
            assert words == [*tokenizer.encode([report.text])[0], tokenizer.sep_id]
            assert (batch["input_ids"][row][~batch["text_mask"][row]] == tokenizer.pad_id).all()
        assert batch["matched"].all()


def test_half_of_a_training_batch_does_not_match_where_asked() -> None:
    data = make(negatives="labels")
    examples = data.examples("train")
    positive = dict(zip(examples.reports, map(tuple, examples.labels == 1), strict=True))
    encoded = map(tuple, data.tokenizer.encode(examples.reports))
    text_of = dict(zip(encoded, examples.reports, strict=True))
    for batch in data.train_dataloader():
        assert batch["matched"].tolist().count(True) == 4
        for row, words in enumerate(batch["input_ids"]):
            report = text_of[tuple(words[batch["text_mask"][row]].tolist()[:-1])]
            own = tuple((batch["labels"][row] == 1).tolist())
            assert (positive[report] == own) == bool(batch["matched"][row])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_examples_are_the_first_studies(split: Split) -> None:
    examples = SyntheticExamples(split, 5, 32, seed=3)
    first = list(islice(studies(split, 3), 5))
    reports = [write_report(study) for study in first]
    assert examples.studies == first
    assert examples.ids == [study.id for study in first]
    assert examples.reports == [report.text for report in reports]
    np.testing.assert_array_equal(examples.labels, [report.labels for report in reports])
    assert examples.log_probability.tolist() == [report.log_probability for report in reports]
    assert examples.image(4).shape == (1, 32, 32)


def test_text_is_truncated_at_max_tokens() -> None:
    with pytest.warns(UserWarning, match="longer than 6 tokens"):
        data = make(max_tokens=6)
    assert all(batch["input_ids"].shape == (len(batch["id"]), 7) for batch in data.train_dataloader())


def test_the_corpus_has_a_version_and_shows_nobody() -> None:
    data = SyntheticDataModule()
    assert data.name == "synthetic v1"
    assert data.is_credentialed is False


# -- images -------------------------------------------------------------------------------------


def test_images_rendered_in_a_pool_are_those_rendered_alone() -> None:
    examples, alone = SyntheticExamples("test", 5, 32), SyntheticExamples("test", 5, 32)
    examples.image(2)
    rendered: list[Study] = []

    class Pool(ThreadPoolExecutor):
        def map(self, fn: Any, *iterables: Any, **options: Any) -> Any:
            rendered.extend(iterables[0])
            return super().map(fn, *iterables, **options)

    with Pool() as pool:
        examples.render_all(pool)
    assert rendered == [study for index, study in enumerate(examples.studies) if index != 2]
    assert torch.equal(examples.images(), alone.images())


def test_an_image_is_rendered_once_and_when_asked_for(rendered: list[str]) -> None:
    data = make(negatives="text")
    assert rendered == []
    train = data.train_dataloader()
    epochs = [dict(pair for batch in train for pair in zip(batch["id"], batch["image"], strict=True)) for _ in range(3)]
    assert sorted(rendered) == sorted(study.id for study in islice(studies("train"), 24))
    assert len(epochs[0]) == 24
    for name, image in epochs[0].items():
        assert torch.equal(image, epochs[2][name])
    list(data.val_dataloader())
    list(data.val_dataloader())
    assert len(rendered) == 24 + 10


def test_setting_up_again_keeps_the_images(rendered: list[str]) -> None:
    data = make()
    list(data.train_dataloader())
    data.setup("fit")
    list(data.train_dataloader())
    assert len(rendered) == 24


def test_changing_a_batch_leaves_the_images_alone() -> None:
    data = make()
    before = [batch["image"].clone() for batch in data.val_dataloader()]
    for batch in data.val_dataloader():
        batch["image"].zero_()
    after = [batch["image"] for batch in data.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches_and_share_their_images(method: str, rendered: list[str]) -> None:
    alone, data = make(negatives="labels"), make(negatives="labels", num_workers=2)
    plain = data.train_dataloader()
    batches = list(
        DataLoader(plain.dataset, batch_size=None, sampler=plain.sampler, num_workers=2, multiprocessing_context=method)
    )
    for index, study in enumerate(islice(studies("train"), 24)):
        image = data.datasets["train"].examples.image(index)[0]
        np.testing.assert_array_equal(image.numpy(), render(study, 32))
    assert rendered == []  # the workers rendered, and this process has what they rendered
    for one, other in zip(alone.train_dataloader(), batches, strict=True):
        assert one["id"] == other["id"]
        for name in ("image", "input_ids", "labels", "matched", "seed"):
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)  # type: ignore[literal-required]


@pytest.mark.slow
def test_the_loader_takes_workers() -> None:
    assert sorted(ids(make(num_workers=2), "train")) == sorted(ids(make(), "train"))


# -- seeds and splits ---------------------------------------------------------------------------


def test_batches_follow_from_the_seed() -> None:
    def epoch(seed: int) -> list[tuple[list[str], list[int]]]:
        return [(batch["id"], batch["seed"].tolist()) for batch in make(seed=seed).train_dataloader()]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert sorted(ids(make(seed=0), "train")) == sorted(ids(make(seed=1), "train"))


def test_every_epoch_has_an_order_and_seeds_of_its_own() -> None:
    train = make().train_dataloader()
    seeds = []
    orders = []
    for epoch in (0, 1):
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches = list(train)
        seeds += [seed for batch in batches for seed in batch["seed"].tolist()]
        orders.append([name for batch in batches for name in batch["id"]])
    assert len(set(seeds)) == 48
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_corpus_seed_gives_other_pairs() -> None:
    assert not set(ids(make(), "train")) & set(ids(make(corpus_seed=1), "train"))


def test_the_test_split_is_fixed() -> None:
    expected = {study.id for study in islice(studies("test"), 10)}
    for data in (make(), make(seed=5), make(num_train=3), make(negatives="labels"), make(batch_size=3)):
        names = ids(data, "test")
        assert len(names) == 10
        assert set(names) == expected
        predicted = list(data.predict_dataloader())
        assert {name for batch in predicted for name in batch["id"]} == expected
        assert all(batch["matched"].all() for batch in predicted)
    assert ids(make(), "test") == ids(make(seed=5), "test")


def test_a_longer_split_begins_with_the_shorter_one() -> None:
    short, long = (make(num_train=number).examples("train") for number in (6, 24))
    assert long.reports[:6] == short.reports


def test_a_stage_makes_its_own_splits_only() -> None:
    data = SyntheticDataModule(num_train=4, num_val=4, num_test=4, image_size=32)
    data.setup("validate")
    assert set(data.datasets) == {"val"}
    data.setup("fit")
    assert set(data.datasets) == {"train", "val"}
    data.setup("predict")
    assert set(data.datasets) == {"train", "val", "test"}


# -- errors and imports -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train must be positive, not 0"),
        ({"num_val": 0}, "num_val must be positive, not 0"),
        ({"num_test": -2}, "num_test must be positive, not -2"),
        ({"image_size": 16}, "image_size must be 32 or more, not 16"),
        ({"image_size": 31}, "image_size must be 32 or more, not 31"),
        ({"batch_size": 0}, "batch_size must be positive, not 0"),
        ({"tokenizer": "no/such/folder/vocab.txt"}, "no/such/folder"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SyntheticDataModule(**arguments)


def test_one_set_of_labels_allows_no_non_matching_pairs() -> None:
    with pytest.raises(ValueError, match="all pairs of the train split have one set of positive labels"):
        make(num_train=1, negatives="labels")


@pytest.mark.slow
def test_importing_it_imports_nothing_that_it_does_not_need() -> None:
    heavy = ("datasets", "wandb", "jsonargparse", "pyarrow")
    script = (
        "import sys, medvill_pl.synthetic.datamodule as module\n"
        "data = module.SyntheticDataModule(num_train=2, num_val=2, image_size=32)\n"
        "data.setup('fit'); print(next(iter(data.train_dataloader()))['image'].shape)\n"
        f"print(sorted(set({heavy}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch.Size([2, 1, 32, 32])", "[]"]
