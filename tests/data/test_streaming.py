"""Training on a corpus that is read while it is trained on."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from medvill_pl import Batch
from medvill_pl.batch import Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus, writer
from medvill_pl.data.streaming import StreamingDataModule, _buffers, _stream_rows, _StreamedBatches

SIZE = 32


@pytest.fixture(autouse=True)
def no_wait_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits 5 seconds for PyArrow's threads at the end of each pass over several shards."""
    if hasattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN"):  # not in the lowest version that we allow
        monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def text_of(number: int) -> str:
    """A report that differs where the positive labels do."""
    return "edema " * (number % 2) + "consolidation " * (number % 3 == 0) + "opacity " * (number % 7) + "chest"


def make_corpus(folder: Path, num_train: int, shard_rows: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_train + 8):
        path = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(path)
        labels = (None,) * 5 + (number % 2, number % 3 == 0) + (None,) * 7
        split: Split = "train" if number < num_train else "val" if number < num_train + 4 else "test"
        rows.append(Row(f"{number}", f"{number}", split, str(path), text_of(number), labels=tuple(map(_int, labels))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_ROWS", shard_rows)
        write_corpus(folder / "corpus", rows, CorpusInfo("images", True, SIZE, ["Edema", "Consolidation"]))
    return folder / "corpus"


def _int(value: object) -> int | None:
    return None if value is None else int(value)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[str]:
    """A corpus of 48 training rows in 6 shards, not on a disk."""
    files = fsspec.filesystem("memory")
    for path in make_corpus(tmp_path, 48, 8).iterdir():
        if path.is_file():
            files.pipe_file(f"/bucket/images/{path.name}", path.read_bytes())
    yield "memory://bucket/images"
    files.rm("/bucket", recursive=True)


def make_data(address: str, local: Path, **options: Any) -> StreamingDataModule:
    settings = {"tokenizer": "synthetic", "image_size": SIZE, "batch_size": 4, "num_workers": 0, "negatives": "labels"}
    return StreamingDataModule(address, str(local), **(settings | options))


class Ids(IterableDataset[str]):
    """The identifiers that one process streams."""

    def __init__(self, shards: list[str], seed: int, rank: int, num_replicas: int) -> None:
        self._arguments = (shards, seed, rank, num_replicas)

    def __iter__(self) -> Iterator[str]:
        return (row["id"] for row in _stream_rows(*self._arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "shard_rows"), [(48, 8), (45, 8), (35, 7)], ids=["6 shards", "uneven", "5 shards"]
)
def test_two_processes_with_two_workers_see_every_row_once(num_rows: int, shard_rows: int, tmp_path: Path) -> None:
    shards = sorted(map(str, make_corpus(tmp_path, num_rows, shard_rows).glob("train-*.parquet")))
    orders = []
    for seed in (0, 1):
        ids = [list(DataLoader(Ids(shards, seed, rank, 2), batch_size=None, num_workers=2)) for rank in (0, 1)]
        assert not set(ids[0]) & set(ids[1])
        assert sorted(ids[0] + ids[1], key=int) == [str(number) for number in range(num_rows)]
        orders.append(ids)
    assert orders[0] != orders[1]


@pytest.mark.slow
def test_batches_of_two_processes_with_two_workers_hold_every_pair_once(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, 64, 8)
    data = make_data(str(folder), tmp_path / "local", num_workers=2, buffer_rows=8)
    shards = sorted(map(str, folder.glob("train-*.parquet")))
    seen: Counter[str] = Counter()
    for rank in (0, 1):
        batches = list(data._over(_StreamedBatches(data, shards, CorpusInfo.read(folder), rank, 2, 0)))
        assert len(batches) == 8
        seen.update(name for batch in batches for name in batch["id"])
    assert seen == Counter(str(number) for number in range(64))


def test_streamed_batches_are_like_all_others(in_memory: str, tmp_path: Path) -> None:
    data = make_data(in_memory, tmp_path / "local", buffer_rows=16)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(2)]
    order = [[name for batch in batches for name in batch["id"]] for batches in epochs]
    assert len(loader) == len(epochs[0]) == 12
    assert sorted(order[0], key=int) == sorted(order[1], key=int) == [str(number) for number in range(48)]
    assert order[0] != order[1]
    words = data.tokenizer
    for batch in epochs[0]:
        assert (batch["image"].dtype, batch["image"].shape) == (torch.uint8, (4, 1, SIZE, SIZE))
        assert batch["matched"].sum() == 2
        assert batch["text_mask"].sum(dim=1).max() == batch["input_ids"].shape[1]
        for index, name in enumerate(batch["id"]):
            number = int(name)
            expected = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            np.testing.assert_array_equal(batch["image"][index, 0], expected)
            own = words.encode([text_of(number)])[0]
            ids = batch["input_ids"][index][batch["text_mask"][index]].tolist()[:-1]
            if batch["matched"][index]:
                assert ids == own
            else:
                assert ids != own
    val = [name for batch in data.val_dataloader() for name in batch["id"]]
    assert sorted(val) == ["48", "49", "50", "51"]


def test_the_same_seed_gives_the_same_stream(in_memory: str, tmp_path: Path) -> None:
    def order(**options: Any) -> list[str]:
        data = make_data(in_memory, tmp_path / "local", **options)
        return [name for batch in data.train_dataloader() for name in batch["id"]]

    assert order() == order()
    assert order() != order(seed=1)


class Model(LightningModule):
    """Learns one useless number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen += batch["id"]
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert len(batch["id"]) == len(batch["report"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_trainer_trains_on_a_stream(in_memory: str, tmp_path: Path, make_trainer: Any) -> None:
    model = Model()
    trainer = make_trainer(max_steps=-1, max_epochs=2, limit_val_batches=1.0)
    trainer.fit(model, make_data(in_memory, tmp_path / "local", augment=True))
    assert trainer.global_step == 24
    assert Counter(model.seen) == Counter({str(number): 2 for number in range(48)})


def test_validation_is_copied_once_and_anew_when_the_corpus_changes(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, 12, 4)
    for _ in range(2):
        make_data(str(folder), tmp_path / "local").prepare_data()
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == ["corpus.json", "test-00000.parquet", "val-00000.parquet"]
    before = (tmp_path / "local" / "corpus.json").stat().st_mtime_ns
    make_data(str(folder), tmp_path / "local").prepare_data()
    assert (tmp_path / "local" / "corpus.json").stat().st_mtime_ns == before
    shutil.rmtree(folder)
    other = make_corpus(tmp_path, 14, 4)
    data = make_data(str(other), tmp_path / "local")
    data.prepare_data()
    assert data.examples("val").ids == ["14", "15", "16", "17"]


def test_what_cannot_be_streamed_is_said(in_memory: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="memory://bucket/none is no corpus"):
        make_data("memory://bucket/none", tmp_path)
    with pytest.raises(ValueError, match="buffer_rows 2 must hold a batch of 4"):
        make_data(in_memory, tmp_path, buffer_rows=2)
    with pytest.raises(ValueError, match="6 shards are too few for 7 workers"):
        make_data(in_memory, tmp_path, num_workers=7).train_dataloader()
    with pytest.raises(ValueError, match="48 pairs are too few for a batch of 64"):
        make_data(in_memory, tmp_path, batch_size=64).train_dataloader()


@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 8, 9, 11, 12])
def test_buffers_hold_all_rows_and_no_short_rest(num_rows: int) -> None:
    rows = [{"id": number} for number in range(num_rows)]
    buffers = list(_buffers(rows, 4))
    assert [row for buffer in buffers for row in buffer] == rows
    assert all(4 <= len(buffer) < 8 for buffer in buffers) or num_rows < 4
