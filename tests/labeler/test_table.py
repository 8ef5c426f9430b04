"""Tests of `medvill label`: columns, refusals, evidence, plugged-in labelers."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl import FINDINGS, labeler
from medvill_pl.cli import main


class EdemaEverywhere:
    """Stands for a neural labeler."""

    name = "labeler of a test"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        labels = np.full((len(texts), 14), np.nan, np.float32)
        labels[:, FINDINGS.index("Edema")] = 1
        return labels


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Test modules have no import path of their own.
    monkeypatch.setattr(labeler, "EdemaEverywhere", EdemaEverywhere, raising=False)
    path = tmp_path / "reports.csv"
    path.write_text('study,text\ns1,"Small effusion, no edema.\nClear."\ns2,\n', encoding="utf-8")
    return path


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_columns_are_kept_and_labels_added(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(table), "--column", "text", "--output", "out.csv"]) == 0
    message = capsys.readouterr().out
    assert message.splitlines()[-2:] == [
        "out.csv has the labels of 2 reports by the rule-based CheXpert labeler",
        "empty texts: 1",
    ]
    first, second = rows_of("out.csv")
    assert list(first) == ["study", "text", *FINDINGS]
    assert (first["study"], first["text"]) == ("s1", "Small effusion, no edema.\nClear.")
    assert (first["Pleural Effusion"], first["Edema"], first["Fracture"], first["No Finding"]) == ("1", "0", "", "")
    assert [second[finding] for finding in FINDINGS] == ["1", *[""] * 13]


def test_evidence_is_a_column_of_json(table: Path) -> None:
    assert main(["label", str(table), "--column", "text", "--output", "out.csv", "--explain"]) == 0
    evidence = json.loads(rows_of("out.csv")[0]["evidence"])
    assert evidence[0] == {
        "finding": "Pleural Effusion",
        "state": 1,
        "phrase": "effusion",
        "sentence": "Small effusion, no edema.",
        "rule": "affirmed",
    }


def test_another_labeler_is_plugged_in(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--column", "text", "--output", "out.csv", "--labeler", "medvill_pl.labeler.EdemaEverywhere"]
    assert main(["label", str(table), *options, "--explain"]) == 1
    assert "the labeler of a test does not explain its labels" in capsys.readouterr().err
    assert main(["label", str(table), *options]) == 0
    assert "by the labeler of a test" in capsys.readouterr().out
    assert [row["Edema"] for row in rows_of("out.csv")] == ["1", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "report", "--output", "out.csv"], "has no column 'report'; it has study, text"),
        (["--column", "text", "--output", "out.tsv"], "out.tsv must end in .csv"),
        (["--column", "text", "--output", "reports.csv"], "reports.csv is there already"),
        (["--column", "text", "--output", "gone/out.csv"], "no such folder: gone"),
        (["--column", "text", "--output", "out.csv", "--labeler", "nowhere.X"], "no labeler can be made"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    table: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table.read_bytes()
    assert main(["label", str(table), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert table.read_bytes() == before
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("text,Edema\nclear,1\n", "has a column 'Edema' already"), ("text\nclear,1\n", "more cells than its header")],
)
def test_table_that_cannot_take_the_labels_is_refused(
    table: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(content, encoding="utf-8")
    assert main(["label", str(table), "--column", "text", "--output", "out.csv"]) == 1
    assert message in capsys.readouterr().err
