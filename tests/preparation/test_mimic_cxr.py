"""MIMIC-CXR on generated trees in its own layout."""

import csv
import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medvill_pl import MIMICCXRDataModule
from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusInfo
from medvill_pl.preparation.mimic_cxr import check_mimic_cxr, find_mimic_cxr, prepare_mimic_cxr
from medvill_pl.preparation.summary import Summary

Write = Callable[..., None]
DICOM_A, DICOM_B = ("-".join([letter * 8] * 5) for letter in "ab")


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return [
        row | {"split": path.name.split("-")[0]}
        for path in sorted(corpus.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def rejected_of(corpus: Path) -> dict[str, str]:
    with open(corpus / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def change(path: Path, row: int, **cells: str) -> dict[str, str]:
    """Change cells of one row of a table; give the row as it was."""
    rows = read_table(path)
    before = dict(rows[row])
    rows[row] |= cells
    write_table(path, rows)
    return before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients: the first with a study of two AP images, the second with a PA and an AP image."""
    root = tmp_path / "mimic"
    studies = {("10000032", "50000001"): "train", ("11000099", "50000002"): "test"}
    radiographs = [("10000032", "50000001", DICOM_B, "AP"), ("10000032", "50000001", DICOM_A, "AP")]
    radiographs += [
        ("11000099", "50000002", DICOM_A.replace("a", "c"), "PA"),
        ("11000099", "50000002", DICOM_B.replace("b", "d"), "AP"),
    ]
    for index, (subject, study, dicom, _) in enumerate(radiographs):
        folder = root / f"files/p{subject[:2]}/p{subject}/s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), 50 * (index + 1), np.uint8)).save(folder / f"{dicom}.jpg", quality=100)
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as reports:
        for number, (subject, study) in enumerate(studies):
            text = f" FINAL REPORT\n FINDINGS:\n Effusion number {number} since ___.\n\n IMPRESSION:\n Effusion.\n"
            reports.writestr(f"files/p{subject[:2]}/p{subject}/s{study}.txt", text)
    names = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        [dict(zip(names, (dicom, subject, study, view), strict=True)) for subject, study, dicom, view in radiographs],
    )
    write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        [
            {"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": studies[subject, study]}
            for subject, study, dicom, _ in radiographs
        ],
    )
    # The publisher's columns are in the order of the alphabet.
    write_table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        [
            {"subject_id": subject, "study_id": study}
            | {
                name: {"Edema": "1.0", "Fracture": "0.0", "Pneumonia": "-1.0"}.get(name, "")
                for name in sorted(FINDINGS)
            }
            for subject, study in studies
        ],
    )
    return root


def test_a_study_gives_its_first_ap_image_with_text_labels_and_split(tree: Path, tmp_path: Path) -> None:
    summary = prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32)
    train, test = sorted(rows_of(tmp_path / "corpus"), key=lambda row: row["patient_id"])
    assert (train["id"], train["patient_id"], train["view"], train["split"]) == (DICOM_A, "10000032", "AP", "train")
    assert (test["id"], test["split"]) == (DICOM_B.replace("b", "d"), "test")
    assert train["report"] == "Effusion number 0 since."
    known = {"Edema": 1, "Fracture": 0, "Pneumonia": -1}
    assert train["labels"] == [known.get(finding) for finding in FINDINGS]
    info = CorpusInfo.read(tmp_path / "corpus")
    assert (info.source, info.credentialed, info.labelled) == ("mimic-cxr", True, list(FINDINGS))
    assert summary.rows == {"train": 1, "test": 1}
    assert MIMICCXRDataModule(str(tmp_path / "corpus"), tokenizer="synthetic").is_credentialed


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"view": "PA"}, ["cccc"]),
        ({"view": "frontal"}, ["aaaa", "cccc"]),
        ({"one_image": False}, ["aaaa", "bbbb", "dddd"]),
        ({"view": "frontal", "one_image": False}, ["aaaa", "bbbb", "cccc", "dddd"]),
    ],
)
def test_views_and_images_are_a_choice(options: dict[str, Any], ids: list[str], tree: Path, tmp_path: Path) -> None:
    prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32, **options)
    assert sorted(row["id"][:4] for row in rows_of(tmp_path / "corpus")) == ids


def test_reports_may_be_unpacked_beside_the_images_or_apart(tree: Path, tmp_path: Path) -> None:
    whole = prepare_mimic_cxr(tree, tmp_path / "zipped", image_size=32)
    with zipfile.ZipFile(tree / "mimic-cxr-reports.zip") as reports:
        reports.extractall(tree / "mimic-cxr-reports")
        reports.extractall(tmp_path / "beside")
    (tree / "mimic-cxr-reports.zip").unlink()
    assert find_mimic_cxr(tree).reports == tree / "mimic-cxr-reports"
    assert prepare_mimic_cxr(tree, tmp_path / "apart", image_size=32) == whole
    for text in (tmp_path / "beside").rglob("*.txt"):
        text.rename(tree / text.relative_to(tmp_path / "beside"))
    (tree / "mimic-cxr-reports").rename(tmp_path / "gone")
    assert find_mimic_cxr(tree).reports == tree
    assert prepare_mimic_cxr(tree, tmp_path / "beside it", image_size=32) == whole


TABLE = "mimic-cxr-2.0.0-{}.csv.gz"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (TABLE.format("metadata"), "physionet.org/content/mimic-cxr-jpg/"),
        (TABLE.format("split"), "physionet.org/content/mimic-cxr-jpg/"),
        (TABLE.format("chexpert"), "physionet.org/content/mimic-cxr-jpg/"),
        ("files", "physionet.org/content/mimic-cxr-jpg/"),
        ("mimic-cxr-reports.zip", "physionet.org/content/mimic-cxr/"),
    ],
)
def test_missing_part_is_named_with_its_publisher(name: str, message: str, tree: Path, tmp_path: Path) -> None:
    (tree / name).rename(tmp_path / "elsewhere")
    for action in (check_mimic_cxr, lambda source: prepare_mimic_cxr(source, tmp_path / "corpus")):
        with pytest.raises(FileNotFoundError, match=f"has no {name}.*: get it from https://{message}"):
            action(tree)
    assert not (tmp_path / "corpus").exists()


def test_dry_run_looks_at_the_first_image_and_report(tree: Path) -> None:
    assert check_mimic_cxr(tree).images == tree / "files"
    image = tree / f"files/p10/p10000032/s50000001/{DICOM_A}.jpg"
    image.rename(image.with_suffix(".away"))
    with pytest.raises(FileNotFoundError, match=rf"no image: .*{DICOM_A}\.jpg"):
        check_mimic_cxr(tree)


def test_rows_without_image_report_labels_or_split_are_set_aside(tree: Path, tmp_path: Path) -> None:
    (tree / f"files/p10/p10000032/s50000001/{DICOM_A}.jpg").unlink()
    with zipfile.ZipFile(tree / "mimic-cxr-reports.zip") as old:
        kept = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(tree / "mimic-cxr-reports.zip", "w") as new:
        new.writestr(kept[0][0], kept[0][1])
    summary = prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32, one_image=False)
    assert [row["id"] for row in rows_of(tmp_path / "corpus")] == [DICOM_B]
    reasons = rejected_of(tmp_path / "corpus")
    assert "no such file" in reasons[DICOM_A]
    assert "no report: files/p11/p11000099/s50000002.txt" in reasons[DICOM_B.replace("b", "d")]
    assert summary.rejected == {"no such file": 1, "no report": 1}

    change(tree / TABLE.format("chexpert"), 0, study_id="1")
    rows = read_table(tree / TABLE.format("split"))
    write_table(tree / TABLE.format("split"), rows[1:])
    with pytest.raises(ValueError, match="no row of mimic-cxr can be used"):
        prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32, one_image=False)
    reasons = rejected_of(tmp_path / "corpus")
    assert reasons[DICOM_A] == "the study has no labels"
    assert reasons[DICOM_B] == "the image is in no split"


@pytest.mark.parametrize(
    "cells",
    [
        {"dicom_id": "../../../secret"},
        {"subject_id": "../../x"},
        {"study_id": "5/../../.."},
        {"subject_id": ""},
        {"dicom_id": ""},
    ],
    ids=repr,
)
def test_identifiers_that_leave_the_folder_are_refused(cells: dict[str, str], tree: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes((tree / f"files/p10/p10000032/s50000001/{DICOM_A}.jpg").read_bytes())
    for name in ("metadata", "split"):
        change(tree / TABLE.format(name), 3, **cells)
    change(tree / TABLE.format("chexpert"), 1, **{name: cell for name, cell in cells.items() if name != "dicom_id"})
    prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32)
    assert [row["id"] for row in rows_of(tmp_path / "corpus")] == [DICOM_A]
    ((_, reason),) = rejected_of(tmp_path / "corpus").items()
    assert reason.startswith("wrong identifiers: ")


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("split", {"split": "dev"}, "the split of .* is 'dev'"),
        ("chexpert", {"Edema": "2.0"}, "study 50000001: Edema must be 1, 0, -1 or blank, not '2'"),
    ],
)
def test_unknown_values_stop_the_run(
    name: str, cells: dict[str, str], message: str, tree: Path, tmp_path: Path
) -> None:
    change(tree / TABLE.format(name), 1 if name == "split" else 0, **cells)
    with pytest.raises(ValueError, match=message):
        prepare_mimic_cxr(tree, tmp_path / "corpus")


def test_view_without_images_is_said(tree: Path) -> None:
    rows = read_table(tree / TABLE.format("metadata"))
    write_table(tree / TABLE.format("metadata"), [row for row in rows if row["ViewPosition"] == "AP"])
    with pytest.raises(ValueError, match="has no PA image"):
        check_mimic_cxr(tree, "PA")


def test_what_test_shares_with_training_is_counted(tree: Path, tmp_path: Path) -> None:
    for name in ("metadata", "split"):
        change(tree / TABLE.format(name), 3, subject_id="10000032")
    change(tree / TABLE.format("chexpert"), 1, subject_id="10000032")
    old, new = (tree / f"files/p1{part}" for part in ("1/p11000099", "0/p10000032"))
    (old / "s50000002").rename(new / "s50000002")
    (new / "s50000002" / f"{DICOM_B.replace('b', 'd')}.jpg").write_bytes(
        (new / f"s50000001/{DICOM_A}.jpg").read_bytes()
    )
    with zipfile.ZipFile(tree / "mimic-cxr-reports.zip", "w") as reports:
        for study in ("50000001", "50000002"):
            reports.writestr(f"files/p10/p10000032/s{study}.txt", "IMPRESSION: The same.")
    summary = prepare_mimic_cxr(tree, tmp_path / "corpus", image_size=32)
    assert summary.shared == {"test": {"patients": 1, "images": 1, "texts": 1}}
    message = "\n".join(summary.lines())
    assert "test shares with train: 1 patients; 1 rows have an image and 1 rows a text that is in train too" in message


def test_200_studies_give_the_same_bytes_whatever_the_workers(write_mimic_cxr: Write, tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path / "mimic", 200, side=32)
    first = prepare_mimic_cxr(tmp_path / "mimic", tmp_path / "one", image_size=32, workers=1)
    again = prepare_mimic_cxr(tmp_path / "mimic", tmp_path / "three", image_size=32, workers=3)
    assert first == again
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "three").iterdir()
    }
    assert Summary.read(tmp_path / "one") == first
    rows = rows_of(tmp_path / "one")
    patients = {split: {row["patient_id"] for row in rows if row["split"] == split} for split in first.rows}
    assert not patients["train"] & patients["test"]
    assert {row["view"] for row in rows} == {"AP"}
    # Counted again from the tables, without the library.
    metadata = read_table(tmp_path / "mimic" / TABLE.format("metadata"))
    studies = {row["study_id"] for row in metadata if row["ViewPosition"] == "AP"}
    assert len(rows) == len(studies)
    assert all(
        row["id"]
        == min(one["dicom_id"] for one in metadata if one["study_id"] == study and one["ViewPosition"] == "AP")
        for row in rows
        for study in [next(one["study_id"] for one in metadata if one["dicom_id"] == row["id"])]
    )
    values = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert sum(values["labels"]["train"]["Edema"].values()) == first.rows["train"]


@pytest.mark.slow
def test_benchmark_prints_time_and_memory() -> None:
    script = Path(__file__).parents[2] / "benchmarks/mimic_cxr_scale.py"
    command = [sys.executable, str(script), "--studies", "20", "--side", "32", "--image-size", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    header, figures = done.stdout.splitlines()
    assert header.split()[:2] == ["studies", "rows"]
    studies, rows, _, _, start, peak = (float(cell) for cell in figures.split())
    assert studies == 20
    assert rows > 0
    assert peak >= start > 0
