"""A user's own table of images and texts, prepared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.pairs import PairsDataModule
from medvill_pl.labeler.base import Labeler
from medvill_pl.preparation.labels import label_texts
from medvill_pl.preparation.summary import Summary, finish


def read_pairs(table: Path, image_size: int = 512, **columns: Any) -> tuple[list[Row], CorpusInfo]:
    """Read and check a table without preparing anything.

    Args:
        table: a ``.csv``, ``.jsonl`` or ``.parquet`` file.
        image_size: side of the square images in pixels.
        columns: arguments of :class:`PairsDataModule` that name columns, the image root, fractions and the split seed.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it lacks a column or has a wrong split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder) / "pairs.jsonl"
        ...     _ = table.write_text('{"image": "1.png", "report": "Mild edema.", "patient": "Ann", "Edema": 1}')
        ...     rows, info = read_pairs(table, patient_column="patient")
        >>> rows[0].report, rows[0].patient_id, info.labelled
        ('Mild edema.', 'Ann', ['Edema'])
    """
    if not table.is_file():
        raise FileNotFoundError(f"no such table: {table}")
    return PairsDataModule(str(table), tokenizer="synthetic", image_size=image_size, **columns).read_rows()


def prepare_pairs(
    table: Path,
    output: Path,
    *,
    label: bool = True,
    labeler: Labeler | None = None,
    image_size: int = 512,
    cut_margins: bool = True,
    workers: int | None = None,
    **columns: Any,
) -> Summary:
    """Prepare a table of pairs; ``PairsDataModule(table=OUTPUT)`` then reads it.

    Args:
        table: see :func:`read_pairs`.
        output: folder of the corpus to write.
        label: label the texts where the table has no column of a finding; False leaves them unlabelled.
        labeler: what labels; by default the rule-based CheXpert labeler.
        image_size: side of the square images in pixels.
        cut_margins: cut bright and dark margins off the images.
        workers: how many images are worked on at once, by default one per core.
        columns: see :func:`read_pairs`.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it lacks a column, has a wrong split, or no row can be used.
        FileExistsError: if ``output`` holds something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     Image.new("L", (32, 32), 128).save(folder / "1.png")
        ...     _ = (folder / "pairs.jsonl").write_text('{"image": "1.png", "report": "Edema.", "patient": "Ann"}')
        ...     summary = prepare_pairs(
        ...         folder / "pairs.jsonl", folder / "corpus", image_size=32, patient_column="patient"
        ...     )
        >>> summary.rows, summary.labels["train"]["Edema"]["positive"]
        ({'train': 1}, 1)
    """
    rows, info = read_pairs(table, image_size, cut_margins=cut_margins, **columns)
    if label and not info.labelled:
        labels = label_texts([row.report for row in rows], labeler)
        rows = [replace(row, labels=states) for row, states in zip(rows, labels, strict=True)]
        info = replace(info, labelled=list(FINDINGS))
    write_corpus(output, rows, info, workers)
    return finish(output)
