"""The corpus form: what every dataset is prepared into, and how it is read.

A corpus is a folder of Parquet shards, a ``corpus.json`` that is written last, and a
``rejected.csv`` of the rows that could not be used.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.dicom import is_dicom, read_tags
from medvill_pl.data.images import encode_png, read_square
from medvill_pl.files import replacing, write_atomically

SCHEMA_VERSION = 2
SHARD_ROWS = 256
ROW_GROUP_ROWS = 64
_ROWS_AHEAD = 16
"""Rows that a worker may be ahead of the shard that is being written."""
_PLAN = ".plan"
_CACHE = ".cache"


@dataclass(frozen=True)
class Row:
    """One image with its text, on the way into a corpus.

    Attributes:
        id: identifier, unique in the corpus.
        patient_id: identifier of the patient.
        split: the split it belongs to.
        image: the image file.
        report: the text, or why there is none to use (see ``rejection``).
        view: such as AP, or empty where it is not known.
        labels: 14 values 1, 0, -1 or None (not mentioned).
        rejection: why the row cannot be used; empty where nothing is known against it.
        question: in visual question answering, the question about the image.
        answer: its answer.
        answer_type: ``closed`` or ``open``.
        question_type: what is asked about, such as ``presence``.
        organ: the organ that the image shows.
    """

    id: str
    patient_id: str
    split: Split
    image: str
    report: str
    view: str = ""
    labels: tuple[int | None, ...] = (None,) * len(FINDINGS)
    rejection: str = ""
    question: str = ""
    answer: str = ""
    answer_type: str = ""
    question_type: str = ""
    organ: str = ""


_TEXT_COLUMNS = (
    "id",
    "patient_id",
    "view",
    "report",
    "question",
    "answer",
    "answer_type",
    "question_type",
    "organ",
)


@dataclass(frozen=True)
class CorpusInfo:
    """What ``corpus.json`` says.

    Attributes:
        source: name of the dataset.
        credentialed: True if text and images may not be shared.
        image_size: side of the square images in pixels.
        labelled: the findings that the corpus labels; the others are unknown, not negative.
        splits: pairs of each split.
        rejected: rows set aside.
        fingerprint: SHA-256 over all shards.
        schema_version: version of the corpus form.
        cut_margins: whether margins were cut off the images.
    """

    source: str
    credentialed: bool
    image_size: int
    labelled: list[str]
    splits: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    fingerprint: str = ""
    schema_version: int = SCHEMA_VERSION
    cut_margins: bool = True

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the ``corpus.json`` of a folder.

        Raises:
            FileNotFoundError: if the folder is no (whole) corpus.
            ValueError: if it was written by another version of the library.
        """
        path = folder / "corpus.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no corpus: it has no corpus.json (its preparation has not finished)")
        return cls.parse(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> Self:
        """Read the content of a ``corpus.json`` that came from somewhere.

        Raises:
            ValueError: if it was written by another version of the library.
        """
        values = json.loads(text)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{origin} has schema version {values.get('schema_version')}, not {SCHEMA_VERSION}: prepare it again"
            )
        return cls(**{"cut_margins": False} | values)  # corpora of old do not say so and have their margins


_FAULTS_OF_A_ROW = (None, errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)


@dataclass(frozen=True)
class _Shard:
    path: Path
    rows: Sequence[Row]

    @property
    def rejects(self) -> Path:
        return self.path.with_suffix(".rejected.json")


def _write_shard(shard: _Shard, prepared: Iterator[dict[str, Any] | str]) -> None:
    """Write the next prepared rows as one Parquet file, and those rejected beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rejected: list[dict[str, str]] = []
    usable = _usable(shard.rows, prepared, rejected)
    with replacing(shard.path) as file:
        with pq.ParquetWriter(file, _schema()) as writer:
            while group := list(islice(usable, ROW_GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema=_schema()))
        write_atomically(shard.rejects, json.dumps(rejected).encode())


def _usable(
    rows: Sequence[Row], prepared: Iterator[dict[str, Any] | str], rejected: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """The values of each usable row; the others are added to those rejected."""
    for row in rows:
        values = next(prepared)
        if isinstance(values, str):
            rejected.append({"id": row.id, "image": row.image, "reason": values})
        else:
            yield values


def _prepare(row: Row, info: CorpusInfo) -> dict[str, Any] | str:
    """The values of a row as the corpus holds it, or why it cannot be used.

    Raises:
        OSError: if the disk fails: the row may be good.
    """
    try:
        return _values(row, info)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _FAULTS_OF_A_ROW:
            raise
        return str(error)


def _values(row: Row, info: CorpusInfo) -> dict[str, Any]:
    """A row as the corpus holds it.

    Raises:
        ValueError: if it cannot be used.
        OSError: if its image cannot be read.
    """
    if row.rejection:
        raise ValueError(row.rejection)
    texts: dict[str, Any] = {name: getattr(row, name) for name in _TEXT_COLUMNS}
    "".join(texts.values()).encode()  # Parquet holds UTF-8 only
    path = Path(row.image)
    square = read_square(path, info.image_size, info.cut_margins)
    if is_dicom(path):
        tags = read_tags(path)
        if tags.fault and not row.organ:  # a row that names an organ may show any
            raise ValueError(tags.fault)
        texts["view"] = row.view or tags.view
    return {**texts, "image": encode_png(square), "labels": row.labels}


def _schema() -> Any:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in _TEXT_COLUMNS]
    return pa.schema([*texts, ("image", pa.binary()), ("labels", pa.list_(pa.int8(), len(FINDINGS)))])


def _plan_of(rows: Sequence[Row], info: CorpusInfo) -> str:
    """A fingerprint of all that decides what the shards will hold."""
    digest = hashlib.sha256(json.dumps(asdict(info)).encode())
    for row in rows:
        try:
            stat = os.stat(row.image)
            seen = f"{stat.st_size} {stat.st_mtime_ns}"
        except (OSError, ValueError):  # a path with a NUL is a ValueError
            seen = "missing"
        digest.update(json.dumps([asdict(row), seen]).encode())
    return digest.hexdigest()


def write_corpus(folder: Path, rows: Sequence[Row], info: CorpusInfo, workers: int | None = None) -> CorpusInfo:
    """Write a corpus, or finish one that was interrupted.

    Shards are made in parallel, each written atomically; a finished shard is not made again, and
    the bytes do not depend on the number of workers. Rows that cannot be used go to
    ``rejected.csv`` with the reason.

    Args:
        folder: where to write; made where it is not there.
        rows: the pairs, in the order to be kept.
        info: source, mark, image size and labelled findings; the rest is filled in here.
        workers: threads, by default as many as Python thinks fit for the cores.

    Returns:
        What ``corpus.json`` says.

    Raises:
        ValueError: if no row can be used.
        FileExistsError: if the folder holds something else than a corpus.
        PermissionError: if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # nodes that share a disk prepare one after the other
        return _write_alone(folder, rows, info, workers)


def _write_alone(folder: Path, rows: Sequence[Row], info: CorpusInfo, workers: int | None) -> CorpusInfo:
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if any(folder.iterdir()) and not (folder / _PLAN).exists():
        raise FileExistsError(f"{folder} is not empty and holds no corpus: choose another folder for the corpus")
    _check_source(folder, info)
    plan = _plan_of(rows, info)
    if _is_done(folder, plan):
        return CorpusInfo.read(folder)
    _forget_other_plan(folder, plan)
    shards = list(_shards(folder, rows))
    todo = [shard for shard in shards if not shard.path.exists()]
    num_workers = workers or os.cpu_count() or 1
    # Pillow lets go of the interpreter lock while it decodes, resizes and encodes, so threads use all cores.
    with ThreadPoolExecutor(num_workers) as pool:
        prepared = tqdm(
            _in_order(
                pool, partial(_prepare, info=info), chain.from_iterable(shard.rows for shard in todo), num_workers
            ),
            total=sum(len(shard.rows) for shard in todo),
            desc=f"preparing {info.source}",
            unit="row",
            disable=None,
        )
        rest = iter(prepared)
        for shard in todo:
            _write_shard(shard, rest)
        prepared.close()
    return _finish(folder, shards, info, plan)


def _in_order(
    pool: ThreadPoolExecutor, prepare: Callable[[Row], dict[str, Any] | str], rows: Iterable[Row], num_workers: int
) -> Iterator[dict[str, Any] | str]:
    """Prepare rows in parallel and give them in their order, only so many being ahead that memory stays flat."""
    waiting: deque[Future[dict[str, Any] | str]] = deque()
    try:
        for row in rows:
            waiting.append(pool.submit(prepare, row))
            if len(waiting) >= _ROWS_AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _check_source(folder: Path, info: CorpusInfo) -> None:
    """Refuse to replace the corpus of another dataset."""
    if (folder / "corpus.json").exists():
        source = json.loads((folder / "corpus.json").read_text(encoding="utf-8")).get("source")
        if source != info.source:
            raise FileExistsError(f"{folder} holds a corpus of {source}, not of {info.source}: choose another folder")


def _shards(folder: Path, rows: Sequence[Row]) -> Iterable[_Shard]:
    for split in ("train", "val", "test"):
        part = [row for row in rows if row.split == split]
        for number, start in enumerate(range(0, len(part), SHARD_ROWS)):
            yield _Shard(folder / f"{split}-{number:05d}.parquet", part[start : start + SHARD_ROWS])


def _is_done(folder: Path, plan: str) -> bool:
    return (folder / "corpus.json").exists() and (folder / _PLAN).exists() and (folder / _PLAN).read_text() == plan


def _forget_other_plan(folder: Path, plan: str) -> None:
    """Remove what an earlier preparation with other rows or settings left, the mark of completeness first."""
    if (folder / _PLAN).exists() and (folder / _PLAN).read_text() == plan:
        return
    (folder / "corpus.json").unlink(missing_ok=True)
    shutil.rmtree(folder / _CACHE, ignore_errors=True)
    for pattern in ("*-?????.parquet", "*-?????.rejected.json"):
        for path in folder.glob(pattern):
            path.unlink()
    write_atomically(folder / _PLAN, plan.encode())


def _finish(folder: Path, shards: Sequence[_Shard], info: CorpusInfo, plan: str) -> CorpusInfo:
    import pyarrow.parquet as pq

    splits: dict[str, int] = {}
    digest = hashlib.sha256()
    rejected: list[dict[str, str]] = []
    for shard in shards:
        split = shard.path.name.split("-")[0]
        splits[split] = splits.get(split, 0) + pq.read_metadata(shard.path).num_rows
        digest.update(hashlib.sha256(shard.path.read_bytes()).digest())
        rejected += json.loads(shard.rejects.read_text())
    _write_rejected(folder / "rejected.csv", rejected)
    if not any(splits.values()):
        reason = rejected[0]["reason"] if rejected else "there are none"
        raise ValueError(f"no row of {info.source} can be used ({reason}): see {folder / 'rejected.csv'}")
    done = replace(info, splits=splits, rejected=len(rejected), fingerprint=digest.hexdigest())
    write_atomically(folder / "corpus.json", (json.dumps(asdict(done), indent=2) + "\n").encode())
    for shard in shards:
        shard.rejects.unlink(missing_ok=True)
    return done


def _write_rejected(path: Path, rejected: Sequence[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["id", "image", "reason"])
        writer.writeheader()
        writer.writerows(rejected)


class CorpusExamples:
    """The pairs of one split of a corpus on disk, read through ``datasets`` without loading the images.

    In a corpus of questions, each row has its ``questions``, ``answers``, ``answer_types``, ``question_types`` and
    ``organs``, which are empty in others.

    Args:
        folder: the corpus.
        split: ``train``, ``val`` or ``test``.
        image_size: side of the images to give, resized where the corpus has another.
        organ: keep the rows with this organ only; None keeps all.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if the split is empty, or has no such organ.
    """

    def __init__(self, folder: Path, split: Split, image_size: int, organ: str | None = None) -> None:
        from datasets import Dataset, disable_progress_bars
        from pyarrow.parquet import read_metadata

        info = CorpusInfo.read(folder)
        if not info.splits.get(split):
            raise ValueError(f"the corpus {folder} has no {split} split")
        disable_progress_bars()
        # A shard whose rows were all rejected is empty, which `datasets` cannot read.
        paths = [str(path) for path in sorted(folder.glob(f"{split}-*.parquet")) if read_metadata(path).num_rows]
        # `datasets` unpacks the shards into files that it maps into memory: beside them, not into the home folder.
        cache = str(folder / _CACHE) if os.access(folder, os.W_OK) else None
        table = Dataset.from_parquet(paths, cache_dir=cache)
        if organ is not None:
            chosen = [row for row, of_row in enumerate(table["organ"]) if of_row == organ]
            if not chosen:
                known = ", ".join(sorted(set(table["organ"])))
                raise ValueError(f"the {split} split of {folder} has no organ {organ!r}: choose of {known}")
            table = table.select(chosen)
        self._images = table.select_columns(["image"])
        self._image_size = image_size
        self.ids: list[str] = list(table["id"])
        self.reports: list[str] = list(table["report"])
        self.questions: list[str] = list(table["question"])
        self.answers: list[str] = list(table["answer"])
        self.answer_types: list[str] = list(table["answer_type"])
        self.question_types: list[str] = list(table["question_type"])
        self.organs: list[str] = list(table["organ"])
        self.labelled: list[str] = info.labelled
        self.labels = label_array(table["labels"])

    def image(self, index: int) -> Tensor:
        """The image of one pair, uint8, shape ``(1, image_size, image_size)``."""
        return decode_square(self._images[index]["image"], self._image_size)


def decode_square(png: bytes, image_size: int) -> Tensor:
    """Decode an image of a corpus, resized where it has another size, uint8, shape ``(1, image_size, image_size)``."""
    image: Tensor = decode_image(torch.frombuffer(bytearray(png), dtype=torch.uint8), ImageReadMode.GRAY)
    if image.shape[-1] != image_size:
        image = resize(image, [image_size, image_size], antialias=True)
    return image


def label_array(labels: Iterable[Sequence[int | None]]) -> NDArray[np.float32]:
    """Labels of a corpus' rows as float32, NaN = not mentioned, shape ``(N, 14)``."""
    rows = [[np.nan if value is None else value for value in row] for row in labels]
    return np.array(rows, dtype=np.float32).reshape(-1, len(FINDINGS))
