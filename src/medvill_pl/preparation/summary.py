"""What is in a corpus: pairs, views, labels, lengths of texts, rejects, and what test shares with training."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tqdm import tqdm

from medvill_pl.batch import FINDINGS, SPLITS
from medvill_pl.data.corpus import CorpusInfo
from medvill_pl.files import write_atomically

STATES = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}
FILE = "summary.json"
REPORTS = "reports.csv"
"""Reports that were labelled without images."""


class Count(NamedTuple):
    """A count beside the published one.

    Attributes:
        name: what is counted.
        ours: our count.
        published: the published one, or None.

    Example:
        >>> Count("images", ours=7_469, published=7_470).differs
        True
    """

    name: str
    ours: int
    published: int | None = None

    @property
    def differs(self) -> bool:
        """Whether the two are different."""
        return self.published is not None and self.ours != self.published


@dataclass(frozen=True)
class Summary:
    """What is in a corpus.

    Attributes:
        source: name of the dataset.
        credentialed: whether its text and images may not be shared.
        views: rows by split and view; ``""`` is a view that is not known.
        patients: patients of each split.
        labels: rows by split, finding and state (``positive``, ``negative``, ``uncertain``, ``not mentioned``), for
            the findings that the corpus labels.
        words: by split: shortest, median, mean and longest text, in words.
        rejected: rows set aside, by reason.
        shared: by split other than training: ``patients`` in training too, and rows whose ``images`` (equal pixels)
            or ``texts`` are in training too.
        counts: counts beside the published ones.

    Example:
        >>> rows = [
        ...     TextRow("train", "CXR1", "The lungs are clear.", (1,) + (None,) * 13),
        ...     TextRow("test", "CXR2", "The lungs are clear.", (1,) + (None,) * 13),
        ... ]
        >>> summary = summarise_texts("open-i", False, rows, rejected={}, counts=[Count("reports", 2, 3_955)])
        >>> summary.rows, summary.shared["test"], summary.labels["test"]["No Finding"]["positive"]
        ({'train': 1, 'test': 1}, {'patients': 0, 'images': 0, 'texts': 1}, 1)
    """

    source: str
    credentialed: bool
    views: dict[str, dict[str, int]]
    patients: dict[str, int]
    labels: dict[str, dict[str, dict[str, int]]]
    words: dict[str, dict[str, float]]
    rejected: dict[str, int] = field(default_factory=dict)
    shared: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: tuple[Count, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(views.values()) for split, views in self.views.items()}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the ``summary.json`` of a folder.

        Raises:
            FileNotFoundError: if it has none.
        """
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        counts = values.pop("figures") if "figures" in values else values["counts"]  # their name until version 0.2
        return cls(**values | {"counts": tuple(Count(*count) for count in counts)})

    def write(self, folder: Path) -> None:
        """Write ``summary.json`` into a folder."""
        write_atomically(folder / FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        mark = " (credentialed: text and images must not be shared)" if self.credentialed else ""
        lines = [f"{self.source}{mark}", ""]
        lines += _table(["split", "rows", "patients", "views"], self._split_rows())
        lines += ["", "words of a text", *_table(["split", "shortest", "median", "mean", "longest"], self._word_rows())]
        if any(self.labels.values()):
            lines += ["", "positive / negative / uncertain, of all rows", *self._label_lines()]
        lines += ["", *self._leak_lines()]
        if self.counts:
            lines += ["", *_table(["count", "here", "published", ""], [_count_row(count) for count in self.counts])]
        lines += ["", f"set aside: {sum(self.rejected.values()):,}"]
        return lines + [f"  {count:,} {reason}" for reason, count in self.rejected.items()]

    def _split_rows(self) -> list[list[str]]:
        return [
            [split, f"{sum(views.values()):,}", f"{self.patients[split]:,}", view_counts(views)]
            for split, views in self.views.items()
        ]

    def _word_rows(self) -> list[list[str]]:
        return [[split, *(f"{value:.4g}" for value in words.values())] for split, words in self.words.items()]

    def _label_lines(self) -> list[str]:
        rows = []
        for finding in FINDINGS:
            cells = [self.labels[split].get(finding) for split in self.labels]
            rows.append(
                [
                    finding,
                    *(_states(states, self.rows[split]) for split, states in zip(self.labels, cells, strict=True)),
                ]
            )
        return _table(["finding", *self.labels], rows)

    def _leak_lines(self) -> list[str]:
        lines = []
        for split, counts in self.shared.items():
            lines.append(
                f"{split} shares with train: {counts['patients']:,} patients; {counts['images']:,} rows have an image "
                f"and {counts['texts']:,} rows a text that is in train too"
            )
        return lines


def view_counts(views: dict[str, int]) -> str:
    """Name the views of a split with their rows.

    Example:
        >>> view_counts({"AP": 1200, "": 3})
        'AP 1,200, not known 3'
    """
    return ", ".join(f"{view or 'not known'} {count:,}" for view, count in views.items())


def _states(states: dict[str, int] | None, rows: int) -> str:
    if states is None:
        return "not labelled"
    return " / ".join(f"{100 * states[name] / max(rows, 1):.1f} %" for name in ("positive", "negative", "uncertain"))


def _count_row(count: Count) -> list[str]:
    published = "" if count.published is None else f"{count.published:,}"
    return [count.name, f"{count.ours:,}", published, "DIFFERS" if count.differs else ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


class _SplitCounter:
    """What one split holds: texts and images as fingerprints of 12 bytes, so that millions of rows fit in memory."""

    def __init__(self) -> None:
        self.patients: set[str] = set()
        self.images: Counter[bytes] = Counter()
        self.texts: Counter[bytes] = Counter()
        self.views: Counter[str] = Counter()
        self.states: list[Counter[int | None]] = [Counter() for _ in FINDINGS]
        self.words: list[int] = []

    def add(self, patient: str, view: str, text: str, labels: Sequence[int | None], image: bytes | None = None) -> None:
        self.patients.add(patient)
        self.views[view] += 1
        self.words.append(len(text.split()))
        self.texts[_digest(" ".join(text.lower().split()).encode())] += 1
        for counter, state in zip(self.states, labels, strict=True):
            counter[state] += 1
        if image is not None:
            self.images[_digest(image)] += 1

    def shared_with(self, train: "_SplitCounter") -> dict[str, int]:
        return {
            "patients": len(self.patients & train.patients),
            "images": sum(count for image, count in self.images.items() if image in train.images),
            "texts": sum(count for text, count in self.texts.items() if text in train.texts),
        }

    def label_counts(self, labelled: Sequence[str]) -> dict[str, dict[str, int]]:
        return {
            finding: {name: counter[state] for state, name in STATES.items()}
            for finding, counter in zip(FINDINGS, self.states, strict=True)
            if finding in labelled
        }

    def word_counts(self) -> dict[str, float]:
        words = np.array(self.words)
        values = {"shortest": words.min(), "median": np.median(words), "mean": words.mean(), "longest": words.max()}
        return {name: round(float(value), 2) for name, value in values.items()}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).digest()


_COLUMNS = ("patient_id", "view", "report", "question", "answer", "labels", "image")


def read_rows(folder: Path, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read some columns of a split of a corpus, row by row, without reading the others from disk.

    Args:
        folder: the corpus.
        split: ``train``, ``val`` or ``test``.
        columns: columns of its shards, see :mod:`medvill_pl.data.corpus.schema`.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pq.write_table(pa.table({"id": ["1"], "view": ["AP"]}), f"{folder}/train-00000.parquet")
        ...     list(read_rows(Path(folder), "train", ["view"]))
        [{'view': 'AP'}]
    """
    import pyarrow.parquet as pq

    for path in sorted(folder.glob(f"{split}-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(64, columns=list(columns)):
            yield from batch.to_pylist()


def text_of(row: Mapping[str, Any]) -> str:
    """The text of a row: its question and answer, or its report where it has no question.

    Example:
        >>> text_of({"question": "Is there a fracture?", "answer": "no", "report": ""})
        'Is there a fracture? no'
    """
    return f"{row['question']} {row['answer']}" if row["question"] else str(row["report"])


def read_summary(folder: Path, counts: Sequence[Count] = ()) -> Summary:
    """Read a whole corpus and count what is in it.

    Args:
        folder: the corpus.
        counts: what was counted before, beside the published counts.

    Raises:
        FileNotFoundError: if the folder is no corpus, or an unfinished one.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as name:
        ...     Image.new("L", (32, 32), 128).save(f"{name}/1.png")
        ...     rows = [Row("1", "1", "train", f"{name}/1.png", "The lungs are clear.", view="AP")]
        ...     _ = write_corpus(Path(name) / "corpus", rows, CorpusInfo("one row", False, 32, []))
        ...     read_summary(Path(name) / "corpus").words["train"]["mean"]
        4.0
    """
    info = CorpusInfo.read(folder)
    splits: dict[str, _SplitCounter] = {}
    with tqdm(total=sum(info.splits.values()), desc="summary", unit="row", disable=None) as bar:
        for split in SPLITS:
            for row in read_rows(folder, split, _COLUMNS):
                counter = splits.setdefault(split, _SplitCounter())
                counter.add(row["patient_id"], row["view"], text_of(row), row["labels"], row["image"])
                bar.update()
    return _summarise(info.source, info.credentialed, info.labelled, splits, _read_rejected(folder), counts)


class TextRow(NamedTuple):
    """A report without its image, for the statistics of texts and labels.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        patient_id: identifier of the patient.
        text: the report.
        labels: 14 values 1, 0, -1 or None (not mentioned).

    Example:
        >>> TextRow("train", "CXR1", "The lungs are clear.", (1,) + (None,) * 13).split
        'train'
    """

    split: str
    patient_id: str
    text: str
    labels: Sequence[int | None]


def summarise_texts(
    source: str, credentialed: bool, rows: Sequence[TextRow], rejected: dict[str, int], counts: Sequence[Count]
) -> Summary:
    """Count texts and labels of reports without images.

    Args:
        source: name of the dataset.
        credentialed: whether the texts may not be shared.
        rows: the reports.
        rejected: reports set aside, by reason.
        counts: what was counted before, beside the published counts.

    Example:
        >>> row = TextRow("train", "CXR1", "The lungs are clear.", (1,) + (None,) * 13)
        >>> summarise_texts("open-i", False, [row], rejected={}, counts=[]).words["train"]["longest"]
        4.0
    """
    splits: dict[str, _SplitCounter] = {}
    for split in SPLITS:
        for row in rows:
            if row.split == split:
                splits.setdefault(split, _SplitCounter()).add(row.patient_id, "", row.text, row.labels)
    return _summarise(source, credentialed, FINDINGS, splits, rejected, counts)


def _summarise(
    source: str,
    credentialed: bool,
    labelled: Sequence[str],
    splits: dict[str, _SplitCounter],
    rejected: dict[str, int],
    counts: Sequence[Count],
) -> Summary:
    return Summary(
        source,
        credentialed,
        views={split: dict(sorted(counter.views.items())) for split, counter in splits.items()},
        patients={split: len(counter.patients) for split, counter in splits.items()},
        labels={split: counter.label_counts(labelled) for split, counter in splits.items()},
        words={split: counter.word_counts() for split, counter in splits.items()},
        rejected=rejected,
        shared={
            split: counter.shared_with(splits["train"])
            for split, counter in splits.items()
            if "train" in splits and split != "train"
        },
        counts=tuple(counts),
    )


def _read_rejected(folder: Path) -> dict[str, int]:
    """Rows set aside by reason, without the path or number that a reason ends with."""
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        reasons = Counter(row["reason"].split(":")[0] for row in csv.DictReader(file))
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def finish(folder: Path, counts: Sequence[Count] = ()) -> Summary:
    """Summarise a corpus that was just written, and write its ``summary.json``.

    Args:
        folder: the corpus.
        counts: what was counted before, beside the published counts.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     Image.new("L", (32, 32), 128).save(folder / "1.png")
        ...     rows = [Row("1", "1", "train", str(folder / "1.png"), "The lungs are clear.", view="AP")]
        ...     _ = write_corpus(folder / "corpus", rows, CorpusInfo("one row", False, 32, []))
        ...     finish(folder / "corpus") == Summary.read(folder / "corpus")
        True
    """
    summary = read_summary(folder, counts)
    summary.write(folder)
    return summary
