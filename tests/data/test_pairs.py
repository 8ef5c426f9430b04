"""A user's own table: reading it, splitting it, preparing it."""

import csv
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl import PairsDataModule
from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusInfo
from medvill_pl.data.pairs import assign_splits, read_table

MakePairs = Callable[..., Path]
Record = dict[str, Any]

NAN = float("nan")
SPLITS = ("train", "val", "test")


def write_table(path: Path, records: Sequence[Record], encoding: str = "utf-8") -> Path:
    """Write a table in the form that its name asks for."""
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding=encoding)
    else:
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def records_of(path: Path) -> list[Record]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_data(table: Path, **options: Any) -> PairsDataModule:
    """A data module of a table, by default with its patients."""
    settings = {"tokenizer": "synthetic", "image_size": 32, "batch_size": 4, "num_workers": 0}
    return PairsDataModule(str(table), **({"patient_column": "patient"} | settings | options))


def prepare(table: Path, **options: Any) -> PairsDataModule:
    """A data module whose corpus is prepared, whatever that warns of."""
    data = make_data(table, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.prepare_data()
    return data


def rows_of(data: PairsDataModule) -> dict[str, Record]:
    """The prepared pairs without their images, by identifier; each with its split."""
    return {
        row["id"]: row | {"split": path.name.split("-")[0]}
        for path in data.corpus.glob("*.parquet")
        for row in pq.read_table(path).drop_columns(["image"]).to_pylist()
    }


def messages_of(action: Callable[[], object]) -> list[str]:
    """What an action warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def as_numbers(records: Sequence[Record]) -> list[Record]:
    """Labels as a program writes them: numbers, and null where there is none."""
    return [
        record | {name: float(record[name]) if record[name] else None for name in ("Edema", "Cardiomegaly")}
        for record in records
    ]


def test_every_kind_of_table_gives_the_same_corpus(make_pairs: MakePairs) -> None:
    plain = make_pairs()
    records, folder = records_of(plain), plain.parent
    records[0]["report"] = 'It says "no edema",\nna\u00efvely; in two lines.'
    tables = [
        write_table(plain, records),
        write_table(folder / "bom.csv", records, "utf-8-sig"),
        write_table(folder / "texts.jsonl", records),
        write_table(folder / "bom.jsonl", as_numbers(records), "utf-8-sig"),
        write_table(folder / "texts.parquet", records),
        write_table(folder / "numbers.parquet", as_numbers(records)),
    ]
    prepared = [prepare(table, corpus=str(folder / f"corpus of {table.name}")) for table in tables]
    assert len({CorpusInfo.read(data.corpus).fingerprint for data in prepared}) == 1
    assert rows_of(prepared[-1])["0000001"]["report"] == records[0]["report"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_json_rows_end_at_line_feeds_only(mark: str, tmp_path: Path) -> None:
    records = [{"image": "a.png", "report": f"No edema.{mark}No effusion."}, {"image": "b.png", "report": "Edema."}]
    assert read_table(write_table(tmp_path / "pairs.jsonl", records)) == records


def test_rows_of_a_table_end_up_in_the_corpus(make_pairs: MakePairs) -> None:
    table = make_pairs()
    data = prepare(table)
    rows = rows_of(data)
    assert sorted(rows) == [f"{number:07d}" for number in range(1, 13)]
    for row, record in zip((rows[name] for name in sorted(rows)), records_of(table), strict=True):
        labels = dict.fromkeys(FINDINGS) | {
            name: int(record[name]) if record[name] else None for name in ("Edema", "Cardiomegaly")
        }
        assert row == {
            "id": row["id"],
            "patient_id": record["patient"],
            "view": "",
            "report": record["report"],
            **dict.fromkeys(("question", "answer", "answer_type", "question_type", "organ"), ""),
            "labels": list(labels.values()),
            "split": row["split"],
        }
    info = CorpusInfo.read(data.corpus)
    assert (info.source, info.credentialed, info.image_size) == ("pairs", False, 32)
    assert info.labelled == ["Cardiomegaly", "Edema"]  # in the order of the findings
    assert info.splits == Counter(row["split"] for row in rows.values())


def test_columns_of_other_names(make_pairs: MakePairs) -> None:
    table = make_pairs()
    renamed = [
        {"file": record["image"], "text": record["report"], "key": f"key {number}", "position": "PA"}
        for number, record in enumerate(records_of(table))
    ]
    data = prepare(
        write_table(table, renamed),
        image_column="file",
        report_column="text",
        patient_column=None,
        id_column="key",
        view_column="position",
        is_credentialed=True,
    )
    rows = rows_of(data)
    assert sorted(rows) == sorted(record["key"] for record in renamed)
    assert all(row["report"] == renamed[int(name.split()[1])]["text"] for name, row in rows.items())
    assert {row["view"] for row in rows.values()} == {"PA"}
    assert data.is_credentialed
    assert CorpusInfo.read(data.corpus).credentialed


def test_images_are_found_from_the_image_root_or_absolute(make_pairs: MakePairs, tmp_path: Path) -> None:
    table = make_pairs()
    records = records_of(table)
    (tmp_path / "elsewhere").mkdir()
    absolute = [record | {"image": str(table.parent / record["image"])} for record in records]
    moved = write_table(tmp_path / "elsewhere" / "pairs.csv", [*absolute[:3], *records[3:]])
    from_root = prepare(moved, image_root=str(table.parent), corpus=str(tmp_path / "from root"))
    beside = prepare(table, corpus=str(tmp_path / "beside"))
    assert CorpusInfo.read(from_root.corpus) == CorpusInfo.read(beside.corpus)


def test_unusable_rows_are_set_aside_and_the_rest_is_used(make_pairs: MakePairs) -> None:
    table = make_pairs()
    good = [record | {"key": f"good {number}"} for number, record in enumerate(records_of(table))]
    (table.parent / "images" / "broken.png").write_bytes(b"no image")
    changes: dict[str, tuple[Record, str]] = {
        "missing image": ({"image": "images/nowhere.png"}, "no such file: .*images/nowhere.png"),
        "no image": ({"image": " "}, "the path of the image is empty"),
        "broken image": ({"image": "images/broken.png"}, "not a readable image"),
        "no text": ({"report": " \n"}, "the text is empty"),
        "label": ({"Edema": "yes"}, "Edema must be 1, 0, -1 or blank, not 'yes'"),
        "label out of range": ({"Cardiomegaly": "2"}, "Cardiomegaly must be 1, 0, -1 or blank, not '2'"),
        "good 3": ({}, "the identifier good 3 occurs twice"),
    }
    bad = [good[0] | change | {"key": name} for name, (change, _) in changes.items()]
    data = make_data(write_table(table, [*good[:5], *bad, *good[5:]]), id_column="key")
    said = messages_of(data.prepare_data)
    assert said == [f"7 of 19 rows cannot be used: see {data.corpus / 'rejected.csv'}"]
    rejected = {record["id"]: record for record in records_of(data.corpus / "rejected.csv")}
    assert set(rejected) == set(changes)
    for name, (_, reason) in changes.items():
        assert re.search(reason, rejected[name]["reason"]), rejected[name]
    rows = rows_of(data)
    assert sorted(rows) == sorted(record["key"] for record in good)
    assert rows["good 3"]["report"] == good[3]["report"]


GOOD_CSV = b"image,report\na.png,No edema.\n"
UNUSABLE = {
    "empty.csv": (b"", "has no rows"),
    "header.csv": (b"image,report\n", "has no rows"),
    "empty.jsonl": (b"\n\n", "has no rows"),
    "columns.csv": (b"file,text\na.png,No edema.\n", r"no column 'image' \(image_column\); it has file, text"),
    "columns.jsonl": (
        b'{"image": "a.png", "text": "b"}\n',
        r"no column 'report' \(report_column\); it has image, text",
    ),
    "ending.txt": (GOOD_CSV, r"must end in \.csv, \.jsonl or \.parquet"),
    "broken.jsonl": (b'{"image": "a.png", "report": "No ed\n', "cannot be read as a table"),
    "lists.jsonl": (b'["a.png", "No edema."]\n', "each line must be a JSON object"),
    "latin.csv": ("image,report\na.png,Ödem.\n".encode("latin-1"), "cannot be read as a table"),
    "latin.jsonl": ('{"image": "a.png", "report": "Ödem."}\n'.encode("latin-1"), "cannot be read as a table"),
    "utf16.csv": (GOOD_CSV.decode().encode("utf-16"), "cannot be read as a table"),
    "renamed.parquet": (GOOD_CSV, "not a parquet file"),
    "zero.parquet": (b"", "0 bytes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_tables_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = UNUSABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path / name, patient_column=None)
    said = str(caught.value)
    assert str(tmp_path / name) in said
    assert "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was begun


def test_table_without_rows_in_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet has no rows"):
        read_table(tmp_path / "empty.parquet")


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no such table: {tmp_path / 'nothing.csv'}"):
        prepare(tmp_path / "nothing.csv")


@pytest.mark.parametrize("option", ["image", "report", "patient", "split", "view", "id"])
def test_missing_column_is_named_with_those_there_are(option: str, make_pairs: MakePairs) -> None:
    message = rf"no column 'nothing' \({option}_column\); it has image, report, patient, Edema, Cardiomegaly"
    with pytest.raises(ValueError, match=message):
        prepare(make_pairs(), **{f"{option}_column": "nothing"})


def test_table_without_a_usable_row_is_refused(make_pairs: MakePairs) -> None:
    table = make_pairs()
    write_table(table, [record | {"report": ""} for record in records_of(table)])
    with pytest.raises(ValueError, match=r"no row of pairs can be used \(the text is empty\)"):
        prepare(table)


@settings(max_examples=100, deadline=None)
@given(
    rows_of_patients=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    fractions=st.tuples(st.floats(0.02, 0.45), st.floats(0.02, 0.45)),
    seed=st.integers(0, 5),
)
def test_every_split_gets_whole_patients(
    rows_of_patients: list[int], fractions: tuple[float, float], seed: int
) -> None:
    patients = [f"p{number}" for number, count in enumerate(rows_of_patients) for _ in range(count)]
    splits = assign_splits(patients, fractions, seed)
    assert set(splits) == set(patients)  # a mapping: no patient is in two splits
    assert "train" in splits.values()
    if len(rows_of_patients) >= 3:
        assert set(splits.values()) == set(SPLITS)
    shares = Counter(splits[patient] for patient in patients)
    for split, fraction in zip(("val", "test"), fractions, strict=True):
        assert shares[split] < fraction * len(patients) + max(rows_of_patients)
    shuffled = random.Random(0).sample(patients, len(patients))
    assert assign_splits(shuffled, fractions, seed) == splits  # neither the order of rows nor another call matters


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.3, 0.2), (0.0, 0.25), (0.4, 0.0), (0.0, 0.0)])
def test_fractions_are_roughly_kept(fractions: tuple[float, float]) -> None:
    patients = [f"p{number}" for number in range(300) for _ in range(number % 4 + 1)]
    splits = assign_splits(patients, fractions, seed=0)
    shares = Counter(splits[patient] for patient in patients)
    for split, fraction in zip(("val", "test"), fractions, strict=True):
        assert 0 <= shares[split] / len(patients) - fraction < 4 / len(patients)


def test_splits_follow_from_the_seed() -> None:
    patients = [f"p{number}" for number in range(50)]
    first, second = (assign_splits(patients, (0.3, 0.3), seed) for seed in (0, 1))
    assert first != second
    assert list(first.values()) != sorted(first.values())


def test_patients_of_a_table_are_in_one_split_each(make_pairs: MakePairs) -> None:
    data = prepare(make_pairs(40), val_fraction=0.2, test_fraction=0.3)
    splits: dict[str, set[str]] = {}
    for row in rows_of(data).values():
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(splits) == 20
    assert {len(theirs) for theirs in splits.values()} == {1}
    assert CorpusInfo.read(data.corpus).splits == {"train": 20, "val": 8, "test": 12}


def with_splits(table: Path, names: Sequence[str]) -> Path:
    """Give each row of a table a split, in turn."""
    records = records_of(table)
    return write_table(table, [record | {"part": names[number % len(names)]} for number, record in enumerate(records)])


def test_split_column_goes_by_many_names(make_pairs: MakePairs) -> None:
    names = ["train", "Training", "VAL", "valid", "validate", "validation", "dev", " test ", "Test"]
    expected = ["train"] * 2 + ["val"] * 5 + ["test"] * 2
    data = prepare(with_splits(make_pairs(18), names), split_column="part", patient_column=None)
    rows = rows_of(data)
    assert [rows[name]["split"] for name in sorted(rows)] == expected * 2


@pytest.mark.parametrize("name", ["", "holdout"])
def test_unknown_split_is_refused_with_its_row(name: str, make_pairs: MakePairs) -> None:
    table = with_splits(make_pairs(), ["train", "val", "test", name])
    with pytest.raises(ValueError, match=rf"pairs\.csv, row 4: part must be train, val or test, not '{name}'"):
        prepare(table, split_column="part")


def test_json_row_without_its_split_is_refused_with_its_row(make_pairs: MakePairs) -> None:
    table = with_splits(make_pairs(), ["train", "train", "val", "val", "test", "test"])
    records = records_of(table)
    del records[7]["part"]
    with pytest.raises(ValueError, match=r"pairs\.jsonl, row 8: part must be train, val or test"):
        prepare(write_table(table.with_suffix(".jsonl"), records), split_column="part")


def test_labels_that_only_later_json_rows_have_are_declared(make_pairs: MakePairs) -> None:
    table = make_pairs()
    records = as_numbers(records_of(table))
    del records[0]["Edema"]
    data = prepare(write_table(table.with_suffix(".jsonl"), records))
    assert CorpusInfo.read(data.corpus).labelled == ["Cardiomegaly", "Edema"]
    assert rows_of(data)["0000001"]["labels"][FINDINGS.index("Edema")] is None


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        # Two rows a patient.
        (["train", "train", "val", "val", "test", "test"], None),
        (["train", "val", "test", "test"], r"3 patients \(such as p0\) are in more than one split"),
    ],
)
def test_leak_between_splits_is_warned_of(names: list[str], warning: str | None, make_pairs: MakePairs) -> None:
    data = make_data(with_splits(make_pairs(), names), split_column="part")
    if warning is None:
        assert messages_of(data.prepare_data) == []
    else:
        with pytest.warns(UserWarning, match=warning):
            data.prepare_data()


def test_without_patients_each_row_is_one_and_the_run_says_so(make_pairs: MakePairs) -> None:
    data = make_data(make_pairs(), patient_column=None)
    with pytest.warns(UserWarning, match="no patient_column is given: each row counts as a patient"):
        data.prepare_data()
    assert all(row["patient_id"] == row["id"] for row in rows_of(data).values())


def test_row_without_its_patient_is_one_of_its_own(make_pairs: MakePairs) -> None:
    table = make_pairs()
    records = records_of(table)
    for number in (2, 7):
        records[number]["patient"] = " "
    rows = rows_of(prepare(write_table(table, records)))
    assert [rows[name]["patient_id"] for name in ("0000003", "0000008")] == ["0000003", "0000008"]
    assert rows["0000001"]["patient_id"] == "p0"


@pytest.mark.parametrize(
    ("ending", "cells"),
    [
        (".csv", ["1", "1.0", " 1 ", "0", "0.0", "-1", "-1.0", "", " "]),
        (".jsonl", [1, 1.0, "1", 0, 0.0, -1, "-1.0", None, NAN]),
        (".parquet", [1.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0, None, NAN]),
    ],
)
def test_labels_in_every_spelling(ending: str, cells: list[Any], make_pairs: MakePairs) -> None:
    table = make_pairs(len(cells))
    records = [record | {"Edema": cell} for record, cell in zip(records_of(table), cells, strict=True)]
    data = prepare(write_table(table.with_suffix(ending), records), val_fraction=0, test_fraction=0)
    assert CorpusInfo.read(data.corpus).rejected == 0
    labels = data.examples("train").labels[:, FINDINGS.index("Edema")]
    np.testing.assert_array_equal(labels, [1, 1, 1, 0, 0, -1, -1, NAN, NAN])


def test_without_labels_another_text_is_what_does_not_match(make_pairs: MakePairs) -> None:
    table = make_pairs()
    records = [{name: record[name] for name in ("image", "report", "patient")} for record in records_of(table)]
    data = prepare(write_table(table, records), negatives="labels", val_fraction=0.4)
    assert CorpusInfo.read(data.corpus).labelled == []
    with pytest.warns(UserWarning, match="has no labels: reports with a different text serve as non-matching"):
        data.setup("fit")
    texts = dict(zip(data.datasets["train"].examples.ids, data.datasets["train"].examples.reports, strict=True))
    batches = list(data.train_dataloader())
    assert sum(int((~batch["matched"]).sum()) for batch in batches) == 2 * len(batches)
    for batch in batches:
        said = [
            data.tokenizer.decode(ids[mask][:-1].tolist())
            for ids, mask in zip(batch["input_ids"], batch["text_mask"], strict=True)
        ]
        for own, matched, text in zip(batch["id"], batch["matched"], said, strict=True):
            own_text = data.tokenizer.decode(data.tokenizer.encode([texts[own]])[0])
            assert (text == own_text) == bool(matched)


def stamps(data: PairsDataModule) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in data.corpus.iterdir()}


def test_preparing_twice_does_nothing_the_second_time(make_pairs: MakePairs) -> None:
    table = make_pairs()
    first = prepare(table)
    before = stamps(first)
    second = prepare(table)
    assert second.corpus == first.corpus
    assert stamps(second) == before


def test_changed_table_is_prepared_anew(make_pairs: MakePairs) -> None:
    table = make_pairs()
    prepare(table)
    records = records_of(table)
    records[4]["report"] = "No pleural effusion."
    data = prepare(write_table(table, records[:9]))
    rows = rows_of(data)
    assert len(rows) == 9
    assert rows["0000005"]["report"] == "No pleural effusion."
    assert sum(CorpusInfo.read(data.corpus).splits.values()) == 9


def test_corpora_of_other_sizes_lie_side_by_side(make_pairs: MakePairs) -> None:
    table = make_pairs()
    small, large = prepare(table), prepare(table, image_size=48)
    assert small.corpus.parent == large.corpus.parent == table.parent
    assert [CorpusInfo.read(data.corpus).image_size for data in (small, large)] == [32, 48]
    assert large.examples("train").image(0).shape == (1, 48, 48)
