"""What a summary counts, against counts by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.preparation.summary import Count, Summary, finish, read_summary

EDEMA = FINDINGS.index("Edema")


def labels_of(edema: int | None) -> tuple[int | None, ...]:
    return tuple(edema if position == EDEMA else None for position in range(len(FINDINGS)))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five rows; the test row has the image, the patient and (but for case and spaces) the text of training rows."""
    for grey in (50, 100, 150):
        Image.fromarray(np.full((32, 32), grey, np.uint8)).save(tmp_path / f"{grey}.png")
    table: Sequence[tuple[str, Split, int, str, str, int | None, str]] = [
        ("p1", "train", 50, "One two three.", "AP", 1, ""),
        ("p1", "train", 100, "One.", "PA", 0, ""),
        ("p2", "train", 150, "One two.", "AP", -1, ""),
        ("p2", "test", 50, "one  TWO.", "", None, ""),
        ("p3", "val", 0, "Text.", "AP", None, ""),
        ("p4", "train", 50, "", "AP", None, "the text is empty"),
    ]
    rows = [
        Row(str(number), patient, split, str(tmp_path / f"{grey}.png"), text, view, labels_of(edema), rejection)
        for number, (patient, split, grey, text, view, edema, rejection) in enumerate(table)
    ]
    write_corpus(tmp_path / "corpus", rows, CorpusInfo("a test", False, 32, ["Edema"]))
    return tmp_path / "corpus"


def test_counts(corpus: Path) -> None:
    summary = read_summary(corpus, [Count("things", 3, 4), Count("others", 5)])
    assert summary.views == {"train": {"AP": 2, "PA": 1}, "test": {"": 1}}
    assert summary.rows == {"train": 3, "test": 1}
    assert summary.patients == {"train": 2, "test": 1}
    assert summary.labels == {
        "train": {"Edema": {"positive": 1, "negative": 1, "uncertain": 1, "not mentioned": 0}},
        "test": {"Edema": {"positive": 0, "negative": 0, "uncertain": 0, "not mentioned": 1}},
    }
    assert summary.words["train"] == {"shortest": 1, "median": 2, "mean": 2, "longest": 3}
    assert summary.rejected == {"no such file": 1, "the text is empty": 1}
    assert summary.shared == {"test": {"patients": 1, "images": 1, "texts": 1}}


def test_lines_tell_it_all(corpus: Path) -> None:
    lines = finish(corpus, [Count("things", 3, 4), Count("others", 5)]).lines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    for part in (
        "train 3 2 AP 2, PA 1",
        "test 1 1 not known 1",
        "Edema 33.3 % / 33.3 % / 33.3 %",
        "Fracture not labelled not labelled",
        "things 3 4 DIFFERS",
        "others 5\n",
        "test shares with train: 1 patients; 1 rows have an image and 1 rows a text that is in train too",
        "set aside: 2\n1 no such file",
    ):
        assert part in text
    assert "credentialed" not in text


def test_summary_is_written_beside_the_corpus_and_read_again(corpus: Path) -> None:
    summary = finish(corpus, [Count("things", 3, 4)])
    assert Summary.read(corpus) == summary == read_summary(corpus, summary.counts)
    assert finish(corpus).counts == ()


def test_summary_of_version_0_1_is_read(corpus: Path) -> None:
    summary = finish(corpus, [Count("things", 3, 4)])
    path = corpus / "summary.json"
    path.write_text(path.read_text().replace('"counts"', '"figures"'))
    assert Summary.read(corpus) == summary


def test_questions_are_counted_with_their_answers(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(tmp_path / "a.png")
    rows = [
        Row("1", "p", "train", str(tmp_path / "a.png"), "", question="Is it big?", answer="yes"),
        Row("2", "p", "test", str(tmp_path / "a.png"), "", question="Is it big?", answer="no"),
        Row("3", "p", "test", str(tmp_path / "a.png"), "", question="is it big?", answer="yes"),
    ]
    write_corpus(tmp_path / "corpus", rows, CorpusInfo("vqa", False, 32, []))
    summary = read_summary(tmp_path / "corpus")
    assert summary.words["train"]["longest"] == 4
    assert summary.shared["test"] == {"patients": 1, "images": 2, "texts": 1}
    assert summary.labels == {"train": {}, "test": {}}
    assert "positive" not in "\n".join(summary.lines())
