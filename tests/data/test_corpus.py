"""Writing and reading the corpus form."""

import csv
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus import CorpusExamples, CorpusInfo, Row, write_corpus, writer

SIZE = 32
INFO = CorpusInfo("a test", False, SIZE, ["Edema"])
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def pixels_of(number: int) -> NDArray[np.uint8]:
    """What the image of a row shows; as large as the corpus' images, so it is to be kept as it is."""
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def labels_of(number: int) -> tuple[int | None, ...]:
    return tuple((1, 0, -1, None)[(number + position) % 4] for position in range(len(FINDINGS)))


def make_row(folder: Path, number: int, split: Split) -> Row:
    path = folder / f"{number}.png"
    Image.fromarray(pixels_of(number)).save(path)
    report = f"Report {number}, with “quotes”,\na second line and naïve words."
    return Row(f"row {number}", f"patient {number // 2}", split, str(path), report, "AP", labels_of(number))


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Rows 0..6 of training, 7..9 of validation, 10..11 of test."""
    folder = tmp_path / "images"
    folder.mkdir()
    return [make_row(folder, number, SPLITS[(number >= 7) + (number >= 10)]) for number in range(12)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut corpora into shards of 3 rows, so that the rows above make 3 + 1 + 1."""
    monkeypatch.setattr(writer, "SHARD_ROWS", 3)


SHARDS = [
    "test-00000.parquet",
    "train-00000.parquet",
    "train-00001.parquet",
    "train-00002.parquet",
    "val-00000.parquet",
]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What differs where a file was written anew, even with the same content."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def rejected_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_interrupted(folder: Path, rows: Sequence[Row], info: CorpusInfo, after: int) -> None:
    """Write a corpus, and be interrupted when so many shards are made."""
    write, calls = writer._write_shard, iter(range(after))

    def write_or_stop(shard: Any, prepared: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        write(shard, prepared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_write_shard", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            write_corpus(folder, rows, info, workers=1)


OF_QUESTIONS = ("question", "answer", "answer_type", "question_type", "organ")


def test_form_on_disk(tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "deep" / "corpus"
    done = write_corpus(folder, rows, INFO)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(
        [*SHARDS, "corpus.json", "rejected.csv"]
    )
    tables = {name: pq.read_table(folder / name) for name in SHARDS}
    assert [len(tables[name]) for name in SHARDS] == [2, 3, 3, 1, 3]
    for table in tables.values():
        assert {field.name: field.type for field in table.schema} == {
            "id": pa.string(),
            "patient_id": pa.string(),
            "image": pa.binary(),
            "view": pa.string(),
            "report": pa.string(),
            **dict.fromkeys(OF_QUESTIONS, pa.string()),
            "labels": pa.list_(pa.int8(), 14),
        }
    in_order = [table for split in SPLITS for name, table in tables.items() if name.startswith(split)]
    written_rows = [written for table in in_order for written in table.to_pylist()]
    for number, (row, written) in enumerate(zip(rows, written_rows, strict=True)):
        png = written.pop("image")
        assert written == {
            "id": row.id,
            "patient_id": row.patient_id,
            "view": "AP",
            "report": row.report,
            **dict.fromkeys(OF_QUESTIONS, ""),
            "labels": list(labels_of(number)),
        }
        image = Image.open(pa.BufferReader(png))
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), pixels_of(number))
    said = json.loads((folder / "corpus.json").read_text())
    assert said == {
        "schema_version": 2,
        "source": "a test",
        "credentialed": False,
        "image_size": SIZE,
        "labelled": ["Edema"],
        "splits": {"train": 7, "val": 3, "test": 2},
        "rejected": 0,
        "fingerprint": done.fingerprint,
        "cut_margins": True,
    }
    assert len(bytes.fromhex(done.fingerprint)) == hashlib.sha256().digest_size
    assert done == CorpusInfo.read(folder) == CorpusInfo(**said)


def test_images_are_fitted_into_a_square(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 120), 200, np.uint8)).save(tmp_path / "wide.png")
    write_corpus(tmp_path / "corpus", [Row("a", "p", "train", str(tmp_path / "wide.png"), "Text.")], INFO)
    expected = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    expected[:, 8:24] = 200
    torch.testing.assert_close(CorpusExamples(tmp_path / "corpus", "train", SIZE).image(0), expected)


def test_the_mark_of_completeness_is_written_last(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, before = writer.write_atomically, set()

    def note_and_write(path: Path, content: bytes) -> None:
        if path.name == "corpus.json":
            before.update(contents(path.parent))
        write(path, content)

    monkeypatch.setattr(writer, "write_atomically", note_and_write)
    write_corpus(tmp_path / "corpus", rows, INFO)
    assert {*SHARDS, "rejected.csv"} <= before


def test_bytes_do_not_depend_on_workers(tmp_path: Path, rows: list[Row]) -> None:
    rows[4] = replace(rows[4], image="nowhere.png")
    one, four = (write_corpus(tmp_path / str(workers), rows, INFO, workers) for workers in (1, 4))
    assert one == four
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_two_preparations_at_once_do_the_work_once(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write_shard = writer._write_shard

    def count(shard: writer._Shard, prepared: Any) -> None:
        written.append(shard.path.name)
        write_shard(shard, prepared)

    monkeypatch.setattr(writer, "_write_shard", count)
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda _: write_corpus(tmp_path / "corpus", rows, INFO), range(2)))
    assert infos[0] == infos[1]
    assert sorted(written) == SHARDS


def test_unusable_rows_are_set_aside_with_the_reason(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows[0] = replace(rows[0], image=str(tmp_path / "missing, or so.png"))
    rows[4] = replace(rows[4], rejection="the text is empty")
    rows[8] = replace(rows[8], image=str(tmp_path / "broken.png"))
    done = write_corpus(tmp_path / "corpus", rows, INFO)
    assert (done.splits, done.rejected) == ({"train": 5, "val": 2, "test": 2}, 3)
    rejected = rejected_of(tmp_path / "corpus")
    assert [(row["id"], row["image"]) for row in rejected] == [(rows[n].id, rows[n].image) for n in (0, 4, 8)]
    assert "no such file" in rejected[0]["reason"]
    assert rejected[1]["reason"] == "the text is empty"
    assert "not a readable image" in rejected[2]["reason"]
    assert CorpusExamples(tmp_path / "corpus", "train", SIZE).ids == [f"row {n}" for n in (1, 2, 3, 5, 6)]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "a\0b.png"},
        {"image": "\ud800.png"},
        {"image": "x" * 5000},
        {"image": ""},
        {"report": "half a \ud83d surrogate pair"},
        {"id": "\udc80"},
    ],
    ids=repr,
)
def test_strange_rows_never_stop_the_rest(change: dict[str, str], tmp_path: Path, rows: list[Row]) -> None:
    rows[1] = replace(rows[1], **change)  # type: ignore[arg-type]
    done = write_corpus(tmp_path / "corpus", rows, INFO)
    assert (done.splits["train"], done.rejected) == (6, 1)
    assert len(rejected_of(tmp_path / "corpus")) == 1


@pytest.mark.parametrize("lost", [range(3), range(3, 6), range(6, 7)], ids=["first", "middle", "last"])
def test_shard_without_a_usable_row_is_read_over(lost: range, tmp_path: Path, rows: list[Row]) -> None:
    rows = [replace(row, image="nowhere.png") if number in lost else row for number, row in enumerate(rows)]
    write_corpus(tmp_path / "corpus", rows, INFO)
    examples = CorpusExamples(tmp_path / "corpus", "train", SIZE)
    kept = [number for number in range(7) if number not in lost]
    assert examples.ids == [f"row {number}" for number in kept]
    for index, number in enumerate(kept):
        np.testing.assert_array_equal(examples.image(index)[0].numpy(), pixels_of(number))


@pytest.mark.parametrize("reason", ["the text is empty", ""])
def test_no_usable_row_at_all_is_an_error_that_names_a_reason(reason: str, tmp_path: Path, rows: list[Row]) -> None:
    rows = [replace(row, rejection=reason, image="nowhere.png") for row in rows]
    for _ in range(2):  # the second time, all shards are there already
        with pytest.raises(ValueError, match=f"{reason or 'no such file'}.*rejected.csv"):
            write_corpus(tmp_path / "corpus", rows, INFO)
        assert not (tmp_path / "corpus" / "corpus.json").exists()
        assert len(rejected_of(tmp_path / "corpus")) == len(rows)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row of a test can be used"):
        write_corpus(tmp_path / "corpus", [], INFO)


@pytest.mark.parametrize("after", range(len(SHARDS)))
def test_interrupted_preparation_goes_on_where_it_stopped(after: int, tmp_path: Path, rows: list[Row]) -> None:
    rows[4] = replace(rows[4], image="nowhere.png")
    folder = tmp_path / "corpus"
    write_interrupted(folder, rows, INFO, after)
    with pytest.raises(FileNotFoundError, match=r"no corpus\.json"):
        CorpusExamples(folder, "train", SIZE)
    finished = {name: stamp for name, stamp in stamps(folder).items() if name in SHARDS}
    assert len(finished) == after
    done = write_corpus(folder, rows, INFO)
    assert stamps(folder).items() >= finished.items()
    whole = write_corpus(tmp_path / "whole", rows, INFO)
    assert done == whole
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("left", [".plan.999999.tmp", ".train-00001.parquet.999999.tmp"])
def test_half_written_files_of_a_killed_run_do_no_harm(left: str, tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "corpus"
    if "plan" in left:
        folder.mkdir()
    else:
        write_interrupted(folder, rows, INFO, 1)
    (folder / left).write_bytes(b"half of")
    write_corpus(folder, rows, INFO)
    write_corpus(tmp_path / "whole", rows, INFO)
    assert contents(folder) == contents(tmp_path / "whole")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failing_disk_is_no_fault_of_the_rows(tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "corpus"
    with largest_file(1000), pytest.raises(OSError, match="too large"):
        write_corpus(folder, rows, INFO)
    assert not {*SHARDS, "corpus.json"} & set(contents(folder))
    assert write_corpus(folder, rows, INFO) == write_corpus(tmp_path / "whole", rows, INFO)
    assert contents(folder) == contents(tmp_path / "whole")


PREPARE = """
import json, sys
from pathlib import Path
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus, writer

writer.SHARD_ROWS = 3
rows = [Row(**row) for row in json.loads(sys.argv[2])]
write_corpus(Path(sys.argv[1]), rows, CorpusInfo("a test", False, 256, []), workers=2)
"""


def wait_for(pattern: str, folder: Path, number: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until so many files are there."""
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < number:
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_preparation_leaves_no_corpus_that_looks_whole(tmp_path: Path) -> None:
    image, folder = tmp_path / "image.png", tmp_path / "corpus"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200), dtype=np.uint8)).save(image)
    rows = [Row(str(number), str(number), "train", str(image), f"Text {number}.") for number in range(60)]
    as_json = json.dumps([asdict(row) for row in rows])
    for number in (1, 6):  # killed twice, the second time in the middle of a resumed run
        process = subprocess.Popen([sys.executable, "-c", PREPARE, str(folder), as_json])
        wait_for("train-*.parquet", folder, number, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "corpus.json").exists()
        assert all(pq.read_table(path).num_rows == 3 for path in folder.glob("*.parquet"))
    finished = {name: stamp for name, stamp in stamps(folder).items() if name.endswith(".parquet")}
    assert 6 <= len(finished) < 20
    info = replace(INFO, image_size=256, labelled=[])
    assert write_corpus(folder, rows, info) == write_corpus(tmp_path / "whole", rows, info)
    assert stamps(folder).items() >= finished.items()
    assert contents(folder) == contents(tmp_path / "whole")


def test_preparing_again_writes_nothing(tmp_path: Path, rows: list[Row]) -> None:
    first = write_corpus(tmp_path / "corpus", rows, INFO)
    before = stamps(tmp_path / "corpus")
    assert write_corpus(tmp_path / "corpus", rows, INFO) == first
    assert stamps(tmp_path / "corpus") == before


def changed(what: str, rows: Sequence[Row]) -> tuple[list[Row], CorpusInfo]:
    """The rows and settings of a second preparation, which differs from the first in one respect."""
    rows = list(rows)
    if what == "report":
        rows[0] = replace(rows[0], report="Another text.")
    elif what == "labels":
        rows[0] = replace(rows[0], labels=(1,) * 14)
    elif what == "split":
        rows[0] = replace(rows[0], split="test")
    elif what == "fewer rows":
        rows = rows[5:]
    elif what == "image":
        Image.fromarray(255 - pixels_of(0)).save(rows[0].image)
    return rows, replace(INFO, image_size=16) if what == "image size" else INFO


@pytest.mark.parametrize("what", ["report", "labels", "split", "fewer rows", "image", "image size"])
def test_changed_inputs_are_prepared_anew(what: str, tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "corpus"
    first = write_corpus(folder, rows, INFO)
    CorpusExamples(folder, "train", SIZE)  # whatever reads it must not remember it
    rows, info = changed(what, rows)
    second = write_corpus(folder, rows, info)
    assert second.fingerprint != first.fingerprint
    assert second == write_corpus(tmp_path / "fresh", rows, info)
    assert contents(folder) == contents(tmp_path / "fresh")
    read, fresh = (CorpusExamples(path, "train", SIZE) for path in (folder, tmp_path / "fresh"))
    assert (read.ids, read.reports) == (fresh.ids, fresh.reports)
    np.testing.assert_array_equal(read.labels, fresh.labels)
    torch.testing.assert_close(read.image(0), fresh.image(0))


def test_old_corpus_does_not_pass_for_an_interrupted_new_one(tmp_path: Path, rows: list[Row]) -> None:
    write_corpus(tmp_path / "corpus", rows, INFO)
    rows, info = changed("report", rows)
    write_interrupted(tmp_path / "corpus", rows, info, 1)
    assert not (tmp_path / "corpus" / "corpus.json").exists()
    assert len(list((tmp_path / "corpus").glob("*.parquet"))) == 1


def test_folder_with_other_things_is_left_alone(tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train-00000.parquet").write_bytes(b"something dear to somebody")
    before = stamps(folder)
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_corpus(folder, rows, INFO)
    assert stamps(folder) == before


def test_file_in_the_place_of_the_folder_is_named(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "corpus").write_bytes(b"something")
    with pytest.raises(FileExistsError, match=str(tmp_path / "corpus")):
        write_corpus(tmp_path / "corpus", rows, INFO)
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "corpus" / "below")):
        write_corpus(tmp_path / "corpus" / "below", rows, INFO)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that this process may read but not write to; root becomes somebody else for that."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o500)
            yield Path(folder)
            os.chmod(folder, 0o700)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", [".", "corpus"])
def test_folder_without_permission_is_named(name: str, locked: Path) -> None:
    with pytest.raises(PermissionError, match=str(locked / name)):
        write_corpus(locked / name, [Row("a", "p", "train", "a.png", "Text.")], INFO)
    assert list(locked.iterdir()) == []


def test_examples_in_the_order_of_the_rows(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 1)
    rows = [replace(row, split="train") for row in rows]  # 12 shards: number 10 comes after number 9
    write_corpus(tmp_path / "corpus", rows, INFO)
    examples = CorpusExamples(tmp_path / "corpus", "train", SIZE)
    assert examples.ids == [row.id for row in rows]
    assert examples.reports == [row.report for row in rows]
    for number in (11, 0, 10):
        image = examples.image(number)
        assert (image.dtype, image.shape) == (torch.uint8, (1, SIZE, SIZE))
        np.testing.assert_array_equal(image[0].numpy(), pixels_of(number))


def test_examples_labels_are_nan_where_not_mentioned(tmp_path: Path, rows: list[Row]) -> None:
    write_corpus(tmp_path / "corpus", rows, INFO)
    labels = CorpusExamples(tmp_path / "corpus", "val", SIZE).labels
    assert labels.dtype == np.float32
    # Rows 7 to 9, each starting one further in 1, 0, -1, nan, 1, ...
    period = [1, 0, -1, np.nan] * 5
    np.testing.assert_array_equal(labels, np.array([period[3:17], period[:14], period[1:15]], np.float32))


@pytest.mark.parametrize("size", [16, 48])
def test_examples_images_are_resized_when_asked(size: int, tmp_path: Path) -> None:
    halves = np.repeat(np.array([50, 200], np.uint8), SIZE // 2)
    Image.fromarray(np.tile(halves, (SIZE, 1))).save(tmp_path / "halves.png")
    write_corpus(tmp_path / "corpus", [Row("a", "p", "train", str(tmp_path / "halves.png"), "Text.")], INFO)
    image = CorpusExamples(tmp_path / "corpus", "train", size).image(0)
    assert (image.dtype, image.shape) == (torch.uint8, (1, size, size))
    assert (image[..., : size // 2 - 2] == 50).all()
    assert (image[..., size // 2 + 2 :] == 200).all()


@pytest.mark.parametrize("is_disabled", [True, False])
def test_reading_leaves_the_progress_bars_of_datasets_as_they_were(
    is_disabled: bool, tmp_path: Path, rows: list[Row]
) -> None:
    write_corpus(tmp_path / "corpus", rows, INFO)
    (datasets.disable_progress_bars if is_disabled else datasets.enable_progress_bars)()
    CorpusExamples(tmp_path / "corpus", "train", SIZE)
    assert datasets.are_progress_bars_disabled() is is_disabled


def test_empty_split_is_an_error(tmp_path: Path, rows: list[Row]) -> None:
    rows[10:] = [replace(row, image="nowhere.png") for row in rows[10:]]
    write_corpus(tmp_path / "test rejected", rows, INFO)
    write_corpus(tmp_path / "no test", rows[:10], INFO)
    for name in ("test rejected", "no test"):
        with pytest.raises(ValueError, match=f"{name} has no test split"):
            CorpusExamples(tmp_path / name, "test", SIZE)


@pytest.mark.parametrize("version", [1, 3, None])
def test_corpus_of_another_schema_version_is_refused(version: int | None, tmp_path: Path) -> None:
    values = asdict(replace(INFO, splits={"train": 1})) | {"schema_version": version, "of the future": True}
    (tmp_path / "corpus.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"schema version {version}, not 2: prepare it again"):
        CorpusExamples(tmp_path, "train", SIZE)


def test_margins_are_cut_unless_told_otherwise(tmp_path: Path) -> None:
    radiograph = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    radiograph[16:48, 16:48] = pixels_of(0)
    Image.fromarray(radiograph).save(tmp_path / "radiograph.png")
    row = Row("a", "p", "train", str(tmp_path / "radiograph.png"), "Text.")
    cut = write_corpus(tmp_path / "corpus", [row], INFO)
    np.testing.assert_array_equal(CorpusExamples(tmp_path / "corpus", "train", SIZE).image(0)[0].numpy(), pixels_of(0))
    whole = write_corpus(tmp_path / "corpus", [row], replace(INFO, cut_margins=False))  # prepared anew
    assert (cut.cut_margins, whole.cut_margins) == (True, False)
    assert (CorpusExamples(tmp_path / "corpus", "train", SIZE).image(0)[0, :6] == 0).all()


def test_corpus_of_old_says_that_its_margins_are_there(tmp_path: Path, rows: list[Row]) -> None:
    write_corpus(tmp_path / "corpus", rows, INFO)
    path = tmp_path / "corpus" / "corpus.json"
    values = json.loads(path.read_text())
    del values["cut_margins"]
    path.write_text(json.dumps(values))
    assert not CorpusInfo.read(tmp_path / "corpus").cut_margins


def write_dicom(path: Path, **tags: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.Rows = dataset.Columns = SIZE
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = pixels_of(0).tobytes()
    dataset["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_rows_take_their_view_from_the_tags_and_legs_are_set_aside(tmp_path: Path) -> None:
    images = {
        "pa": write_dicom(tmp_path / "pa", ViewPosition="PA", BodyPartExamined="CHEST"),
        "side": write_dicom(tmp_path / "side", ViewPosition="LL"),
        "leg": write_dicom(tmp_path / "leg", ViewPosition="AP", BodyPartExamined="LEG"),
    }
    rows = [Row(name, name, "train", str(path), "Text.") for name, path in images.items()]
    rows.append(Row("said", "said", "train", str(images["pa"]), "Text.", view="AP"))
    rows.append(Row("asked", "asked", "train", str(images["leg"]), "Text.", organ="leg", question="What?"))
    write_corpus(tmp_path / "corpus", rows, INFO)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "corpus").glob("*.parquet"))]
    views = {row["id"]: row["view"] for row in pa.concat_tables(tables).to_pylist()}
    assert views == {"pa": "PA", "side": "LATERAL", "said": "AP", "asked": "AP"}
    assert [(row["id"], row["reason"]) for row in rejected_of(tmp_path / "corpus")] == [
        ("leg", "it does not show the chest (BodyPartExamined LEG)")
    ]
    np.testing.assert_array_equal(CorpusExamples(tmp_path / "corpus", "train", SIZE).image(0)[0].numpy(), pixels_of(0))


def test_small_corpus_uses_all_workers(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 100)
    together, values = threading.Barrier(4, timeout=30), writer._values

    def wait(row: Row, info: CorpusInfo) -> dict[str, Any]:
        together.wait()  # passes only where four rows are worked on at once
        return values(row, info)

    monkeypatch.setattr(writer, "_values", wait)
    done = write_corpus(tmp_path / "corpus", [replace(row, split="train") for row in rows], INFO, workers=4)
    assert done.splits == {"train": 12}
