"""Tables with the labels of their reports."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medvill_pl.batch import FINDINGS
from medvill_pl.files import write_atomically
from medvill_pl.labeler.base import Labeler, check_labels

EVIDENCE = "evidence"
_CHUNK = 256


@runtime_checkable
class _Explainer(Protocol):
    def explain(self, text: str) -> Sequence[Any]: ...


def label_table(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[str], labeler: Labeler, output: Path, explain: bool = False
) -> None:
    """Write a table with a column more for each finding: 1, 0, -1 or blank, as the original labeler does.

    Args:
        rows: the table; its columns are kept.
        texts: the report of each row.
        labeler: what labels them.
        output: the .csv to write, UTF-8.
        explain: True adds a column ``evidence``: a JSON list of finding, state, phrase, sentence and rule.

    Raises:
        FileNotFoundError: if the folder of the output is missing.
        ValueError: if the output is no .csv, a column is there already, or the labeler does not explain.

    Example:
        >>> import tempfile
        >>> from medvill_pl.labeler.chexpert import CheXpertLabeler
        >>> rows = [{"study": "1", "report": "Mild edema."}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     output = Path(folder) / "labelled.csv"
        ...     label_table(rows, [row["report"] for row in rows], CheXpertLabeler(), output)
        ...     table = list(csv.DictReader(output.read_text().splitlines()))
        >>> table[0]["study"], table[0]["Edema"], table[0]["Fracture"]
        ('1', '1', '')
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    added = [*FINDINGS, *([EVIDENCE] if explain else [])]
    _check(columns, added, output)
    if explain and not isinstance(labeler, _Explainer):
        raise ValueError(f"the {labeler.name} does not explain its labels: leave out --explain")
    labels = _label(texts, labeler)
    file = io.StringIO()
    writer = csv.DictWriter(file, [*columns, *added], lineterminator="\n")
    writer.writeheader()
    for row, text, states in zip(rows, texts, labels, strict=True):
        cells = dict(zip(FINDINGS, map(_cell, states), strict=True))
        if isinstance(labeler, _Explainer) and explain:
            cells[EVIDENCE] = json.dumps([piece._asdict() for piece in labeler.explain(text)], ensure_ascii=False)
        writer.writerow({**row, **cells})
    write_atomically(output, file.getvalue().encode())


def _check(columns: Sequence[str], added: Sequence[str], output: Path) -> None:
    """Find what would go wrong before the work, not after it."""
    if output.suffix != ".csv":
        raise ValueError(f"{output} must end in .csv")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {output.parent}")
    if None in columns:
        raise ValueError("a row of the table has more cells than its header")
    if taken := [column for column in added if column in columns]:
        raise ValueError(f"the table has a column {taken[0]!r} already: rename it first")


def _label(texts: Sequence[str], labeler: Labeler) -> NDArray[np.float32]:
    """Label in chunks, so that progress is seen; a neural labeler finds batches in them."""
    starts = tqdm(range(0, len(texts), _CHUNK), desc="reports", unit_scale=_CHUNK, disable=None)
    chunks = [texts[start : start + _CHUNK] for start in starts]
    return np.concatenate([check_labels(labeler(chunk), len(chunk)) for chunk in chunks])


def _cell(state: np.float32) -> str:
    return "" if np.isnan(state) else str(int(state))
