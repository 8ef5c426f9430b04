"""The form of a corpus: its rows, its ``corpus.json`` and the columns of its Parquet shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from medvill_pl.batch import FINDINGS, Split

SCHEMA_VERSION = 2
Labels = tuple[int | None, ...]
"""The labels of one row, in the order of ``FINDINGS``: 1, 0, -1 or None (not mentioned)."""
NOT_MENTIONED: Labels = (None,) * len(FINDINGS)
_LABELS = {"": None, "1": 1, "0": 0, "-1": -1}
TEXT_COLUMNS = (
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
CACHE = ".cache"
"""Folder of a corpus with its shards as ``datasets`` unpacks them."""


@dataclass(frozen=True)
class Row:
    """One image with its text, on the way into a corpus.

    Attributes:
        id: identifier, unique in the corpus.
        patient_id: identifier of the patient.
        split: the split it belongs to.
        image: the image file.
        report: the text; may be empty where ``rejection`` says why there is none, or where there is a question.
        view: such as AP, or empty where it is not known.
        labels: 14 values 1, 0, -1 or None (not mentioned).
        rejection: why the row cannot be used; empty where nothing is known against it.
        question: in visual question answering, the question about the image.
        answer: its answer.
        answer_type: ``closed`` or ``open``.
        question_type: what is asked about, such as ``presence``.
        organ: the organ that the image shows.

    Example:
        >>> row = Row("study 1", "patient 1", "train", "images/1.png", "No pneumothorax.", view="AP")
        >>> row.labels == NOT_MENTIONED, row.rejection
        (True, '')
    """

    id: str
    patient_id: str
    split: Split
    image: str
    report: str
    view: str = ""
    labels: Labels = NOT_MENTIONED
    rejection: str = ""
    question: str = ""
    answer: str = ""
    answer_type: str = ""
    question_type: str = ""
    organ: str = ""


@dataclass(frozen=True)
class CorpusInfo:
    """What ``corpus.json`` says.

    Attributes:
        source: name of the dataset.
        credentialed: True if text and images may not be shared.
        image_size: side of the square images in pixels.
        labelled: the findings that the corpus labels; the others are unknown, not negative.
        splits: pairs of each split.
        rejected: number of rows set aside.
        fingerprint: SHA-256 over all shards.
        schema_version: version of the corpus form.
        cut_margins: whether margins were cut off the images.

    Example:
        >>> info = CorpusInfo("my hospital", credentialed=True, image_size=512, labelled=["Edema"])
        >>> info.schema_version, info.splits
        (2, {})
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
            FileNotFoundError: if the folder is no corpus, or an unfinished one.
            ValueError: if it was written by another version of the library.
        """
        path = folder / "corpus.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no corpus: it has no corpus.json (its preparation has not finished)")
        return cls.parse(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> Self:
        """Read the content of a ``corpus.json`` that came from ``origin``, which messages name.

        Raises:
            ValueError: if it was written by another version of the library.
        """
        values = json.loads(text)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{origin} has schema version {values.get('schema_version')}, not {SCHEMA_VERSION}: prepare it again"
            )
        # Early corpora do not say whether margins were cut: theirs were not.
        return cls(**{"cut_margins": False} | values)


def parse_labels(cells: Sequence[str]) -> Labels:
    """Read the labels of one row of a table, as the CheXpert labeler writes them.

    Args:
        cells: for each of ``FINDINGS`` ``1`` positive, ``0`` negative, ``-1`` uncertain or an empty string (not
            mentioned); ``1.0`` is ``1``.

    Raises:
        ValueError: for the first cell that is anything else.

    Example:
        >>> parse_labels(["", "1.0", "-1", "0"] + [""] * 10)[:4]
        (None, 1, -1, 0)
    """
    labels = []
    for finding, cell in zip(FINDINGS, cells, strict=True):
        value = cell.removesuffix(".0")
        if value not in _LABELS:
            raise ValueError(f"{finding} must be 1, 0, -1 or blank, not {value!r}")
        labels.append(_LABELS[value])
    return tuple(labels)


def arrow_schema() -> Any:
    """The columns of a shard, as a ``pyarrow.Schema``.

    Example:
        >>> arrow_schema().field("labels").type
        FixedSizeListType(fixed_size_list<item: int8>[14])
    """
    import pyarrow as pa

    texts = [(name, pa.string()) for name in TEXT_COLUMNS]
    return pa.schema([*texts, ("image", pa.binary()), ("labels", pa.list_(pa.int8(), len(FINDINGS)))])
