"""A user's own table, prepared as a corpus of its own."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvill_pl import PairsDataModule
from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusExamples, CorpusInfo
from medvill_pl.preparation.pairs import prepare_pairs

MakePairs = Callable[..., Path]
EDEMA = FINDINGS.index("Edema")
COLUMNS: dict[str, Any] = {"patient_column": "patient", "image_size": 32}


def without_labels(table: Path) -> Path:
    with open(table, newline="", encoding="utf-8") as file:
        rows = [{name: row[name] for name in ("image", "report", "patient")} for row in csv.DictReader(file)]
    path = table.with_name("plain.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_prepared_table_is_what_the_data_module_reads(make_pairs: MakePairs, tmp_path: Path) -> None:
    summary = prepare_pairs(make_pairs(12), tmp_path / "corpus", **COLUMNS)
    data = PairsDataModule(str(tmp_path / "corpus"), tokenizer="synthetic", image_size=32, batch_size=4, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert (data.name, data.is_credentialed) == ("pairs", False)
    assert len(data.datasets["train"]) == summary.rows["train"]
    assert sum(summary.rows.values()) == 12


def test_texts_are_labelled_where_the_table_has_no_labels(make_pairs: MakePairs, tmp_path: Path) -> None:
    table = without_labels(make_pairs(12))
    prepare_pairs(table, tmp_path / "labelled", **COLUMNS)
    examples = CorpusExamples(tmp_path / "labelled", "train", 32)
    expected = [1.0 if report.startswith("Mild") else 0.0 for report in examples.reports]
    assert examples.labels[:, EDEMA].tolist() == expected
    assert examples.labelled == list(FINDINGS)
    prepare_pairs(table, tmp_path / "plain", label=False, **COLUMNS)
    assert CorpusInfo.read(tmp_path / "plain").labelled == []
    assert np.isnan(CorpusExamples(tmp_path / "plain", "train", 32).labels).all()


def test_labels_of_the_table_are_kept(make_pairs: MakePairs, tmp_path: Path) -> None:
    prepare_pairs(make_pairs(12), tmp_path / "corpus", **COLUMNS)
    assert CorpusInfo.read(tmp_path / "corpus").labelled == ["Cardiomegaly", "Edema"]


def test_mark_of_a_prepared_table_is_kept(make_pairs: MakePairs, tmp_path: Path) -> None:
    prepare_pairs(make_pairs(12), tmp_path / "corpus", is_credentialed=True, **COLUMNS)
    assert PairsDataModule(str(tmp_path / "corpus"), tokenizer="synthetic").is_credentialed is True


def test_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        PairsDataModule(str(tmp_path), tokenizer="synthetic")
    with pytest.raises(FileNotFoundError, match="no such table"):
        prepare_pairs(tmp_path, tmp_path / "corpus")
