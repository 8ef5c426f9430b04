"""Writing a corpus: in parallel, resumable, atomic, and with the same bytes whatever the number of workers.

Rows are dealt out to shards before anything is written, so a shard's name and rows follow from the input alone (the
*plan*). Finished shards are kept while the plan is the same; ``corpus.json``, written last, says that all are there.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from medvill_pl.batch import SPLITS
from medvill_pl.data.corpus.schema import CACHE, TEXT_COLUMNS, CorpusInfo, Row, arrow_schema
from medvill_pl.data.dicom import is_dicom, read_tags
from medvill_pl.data.images import encode_png, read_square
from medvill_pl.files import replacing, write_atomically

SHARD_ROWS = 256
ROW_GROUP_ROWS = 64
_ROWS_AHEAD = 16
"""Rows that a worker may be ahead of the shard that is being written."""
_PLAN = ".plan"
# Errors that say something about this row's file. Any other error number (a full or failing disk) stops the run, for
# the row may be good. None: what Pillow raises about an image has no number.
_FAULTS_OF_A_ROW = (None, errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)

Prepared = dict[str, Any] | str
"""The values of a row as the corpus holds it, or why it cannot be used."""


@dataclass(frozen=True)
class _Shard:
    path: Path
    rows: Sequence[Row]

    @property
    def rejects(self) -> Path:
        return self.path.with_suffix(".rejected.json")


def write_corpus(folder: Path, rows: Sequence[Row], info: CorpusInfo, workers: int | None = None) -> CorpusInfo:
    """Write a corpus, or finish one that was interrupted.

    Shards are made in parallel, each written atomically; a finished shard is not made again, and
    the bytes do not depend on the number of workers. Rows that cannot be used go to
    ``rejected.csv`` with the reason.

    Args:
        folder: where to write; made where it is not there.
        rows: the pairs, in the order to be kept.
        info: source, credentialed mark, image size and labelled findings; the rest is filled in here.
        workers: number of threads, by default one per core.

    Returns:
        What ``corpus.json`` says.

    Raises:
        ValueError: if no row can be used.
        FileExistsError: if the folder holds something else than a corpus.
        PermissionError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import CorpusExamples
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     Image.new("L", (64, 48), 128).save(folder / "1.png")
        ...     rows = [
        ...         Row("1", "patient 1", "train", str(folder / "1.png"), "The lungs are clear."),
        ...         Row("2", "patient 2", "train", str(folder / "2.png"), "Small left effusion."),
        ...     ]
        ...     done = write_corpus(folder / "corpus", rows, CorpusInfo("two rows", False, 32, []))
        ...     examples = CorpusExamples(folder / "corpus", "train", image_size=32)
        >>> done.splits, done.rejected, examples.ids, examples.reports
        ({'train': 1}, 1, ['1'], ['The lungs are clear.'])
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # nodes that share a disk prepare one after the other
        return _write_locked(folder, rows, info, workers)


def _write_locked(folder: Path, rows: Sequence[Row], info: CorpusInfo, workers: int | None) -> CorpusInfo:
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if any(folder.iterdir()) and not (folder / _PLAN).exists():
        raise FileExistsError(f"{folder} is not empty and holds no corpus: choose another folder for the corpus")
    _check_source(folder, info)
    plan = _plan_of(rows, info)
    if (folder / "corpus.json").exists() and _has_plan(folder, plan):
        return CorpusInfo.read(folder)
    if not _has_plan(folder, plan):
        _start_anew(folder, plan)
    shards = list(_shards(folder, rows))
    _write_shards([shard for shard in shards if not shard.path.exists()], info, workers or os.cpu_count() or 1)
    return _finish(folder, shards, info)


# The plan


def _plan_of(rows: Sequence[Row], info: CorpusInfo) -> str:
    """A fingerprint of all that decides what the shards will hold."""
    digest = hashlib.sha256(json.dumps(asdict(info)).encode())
    for row in rows:
        # Size and time stand for the content of an image: reading all images would cost as much as preparing them.
        try:
            stat = os.stat(row.image)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except (OSError, ValueError):  # a path with a NUL is a ValueError
            state = "missing"
        digest.update(json.dumps([asdict(row), state]).encode())
    return digest.hexdigest()


def _has_plan(folder: Path, plan: str) -> bool:
    return (folder / _PLAN).exists() and (folder / _PLAN).read_text() == plan


def _start_anew(folder: Path, plan: str) -> None:
    """Remove what an earlier preparation with other rows or settings left."""
    # The order counts: killed at any point, the folder neither looks whole nor mixes shards of two plans.
    (folder / "corpus.json").unlink(missing_ok=True)
    shutil.rmtree(folder / CACHE, ignore_errors=True)
    for pattern in ("*-?????.parquet", "*-?????.rejected.json"):
        for path in folder.glob(pattern):
            path.unlink()
    write_atomically(folder / _PLAN, plan.encode())


def _check_source(folder: Path, info: CorpusInfo) -> None:
    """Refuse to replace the corpus of another dataset."""
    if (folder / "corpus.json").exists():
        source = json.loads((folder / "corpus.json").read_text(encoding="utf-8")).get("source")
        if source != info.source:
            raise FileExistsError(f"{folder} holds a corpus of {source}, not of {info.source}: choose another folder")


def _shards(folder: Path, rows: Sequence[Row]) -> Iterable[_Shard]:
    # A shard is a fixed number of *given* rows, usable or not. Were it filled with usable rows, its rows would depend
    # on how those before it turned out, and an interrupted run could not tell which rows come next.
    for split in SPLITS:
        part = [row for row in rows if row.split == split]
        for number, start in enumerate(range(0, len(part), SHARD_ROWS)):
            yield _Shard(folder / f"{split}-{number:05d}.parquet", part[start : start + SHARD_ROWS])


# Shards


def _write_shards(shards: Sequence[_Shard], info: CorpusInfo, num_workers: int) -> None:
    """Prepare the rows of all shards in one pool of threads, and write one shard after the other."""
    rows = chain.from_iterable(shard.rows for shard in shards)
    # Pillow lets go of the interpreter lock while it decodes, resizes and encodes, so threads use all cores.
    with ThreadPoolExecutor(num_workers) as pool:
        prepared = tqdm(
            _in_order(pool, partial(_prepare, info=info), rows, num_workers),
            total=sum(len(shard.rows) for shard in shards),
            desc=f"preparing {info.source}",
            unit="row",
            disable=None,
        )
        remaining = iter(prepared)
        for shard in shards:
            _write_shard(shard, remaining)
        prepared.close()


def _in_order(
    pool: ThreadPoolExecutor, prepare: Callable[[Row], Prepared], rows: Iterable[Row], num_workers: int
) -> Iterator[Prepared]:
    """Prepare rows in parallel and give them in their order."""
    # `pool.map` would submit every row at once and keep all finished images until they are written. Here only a fixed
    # number of rows is ahead, so memory does not grow with the corpus.
    waiting: deque[Future[Prepared]] = deque()
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


def _write_shard(shard: _Shard, prepared: Iterator[Prepared]) -> None:
    """Write the next prepared rows as one Parquet file, and those rejected beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rejected: list[dict[str, str]] = []
    usable = _usable(shard.rows, prepared, rejected)
    with replacing(shard.path) as file:
        with pq.ParquetWriter(file, arrow_schema()) as writer:
            while group := list(islice(usable, ROW_GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema=arrow_schema()))
        # Before the shard is renamed into place: a shard that is there always has its rejects beside it.
        write_atomically(shard.rejects, json.dumps(rejected).encode())


def _usable(
    rows: Sequence[Row], prepared: Iterator[Prepared], rejected: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """The values of each usable row; the others are added to those rejected."""
    for row in rows:
        values = next(prepared)
        if isinstance(values, str):
            rejected.append({"id": row.id, "image": row.image, "reason": values})
        else:
            yield values


def _prepare(row: Row, info: CorpusInfo) -> Prepared:
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
    fields = asdict(row)
    texts: dict[str, Any] = {name: fields[name] for name in TEXT_COLUMNS}
    "".join(texts.values()).encode()  # Parquet holds UTF-8 only
    path = Path(row.image)
    square = read_square(path, info.image_size, info.cut_margins)
    if is_dicom(path):
        tags = read_tags(path)
        if tags.fault and not row.organ:  # a row that names an organ may show any
            raise ValueError(tags.fault)
        texts["view"] = row.view or tags.view
    return {**texts, "image": encode_png(square), "labels": row.labels}


# The end


def _finish(folder: Path, shards: Sequence[_Shard], info: CorpusInfo) -> CorpusInfo:
    """Count and fingerprint the shards, and write ``corpus.json``, which makes the corpus whole."""
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
    # Everything that corpus.json speaks of is on the disk before it is. The rejects of single shards are removed only
    # after it: a run killed in between must be able to count them again.
    write_atomically(folder / "corpus.json", (json.dumps(asdict(done), indent=2) + "\n").encode())
    for shard in shards:
        shard.rejects.unlink(missing_ok=True)
    return done


def _write_rejected(path: Path, rejected: Sequence[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["id", "image", "reason"])
        writer.writeheader()
        writer.writerows(rejected)
