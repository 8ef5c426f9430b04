"""VQA-RAD: answers, splits, twins, and JSON that is not to be trusted."""

import csv
import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.preparation.summary import Count
from medvill_pl.preparation.vqa_rad import (
    check_vqa_rad,
    choose_questions,
    count_questions,
    normalise_answer,
    prepare_vqa_rad,
    read_vqa_rad,
)

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes", "yes"),
        ("YES ", "yes"),
        (4, "4"),
        (2.5, "2.5"),
        ("X-ray", "xray"),
        ("X ray.", "xray"),
        ("The left lung", "left lung"),
        ("A pneumothorax, an effusion", "pneumothorax effusion"),
        ("right-sided", "right sided"),
        ("T2 - weighted; axial", "t2 weighted axial"),
        ("5.4 cm.", "5.4 cm"),
        ("1,000 ml", "1000 ml"),
        ("Posterior\tto\n the  heart?", "posterior to heart"),
        ("(yes)", "yes"),
    ],
)
def test_answers_that_mean_the_same_are_written_alike(answer: Any, normal: str) -> None:
    assert normalise_answer(answer) == normal
    assert normalise_answer(normal) == normal


def numbers_of(counts: list[Count]) -> dict[str, int]:
    return {count.name: count.ours for count in counts}


def rows_of(corpus: Path) -> dict[str, dict[str, Any]]:
    return {
        row["id"]: row | {"split": path.name.split("-")[0]}
        for path in sorted(corpus.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def test_rows_hold_question_answer_and_kind(write_vqa_rad: Write, tmp_path: Path) -> None:
    summary = prepare_vqa_rad(write_vqa_rad(tmp_path / "raw"), tmp_path / "corpus", image_size=32, val_fraction=0)
    rows = rows_of(tmp_path / "corpus")
    # 30 training records, 10 of them reworded; 10 test records, 4 of them (30, 33, 36, 39) reworded in training.
    assert summary.rows == {"train": 44, "test": 10}
    assert {
        name: rows["30"][name] for name in ("question", "answer", "answer_type", "question_type", "organ", "split")
    } == {
        "question": "Is there finding 30?",
        "answer": "finding 0",
        "answer_type": "open",
        "question_type": "presence",
        "organ": "chest",
        "split": "test",
    }
    framed = rows["30-framed"]
    assert (framed["question"], framed["answer"], framed["split"]) == ("Does it show finding 30?", "finding 0", "train")
    assert framed["image"] == rows["30"]["image"]
    assert rows["31"]["answer_type"] == "closed"
    assert "14 " in "\n".join(summary.lines())


def test_strict_split_leaves_rewordings_of_test_questions_out(write_vqa_rad: Write, tmp_path: Path) -> None:
    raw = write_vqa_rad(tmp_path / "raw")
    summary = prepare_vqa_rad(raw, tmp_path / "corpus", split="strict", image_size=32, val_fraction=0)
    rows = rows_of(tmp_path / "corpus")
    assert summary.rows == {"train": 40, "test": 10}
    assert "30-framed" not in rows
    assert rows["27-framed"]["split"] == "train"
    numbers = numbers_of(list(summary.counts))
    assert numbers["framed rewordings of test questions"] == 4
    assert numbers["test questions reworded in training"] == 0
    assert numbers["test questions whose image is in training"] == 10


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_taken_from_training_image_by_image(seed: int, write_vqa_rad: Write, tmp_path: Path) -> None:
    raw = write_vqa_rad(tmp_path / "raw")
    whole = prepare_vqa_rad(raw, tmp_path / "whole", image_size=32, val_fraction=0)
    divided = prepare_vqa_rad(raw, tmp_path / "divided", image_size=32, val_fraction=0.2, seed=seed)
    rows = rows_of(tmp_path / "divided").values()
    images = {split: {row["image"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert images["val"]
    assert not images["train"] & images["val"]
    assert divided.rows["train"] + divided.rows["val"] == whole.rows["train"]
    assert divided.rows["test"] == whole.rows["test"]
    # The published counts are those before some questions are moved to validation.
    before, after = numbers_of(list(whole.counts)), numbers_of(list(divided.counts))
    assert after.pop("training questions moved to validation") == divided.rows["val"]
    assert before.items() >= after.items()


@pytest.mark.parametrize("form", ["VQA_RAD Image Folder.zip", "images"])
def test_images_may_be_packed_or_in_another_folder(form: str, write_vqa_rad: Write, tmp_path: Path) -> None:
    raw = write_vqa_rad(tmp_path / "raw")
    whole = prepare_vqa_rad(raw, tmp_path / "corpus", image_size=32)
    folder = raw / "VQA_RAD Image Folder"
    if form.endswith(".zip"):
        with zipfile.ZipFile(raw / form, "w") as zipped:
            for path in folder.iterdir():
                zipped.write(path, f"VQA_RAD Image Folder/{path.name}")
        folder.rename(tmp_path / "gone")
    else:
        folder.rename(raw / form)
    assert prepare_vqa_rad(raw, tmp_path / "again", image_size=32) == whole
    assert sorted(path.name for path in tmp_path.iterdir() if "images" in path.name) == []


def test_missing_parts_are_named(write_vqa_rad: Write, tmp_path: Path) -> None:
    raw = write_vqa_rad(tmp_path / "raw")
    check_vqa_rad(raw)
    (raw / "VQA_RAD Image Folder").rename(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"has no VQA_RAD Image Folder.*: get it from https://osf\.io/89kps/"):
        check_vqa_rad(raw)
    (raw / "VQA_RAD Dataset Public.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no VQA_RAD Dataset Public\.json .*osf\.io"):
        check_vqa_rad(raw)


def load_record() -> Callable[..., dict[str, Any]]:
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("generators", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., dict[str, Any]] = module.vqa_record
    return make


record = load_record()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(1, "../../../etc/passwd", "Q?", "yes"), "the path '../../../etc/passwd' leaves the data folder"),
        (record(1, "/etc/passwd", "Q?", "yes"), "the path '/etc/passwd' leaves the data folder"),
        (record(1, "none.jpg", "Q?", "yes"), "no such file"),
        (record(1, "synpic1.jpg", "", "yes"), "the record lacks one of"),
        (record(1, "synpic1.jpg", "Q?", None), "the record lacks one of"),
        ("a text", "the record lacks one of"),
        (None, "the record lacks one of"),
        ({}, "the record lacks one of"),
        (record(2, "synpic1.jpg", "Q?", "yes"), "the identifier 2 occurs twice"),
        (record(1, "synpic1.jpg", "Q?", "yes", answer_type="MIXED"), "the answer is 'mixed', neither closed nor open"),
    ],
    ids=range(10),
)
def test_bad_record_is_set_aside(bad: Any, reason: str, write_vqa_rad: Write, tmp_path: Path) -> None:
    good = [record(0, "synpic0.jpg", "Q?", "yes"), record(2, "synpic2.jpg", "Q?", "no", phrase_type="test_para")]
    raw = write_vqa_rad(tmp_path / "raw", [*good, bad])
    prepare_vqa_rad(raw, tmp_path / "corpus", image_size=32)
    assert set(rows_of(tmp_path / "corpus")) == {"0", "2"}
    with open(tmp_path / "corpus" / "rejected.csv", newline="", encoding="utf-8") as file:
        (rejected,) = csv.DictReader(file)
    assert reason in rejected["reason"]


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1", "\x00", "[" * 100_000, '"a"'], ids=range(7))
def test_broken_json_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json (cannot be read as JSON|must be a list of records)"):
        read_vqa_rad(tmp_path / "x.json")


CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["NULL", "../x", "yes"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
CHANGES = st.dictionaries(st.sampled_from(sorted(record(1, "a.jpg", "Q?", "yes"))), CELLS, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(
        CHANGES.map(lambda change: record(1, "a.jpg", "Q?", "yes") | change) | CELLS, min_size=1, max_size=3
    )
)
def test_no_json_makes_the_reader_crash(records: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(records))
    questions = read_vqa_rad(path)
    for question in questions:
        assert question.row.rejection or ".." not in Path(question.row.image).parts
    for rule in ("official", "strict"):
        count_questions(choose_questions(questions, rule), rule)


def test_published_counts_of_both_splits(shared_data: Path) -> None:
    questions = read_vqa_rad(shared_data / "vqa_rad/vqa_rad.json")
    for rule, training, answers, unseen in (("official", 3064, 458, 43), ("strict", 2780, 415, 111)):
        counts = count_questions(questions, rule)
        assert not [count for count in counts if count.differs]
        numbers = numbers_of(counts)
        assert numbers["training questions"] == training == len(choose_questions(questions, rule)) - 451
        assert (numbers["answers of training"], numbers["test answers not in training"]) == (answers, unseen)
        assert numbers["test questions whose image is in training"] == 446
    known = {one.row.answer for one in choose_questions(questions, "strict") if one.row.split == "train"}
    open_unseen = [
        one for one in questions if one.kind == "test" and one.row.answer_type == "open" and one.row.answer not in known
    ]
    assert len(open_unseen) == 105
