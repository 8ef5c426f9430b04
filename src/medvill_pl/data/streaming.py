"""A corpus that is too large for one disk: its training split is read while it is trained on."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from medvill_pl.batch import Batch, Split, derive_seed
from medvill_pl.data.augmentation import augment
from medvill_pl.data.batches import PairDataset
from medvill_pl.data.corpus import CorpusExamples, CorpusInfo
from medvill_pl.data.corpus.reader import decode_square, label_array
from medvill_pl.data.module import BaseDataModule
from medvill_pl.data.negatives import Negatives, index_negatives
from medvill_pl.data.plan import BatchPlan, BatchRequest


def _stream_rows(shards: Sequence[str], seed: int, rank: int = 0, num_replicas: int = 1) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files that belong to this process and DataLoader worker, each row to exactly one.

    Args:
        shards: paths or fsspec addresses.
        seed: seed of the order; the same for all processes.
        rank: number of this process.
        num_replicas: number of processes.
    """
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    rows = load_dataset("parquet", data_files=list(shards), split="train", streaming=True)
    # Only the order of the shards: rows are mixed in the reader's own buffer, where batches are planned too.
    rows = rows.shuffle(seed=seed % 2**32, buffer_size=1)
    # Whole shards go to processes where their numbers divide, and `datasets` deals each process' shards to its workers.
    return iter(split_dataset_by_node(rows, rank, num_replicas))


class _Buffer:
    """Rows in memory, as the examples that batches are made of."""

    def __init__(self, rows: list[dict[str, Any]], labelled: list[str], image_size: int) -> None:
        self._images, self._image_size, self.labelled = [row["image"] for row in rows], image_size, labelled
        self.ids: list[str] = [row["id"] for row in rows]
        self.reports: list[str] = [row["report"] for row in rows]
        self.labels: NDArray[np.float32] = label_array(row["labels"] for row in rows)

    def image(self, index: int) -> Tensor:
        """One image, uint8, shape ``(1, image_size, image_size)``."""
        return decode_square(self._images[index], self._image_size)


class _StreamedBatches(IterableDataset[Batch]):
    """Batches of image-report pairs from a stream, made one buffer of rows at a time.

    Within a buffer everything is as it is for a corpus on disk: the order, the buckets of like length, and the
    non-matching reports, which are drawn among the buffer's rows. Each iteration is an epoch: as many batches for
    every process, and within a process as equally as possible for every worker. A worker that runs out of rows begins
    with them anew.

    Args:
        data: the data module, for its settings.
        shards: paths or fsspec addresses of the training split.
        info: what the corpus says of itself.
        rank: number of this process.
        num_replicas: number of processes.
        epoch: number of the first epoch.

    Raises:
        ValueError: if there are too few shards for the processes and their workers, or too few rows for one batch.
    """

    def __init__(
        self, data: "StreamingDataModule", shards: list[str], info: CorpusInfo, rank: int, num_replicas: int, epoch: int
    ) -> None:
        num_readers = num_replicas * max(1, data.num_workers)
        if len(shards) < num_readers:
            raise ValueError(f"{len(shards)} shards are too few for {num_readers} workers: set num_workers lower")
        self._shards, self._info, self._rank, self._num_replicas = shards, info, rank, num_replicas
        self._epoch = epoch
        self._tokenizer, self._max_tokens, self._image_size = data.tokenizer, data.max_tokens, data.image_size
        self._batch_size, self._bucket_batches, self._negatives = data.batch_size, data.bucket_batches, data.negatives
        self._seed, self._buffer_rows, self._is_augmented = data.seed, data.buffer_rows, data.augment
        self._transform = data.transform_of("train")
        self._num_batches = info.splits["train"] // (num_replicas * data.batch_size)
        if not self._num_batches:
            raise ValueError(f"{info.splits['train']} pairs are too few for a batch of {data.batch_size} per process")

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Processes wait for each other in every step, so all must see equally many batches, however the rows of their
        # shards are spread. The number is set beforehand and dealt out to the workers; the rows follow.
        share = self._num_batches // num_workers + (number < self._num_batches % num_workers)
        epoch, self._epoch = self._epoch, self._epoch + 1  # workers that stay count on their own
        return islice(chain.from_iterable(self._batches(epoch, turn, number) for turn in range(share)), share)

    def _batches(self, epoch: int, turn: int, worker: int) -> Iterator[Batch]:
        """The batches of one pass over this worker's rows."""
        order = derive_seed(self._seed, "stream", epoch, turn)
        rows = _stream_rows(self._shards, order, self._rank, self._num_replicas)
        for index, buffer in enumerate(_buffers(rows, self._buffer_rows)):
            seed = derive_seed(self._seed, "buffer", epoch, turn, self._rank, worker, index)
            yield from self._batches_of(_Buffer(buffer, self._info.labelled, self._image_size), seed)

    def _batches_of(self, examples: _Buffer, seed: int) -> Iterator[Batch]:
        dataset = PairDataset(examples, examples.reports, self._tokenizer, self._max_tokens, "train", seed)
        dataset.augment, dataset.transform = augment if self._is_augmented else None, self._transform
        negatives = index_negatives(examples, self._negatives, "train")
        plan = BatchPlan(dataset.lengths, negatives, self._batch_size, 1, seed, self._bucket_batches)
        for images, reports in plan.train(0):
            yield dataset[BatchRequest(0, images.tolist(), reports.tolist())]


def _buffers(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Divide a stream into lists of at least ``size`` rows; what is left at the end goes with the last."""
    rows = iter(rows)
    buffer = list(islice(rows, size))
    while len(following := list(islice(rows, size))) == size:
        yield buffer
        buffer = following
    if buffer or following:
        yield buffer + following


class StreamingDataModule(BaseDataModule):
    """A prepared corpus whose training split is not copied to this machine, but read while it is trained on.

    Validation and test are small: they are copied once and used as any other corpus. What streaming cannot do: a
    resumed run goes on with other batches than those that an uninterrupted one would have seen; an epoch may leave out
    or repeat some pairs, so that all processes take as many steps; pairs are mixed within a buffer of rows and between
    the shards that are read at once, not over the whole corpus.

    Args:
        corpus: folder of the prepared corpus, or its address in a form that fsspec knows, such as ``s3://...``.
        local: folder for the copy of validation and test.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: pairs of a batch, for each process.
        negatives: how the non-matching half of the pairs is drawn, in training among the rows of a buffer.
        max_tokens: longer reports are truncated to this many tokens; None takes the task's limit.
        bucket_batches: batches that are pooled and sorted by length in training.
        num_workers: processes that prepare batches; at most the number of training shards over that of processes.
        seed: seed of order, pairing and masking.
        augment: change the images of training a little.
        buffer_rows: rows that each worker holds in memory and mixes.

    Raises:
        FileNotFoundError: if there is no corpus.
        ValueError: if ``buffer_rows`` is smaller than a batch.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.png")
        ...     splits: list[Split] = ["train", "train", "val", "test"]
        ...     rows = [
        ...         Row(str(number), str(number), split, f"{folder}/1.png", f"Report {number}.")
        ...         for number, split in enumerate(splits)
        ...     ]
        ...     _ = write_corpus(Path(folder) / "corpus", rows, CorpusInfo("my hospital", True, 32, []))
        ...     data = StreamingDataModule(
        ...         f"{folder}/corpus", local=f"{folder}/local", tokenizer="synthetic", image_size=32, batch_size=2
        ...     )
        ...     data.prepare_data()  # copies validation and test
        ...     sorted(path.name for path in Path(folder, "local").iterdir())
        ['corpus.json', 'test-00000.parquet', 'val-00000.parquet']
    """

    def __init__(
        self,
        corpus: str,
        local: str,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        negatives: Negatives = "none",
        max_tokens: int | None = None,
        bucket_batches: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        augment: bool = False,
        buffer_rows: int = 512,
    ) -> None:
        super().__init__(
            tokenizer, image_size, batch_size, negatives, max_tokens, bucket_batches, num_workers, seed, augment
        )
        if buffer_rows < batch_size:
            raise ValueError(f"buffer_rows {buffer_rows} must hold a batch of {batch_size}")
        from fsspec.core import url_to_fs

        self.buffer_rows, self.local = buffer_rows, Path(local)
        self._files, self._root = url_to_fs(corpus)
        if not self._files.exists(f"{self._root}/corpus.json"):
            raise FileNotFoundError(f"{corpus} is no corpus: it has no corpus.json (its preparation has not finished)")
        self._info = CorpusInfo.parse(self._files.cat_file(f"{self._root}/corpus.json").decode(), corpus)
        self.name, self.is_credentialed = self._info.source, self._info.credentialed
        self.cut_margins = self._info.cut_margins

    def prepare_data(self) -> None:
        """Copy validation and test, and last of all the ``corpus.json``, unless they are there."""
        super().prepare_data()
        self.local.mkdir(parents=True, exist_ok=True)
        copied = self.local / "corpus.json"
        if copied.exists() and CorpusInfo.read(self.local) == self._info:
            return
        copied.unlink(missing_ok=True)
        for old in self.local.glob("*.parquet"):
            old.unlink()
        for address in (*self._shards("val"), *self._shards("test"), f"{self._root}/corpus.json"):
            self._files.get_file(address, str(self.local / PurePosixPath(address).name))

    def _shards(self, split: Split) -> list[str]:
        return sorted(self._files.glob(f"{self._root}/{split}-*.parquet"))

    def setup(self, stage: str) -> None:
        """Tokenise the splits that a stage needs, but for the one that is streamed."""
        super().setup("validate" if stage == "fit" else stage)

    def examples(self, split: Split) -> CorpusExamples:
        """The pairs of validation or test, from the copy."""
        return CorpusExamples(self.local, split, self.image_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches from the stream, in another order every epoch."""
        trainer = self.trainer
        rank, num_replicas, epoch = (
            (trainer.global_rank, trainer.world_size, trainer.current_epoch) if trainer else (0, 1, 0)
        )
        shards = [str(self._files.unstrip_protocol(path)) for path in self._shards("train")]
        batches = _StreamedBatches(self, shards, self._info, rank, num_replicas, epoch)
        return self._over(batches)
