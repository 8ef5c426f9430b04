"""Open-I in its own layout, packed and unpacked."""

import csv
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusInfo
from medvill_pl.preparation.open_i import (
    check_open_i,
    find_open_i,
    prepare_open_i,
    read_open_i_reports,
    read_open_i_statistics,
)
from medvill_pl.preparation.open_i_views import frontal_images, read_views

Write = Callable[..., Path]
EDEMA, CARDIOMEGALY, PNEUMOTHORAX = (FINDINGS.index(name) for name in ("Edema", "Cardiomegaly", "Pneumothorax"))


def rows_of(corpus: Path) -> dict[str, dict[str, Any]]:
    return {
        row["id"]: row | {"split": path.name.split("-")[0]}
        for path in sorted(corpus.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def rejected_of(corpus: Path) -> dict[str, str]:
    with open(corpus / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def test_frontal_image_text_and_labels_of_each_report(write_open_i: Write, tmp_path: Path) -> None:
    summary = prepare_open_i(write_open_i(tmp_path / "raw", 20), tmp_path / "corpus", image_size=32)
    rows = rows_of(tmp_path / "corpus")
    assert sorted(rows) == sorted(f"CXR{number}_IM-{number:04d}-1001" for number in range(1, 21))
    one, two, three = (rows[f"CXR{number}_IM-{number:04d}-1001"] for number in (1, 2, 3))
    assert (one["report"], one["patient_id"]) == ("There is cardiomegaly on film 1. No pneumothorax.", "CXR1")
    assert two["report"] == "Clear lungs."
    assert (one["labels"][CARDIOMEGALY], one["labels"][PNEUMOTHORAX]) == (1, 0)
    assert [row["view"] for row in (one, two, three)] == ["AP", "frontal", "PA"]
    info = CorpusInfo.read(tmp_path / "corpus")
    assert (info.source, info.credentialed, info.labelled) == ("open-i", False, list(FINDINGS))
    # 710 and 354 of 3,547 are 20.02 % and 9.98 %: of 20 reports 5 and 2, since a split is filled up to its share.
    assert summary.rows == {"train": 13, "val": 5, "test": 2}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".images")]
    assert {count.name: count.differs for count in summary.counts[:3]} == {
        "reports": True,
        "reports with images": True,
        "images": True,
    }


def test_archives_and_folders_give_the_same_corpus(write_open_i: Write, tmp_path: Path) -> None:
    packed = prepare_open_i(write_open_i(tmp_path / "packed", 6), tmp_path / "one", image_size=32)
    unpacked = prepare_open_i(
        write_open_i(tmp_path / "unpacked", 6, packed=False), tmp_path / "two", image_size=32, workers=3
    )
    assert packed == unpacked
    for path in (tmp_path / "one").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_preparing_again_from_archives_makes_no_shard_anew(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 6)
    first = prepare_open_i(raw, tmp_path / "corpus", image_size=32)
    stamps = {path: path.stat().st_ino for path in (tmp_path / "corpus").glob("*.parquet")}
    assert prepare_open_i(raw, tmp_path / "corpus", image_size=32) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "corpus").glob("*.parquet")} == stamps


def test_all_frontal_images(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 3)
    table = tmp_path / "indiana_projections.csv"
    lines = [f"{n},{n}_IM-{n:04d}-{series}001.dcm.png,Frontal" for n in (1, 2, 3) for series in (1, 2)]
    table.write_text("\n".join(["uid,filename,projection", *lines, "9,9_IM-0009-1001.dcm.png,Lateral"]))
    prepare_open_i(raw, tmp_path / "corpus", view_table=table, one_image=False, image_size=32)
    rows = rows_of(tmp_path / "corpus")
    assert len(rows) == 6
    assert {row["view"] for row in rows.values()} == {"frontal"}
    assert read_views(table)["CXR9_IM-0009-1001"] == "Lateral"


def test_labels_may_come_from_mesh(write_open_i: Write, tmp_path: Path) -> None:
    prepare_open_i(write_open_i(tmp_path / "raw", 4), tmp_path / "corpus", labels="mesh", image_size=32)
    labels = {row["patient_id"]: row["labels"] for row in rows_of(tmp_path / "corpus").values()}
    assert labels["CXR1"][CARDIOMEGALY] == 1
    assert labels["CXR1"][PNEUMOTHORAX] is None
    assert labels["CXR2"][FINDINGS.index("No Finding")] == 1


def test_split_file(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 4)
    (tmp_path / "split.csv").write_text("uid,split\nCXR1,train\n2,validate\nCXR3,test\n")
    summary = prepare_open_i(raw, tmp_path / "corpus", split_file=tmp_path / "split.csv", image_size=32)
    assert {row["patient_id"]: row["split"] for row in rows_of(tmp_path / "corpus").values()} == {
        "CXR1": "train",
        "CXR2": "val",
        "CXR3": "test",
    }
    assert summary.rejected == {"the split file does not name the report": 1}
    for lines, message in (
        ("CXR1,dev2", "the split of CXR1 is 'dev2'"),
        ("1,train\nCXR1,test", "puts CXR1 into two splits"),
    ):
        (tmp_path / "split.csv").write_text(f"uid,split\n{lines}\n")
        with pytest.raises(ValueError, match=message):
            prepare_open_i(raw, tmp_path / "corpus", split_file=tmp_path / "split.csv", image_size=32)


def test_seed_decides_the_split(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 20)
    splits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_open_i(raw, tmp_path / name, seed=seed, image_size=32)
        splits.append({row["id"]: row["split"] for row in rows_of(tmp_path / name).values()})
    assert splits[0] == splits[1] != splits[2]


def test_what_cannot_be_used_is_set_aside(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 6, packed=False)
    xml = (raw / "ecgen-radiology/5.xml").read_text()
    (raw / "ecgen-radiology/1.xml").write_text("<eCitation>")
    (raw / "NLMCXR_png/CXR2_IM-0002-1001.png").unlink()
    (raw / "ecgen-radiology/3.xml").write_text(
        xml.replace("CXR5", "CXR3").replace("CXR3_IM-0005-1001", "CXR3_IM-0005-3001")
    )
    (raw / "ecgen-radiology/4.xml").write_text("<x><uId id='CXR4'/></x>")
    (raw / "ecgen-radiology/7.xml").write_text(xml)
    (raw / "ecgen-radiology/8.xml").write_text('<x><uId id="CXR8"/><parentImage id="CXR8_IM-1-1001"/></x>')
    summary = prepare_open_i(raw, tmp_path / "corpus", image_size=32)
    assert sorted(rows_of(tmp_path / "corpus")) == ["CXR5_IM-0005-1001", "CXR6_IM-0006-1001"]
    reasons = rejected_of(tmp_path / "corpus")
    assert "not a readable XML file" in reasons["1.xml"]
    assert "no such file" in reasons["CXR2_IM-0002-1001"]
    assert reasons["CXR3"] == "the report has no frontal image"
    assert reasons["CXR4"] == "the report has no image"
    assert reasons["7.xml"] == "the report CXR5 occurs twice"
    assert reasons["CXR8_IM-1-1001"] == "the report has neither findings nor an impression"
    assert sum(summary.rejected.values()) == 6


def test_reports_alone(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 20, with_images=False)
    with pytest.raises(FileNotFoundError, match=r"has no NLMCXR_png\.tgz .*: get it from https://openi\.nlm\.nih\.gov"):
        check_open_i(raw)
    check_open_i(raw, reports_only=True)
    summary = read_open_i_statistics(raw, tmp_path / "texts")
    assert summary.rows == {"train": 13, "val": 5, "test": 2}
    assert sum(states["Cardiomegaly"]["positive"] for states in summary.labels.values()) == 10
    with open(tmp_path / "texts" / "reports.csv", newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 20
    assert (rows["CXR1"]["Cardiomegaly"], rows["CXR1"]["Pneumothorax"], rows["CXR1"]["Edema"]) == ("1", "0", "")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").touch()
    with pytest.raises(FileExistsError, match="holds a corpus: choose another folder"):
        read_open_i_statistics(raw, tmp_path / "corpus")
    # Every other report has the same text.
    assert summary.shared["test"]["texts"] <= summary.rows["test"]


def test_missing_parts_are_named(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 2)
    assert find_open_i(raw).views == raw / "nlmcxr_dicom_metadata.csv.gz"
    with pytest.raises(FileNotFoundError, match=r"no such table of views: .*none\.csv"):
        check_open_i(raw, view_table=tmp_path / "none.csv")
    (raw / "NLMCXR_reports.tgz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no NLMCXR_reports\.tgz .*: get it from https://openi"):
        check_open_i(raw)
    (raw / "ecgen-radiology").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no XML file"):
        check_open_i(raw)


def test_table_of_views_without_columns_is_refused(write_open_i: Write, tmp_path: Path) -> None:
    (tmp_path / "views.csv").write_text("image,view\na,b\n")
    with pytest.raises(ValueError, match=r"views\.csv cannot be read as a table: it has no column 'imageid'"):
        check_open_i(write_open_i(tmp_path / "raw", 2), view_table=tmp_path / "views.csv")


def test_archive_that_leaves_its_folder_is_refused(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 2)
    with tarfile.open(raw / "NLMCXR_png.tgz", "w:gz") as tar:
        (tmp_path / "x.png").write_bytes(b"x")
        tar.add(tmp_path / "x.png", "../CXR1_IM-0001-1001.png")
    with pytest.raises(ValueError, match=r"NLMCXR_png\.tgz is not to be trusted: the path .* leaves the data folder"):
        prepare_open_i(raw, tmp_path / "corpus", image_size=32)
    assert not list(tmp_path.rglob("CXR1_IM-0001-1001.png"))


def test_real_reports_with_few_images(shared_data: Path, tmp_path: Path) -> None:
    # Enough of the real set for seconds: the reports of the images that are there, and a hundred more.
    reports, _ = read_open_i_reports(shared_data / "openi_reports/NLMCXR_reports.tgz")
    views = read_views(shared_data / "openi_reports/nlmcxr_dicom_metadata.csv.gz")
    chosen = {report.uid: frontal_images(report, views) for report in reports}
    assert {uid: images[0] for uid, images in chosen.items() if uid in ("CXR3", "CXR7", "CXR1900")} == {
        "CXR3": "CXR3_IM-1384-1001",
        "CXR7": "CXR7_IM-2263-1001",
        "CXR1900": "CXR1900_IM-0584-1001",
    }
    assert sum(bool(images) for images in chosen.values()) == 3657
    texts = [report for report in reports if report.findings or report.impression]
    assert len(texts) == 3927
    assert all("XXXX" not in report.text for report in texts)
