"""A user's own images and texts, listed in a table."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from medvill_pl.batch import FINDINGS, Split, derive_seed
from medvill_pl.data.corpus import CorpusExamples, CorpusInfo, Row, write_corpus
from medvill_pl.data.corpus.schema import NOT_MENTIONED, parse_labels
from medvill_pl.data.module import BaseDataModule
from medvill_pl.data.negatives import Negatives

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""The splits by what a table may call them, in lower case."""
_BATCH_ARGUMENTS = (
    *("tokenizer", "batch_size", "negatives", "max_tokens", "bucket_batches", "num_workers", "seed", "augment"),
)
"""Arguments that the prepared corpus does not depend on."""


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a table as one mapping per row.

    Args:
        path: a ``.csv``, ``.jsonl`` or ``.parquet`` file, text in UTF-8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, broken or empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pairs.csv"
        ...     with path.open("w") as file:
        ...         print("image,report,Edema", "1.png,Mild edema.,1", sep=chr(10), file=file)
        ...     read_table(path)
        [{'image': '1.png', 'report': 'Mild edema.', 'Edema': '1'}]
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such table: {path}")
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            raise ValueError(f"{path} is no table: it must end in .csv, .jsonl or .parquet")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} cannot be read as a table: each line must be a JSON object")
    return rows


def read_reports(source: Path, column: str) -> list[str]:
    """Read the texts of a prepared corpus (its training split) or of a table.

    Args:
        source: folder of a corpus, or a table as :func:`read_table` takes it.
        column: column of the table with the text.

    Raises:
        FileNotFoundError: if there is no such corpus or table.
        ValueError: if the table has no such column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pairs.jsonl"
        ...     _ = path.write_text('{"image": "1.png", "report": "Mild edema."}')
        ...     read_reports(path, "report")
        ['Mild edema.']
    """
    if source.is_dir():
        return CorpusExamples(source, "train", CorpusInfo.read(source).image_size).reports
    table = read_table(source)
    if column not in table[0]:
        raise ValueError(f"{source} has no column {column!r}; it has {', '.join(map(str, table[0]))}")
    return [_text(row[column]) for row in table]


def _text(value: object) -> str:
    """A cell as text; missing values of every kind are empty."""
    is_missing = value is None or value != value  # NaN alone differs from itself
    return "" if is_missing else str(value).strip()


def assign_splits(patients: list[str], fractions: tuple[float, float], seed: int) -> dict[str, Split]:
    """Put every patient into one split, by a shuffle that follows from the seed.

    Args:
        patients: the patient of each row.
        fractions: shares of the rows for validation and test.
        seed: seed of the shuffle.

    Returns:
        The split of each patient. Validation and test get a patient each as soon as there are three.

    Example:
        >>> assign_splits(["Ann", "Ann", "Bo", "Cy"], fractions=(0.25, 0.25), seed=0)
        {'Ann': 'val', 'Bo': 'test', 'Cy': 'train'}
    """
    num_rows = Counter(patients)
    # Sorted by a digest of the name, not shuffled: a patient who is added later moves few others to another split.
    queue = sorted(num_rows, key=lambda patient: derive_seed(seed, "split", patient))
    splits: dict[str, Split] = {}
    # One patient is kept for training, and one for a test split that still comes.
    num_kept: dict[Split, int] = {"val": 2 if fractions[1] and len(queue) > 2 else 1, "test": 1}
    for (split, kept), fraction in zip(num_kept.items(), fractions, strict=True):
        target, assigned = fraction * len(patients), 0
        while len(queue) > kept and assigned < target:
            patient = queue.pop()
            splits[patient] = split
            assigned += num_rows[patient]
    splits.update(dict.fromkeys(queue, "train"))
    return splits


class PairsDataModule(BaseDataModule):
    """A user's own image-report pairs, from a table.

    The table is prepared once into a corpus folder; rows that cannot be used (a missing or broken
    image, an empty text) go to its ``rejected.csv``. Columns named like the 14 findings, with the
    values 1, 0, -1 or blank, are taken as labels.

    Args:
        table: a ``.csv``, ``.jsonl`` or ``.parquet`` file; or a corpus folder that ``medvill prepare pairs`` wrote,
            which is used as it is.
        image_column: column with the path of each image, absolute or from the image root.
        report_column: column with the text.
        patient_column: column with the patient; without it each row is a patient of its own.
        split_column: column with train, val or test; without it, patients are split at random.
        view_column: column with the view.
        id_column: column with a unique identifier; without it, the number of the row.
        image_root: folder of the images; by default the table's.
        corpus: folder to prepare the corpus in; by default one beside the table.
        val_fraction: share of the rows for validation, where there is no ``split_column``.
        test_fraction: share of the rows for test, where there is no ``split_column``.
        is_credentialed: True keeps text and images of the corpus out of what is sent elsewhere.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: pairs of a batch, for each process.
        negatives: how the non-matching half of the pairs is drawn.
        max_tokens: longer reports are truncated to this many tokens; None takes the task's limit.
        bucket_batches: batches that are pooled and sorted by length in training.
        num_workers: processes that prepare batches.
        seed: seed of order, pairing and masking.
        split_seed: seed of the splits, where there is no ``split_column``; apart from ``seed``, so that runs with
            other seeds are tested on the same patients.
        cut_margins: cut bright and dark margins off the images.
        augment: change the images of training a little.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if the table has no rows or lacks a column, or no row can be used.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (40, 30), 128).save(f"{folder}/1.png")
        ...     rows = [
        ...         {"image": "1.png", "report": f"Report {number}.", "patient": number, "Edema": number % 2}
        ...         for number in range(10)
        ...     ]
        ...     _ = Path(folder, "pairs.jsonl").write_text(chr(10).join(map(json.dumps, rows)))
        ...     data = PairsDataModule(
        ...         f"{folder}/pairs.jsonl", patient_column="patient", tokenizer="synthetic", image_size=32
        ...     )
        ...     data.prepare_data()
        ...     CorpusInfo.read(data.corpus).splits
        {'train': 8, 'val': 1, 'test': 1}
    """

    def __init__(
        self,
        table: str,
        image_column: str = "image",
        report_column: str = "report",
        patient_column: str | None = None,
        split_column: str | None = None,
        view_column: str | None = None,
        id_column: str | None = None,
        image_root: str | None = None,
        corpus: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        is_credentialed: bool = False,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        negatives: Negatives = "none",
        max_tokens: int | None = None,
        bucket_batches: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        split_seed: int = 0,
        cut_margins: bool = True,
        augment: bool = False,
    ) -> None:
        super().__init__(
            tokenizer, image_size, batch_size, negatives, max_tokens, bucket_batches, num_workers, seed, augment
        )
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction {val_fraction} and test_fraction {test_fraction} must leave pairs to train on"
            )
        self.save_hyperparameters(logger=False)
        self._table = Path(table)
        self.name, self.is_credentialed, self.cut_margins = self._table.stem, is_credentialed, cut_margins
        if self._table.is_dir():
            info = CorpusInfo.read(self._table)
            self.name, self.is_credentialed = info.source, is_credentialed or info.credentialed
            self.cut_margins = info.cut_margins

    @property
    def corpus(self) -> Path:
        """The corpus folder: the one given, or one beside the table that is named by the options it depends on."""
        if self._table.is_dir():
            return self._table
        if self.hparams["corpus"]:
            return Path(self.hparams["corpus"])
        settings = {name: value for name, value in self.hparams.items() if name not in _BATCH_ARGUMENTS}
        settings |= {"image_size": self.image_size}
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        return self._table.with_name(f"{self._table.name}.corpus-{digest}")

    def prepare_data(self) -> None:
        """Prepare the corpus folder, unless it is there for the table as it is."""
        super().prepare_data()
        if self._table.is_dir():
            return
        rows, info = self.read_rows()
        done = write_corpus(self.corpus, rows, info)
        if done.rejected:
            rank_zero_warn(
                f"{done.rejected:,} of {len(rows):,} rows cannot be used: see {self.corpus / 'rejected.csv'}"
            )
        pairs = ", ".join(f"{count:,} {split}" for split, count in done.splits.items())
        rank_zero_info(f"{self.name}: {pairs} pairs in {self.corpus}")

    def read_rows(self) -> tuple[list[Row], CorpusInfo]:
        """Read the table: the rows of the corpus, and what its ``corpus.json`` will say of them."""
        table = read_table(self._table)
        self._check_columns(table)
        labelled = [finding for finding in FINDINGS if any(finding in row for row in table)]
        info = CorpusInfo(self.name, self.is_credentialed, self.image_size, labelled, cut_margins=self.cut_margins)
        return list(self._rows(table)), info

    def _check_columns(self, table: list[dict[str, Any]]) -> None:
        names = ("image_column", "report_column", "patient_column", "split_column", "view_column", "id_column")
        for name in names:
            column = self.hparams[name]
            if column is not None and column not in table[0]:
                raise ValueError(
                    f"{self._table} has no column {column!r} ({name}); it has {', '.join(map(str, table[0]))}"
                )
        if self.hparams["patient_column"] is None:
            rank_zero_warn(
                "no patient_column is given: each row counts as a patient, so images of one person may be in "
                "several splits"
            )

    def _rows(self, table: list[dict[str, Any]]) -> Iterator[Row]:
        columns = self.hparams
        root = Path(columns["image_root"]) if columns["image_root"] else self._table.parent
        reports, images, views = (self._cells(table, f"{name}_column") for name in ("report", "image", "view"))
        given_ids = self._cells(table, "id_column")
        ids = [given or f"{number:07d}" for number, given in enumerate(given_ids, start=1)]
        patients = [given or own for given, own in zip(self._cells(table, "patient_column"), ids, strict=True)]
        splits = self._splits(table, patients)
        earlier: set[str] = set()
        for index, own in enumerate(ids):
            labels, rejection = NOT_MENTIONED, ""
            try:
                labels = parse_labels([_text(table[index].get(finding)) for finding in FINDINGS])
            except ValueError as error:
                rejection = str(error)
            if not reports[index]:
                rejection = "the text is empty"
            elif not images[index]:
                rejection = "the path of the image is empty"
            elif own in earlier:
                rejection = f"the identifier {own} occurs twice"
            earlier.add(own)
            image = str(root / images[index])
            yield Row(own, patients[index], splits[index], image, reports[index], views[index], labels, rejection)

    def _cells(self, table: list[dict[str, Any]], argument: str) -> list[str]:
        """The texts of the column that an argument names; empty ones where it names none."""
        column = self.hparams[argument]
        return [_text(row.get(column)) if column is not None else "" for row in table]

    def _splits(self, table: list[dict[str, Any]], patients: list[str]) -> list[Split]:
        column = self.hparams["split_column"]
        if column is None:
            assigned = assign_splits(
                patients, (self.hparams["val_fraction"], self.hparams["test_fraction"]), self.hparams["split_seed"]
            )
            return [assigned[patient] for patient in patients]
        splits: list[Split] = []
        for number, row in enumerate(table, start=1):
            given = _text(row.get(column)).lower()
            if given not in SPLIT_NAMES:
                raise ValueError(f"{self._table}, row {number}: {column} must be train, val or test, not {given!r}")
            splits.append(SPLIT_NAMES[given])
        self._warn_of_leak(patients, splits)
        return splits

    def _warn_of_leak(self, patients: list[str], splits: list[Split]) -> None:
        splits_of_patient: dict[str, set[Split]] = {}
        for patient, split in zip(patients, splits, strict=True):
            splits_of_patient.setdefault(patient, set()).add(split)
        shared = [patient for patient, of_patient in splits_of_patient.items() if len(of_patient) > 1]
        if shared:
            rank_zero_warn(
                f"{len(shared):,} patients (such as {shared[0]}) are in more than one split: results will be too good"
            )

    def examples(self, split: Split) -> CorpusExamples:
        """The pairs of one split, from the corpus folder."""
        return CorpusExamples(self.corpus, split, self.image_size)
