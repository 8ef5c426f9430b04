"""VQA-RAD, prepared: both splits, normalised answers, and a count of what training shares with the test."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medvill_pl.batch import Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.pairs import assign_splits
from medvill_pl.data.vqa_rad import SOURCE
from medvill_pl.preparation.sources import find, find_images, image_folder, inside
from medvill_pl.preparation.summary import Count, Summary, finish

SplitRule = Literal["official", "strict"]
_PUBLISHER = "https://osf.io/89kps/ (VQA_RAD Dataset Public.json and VQA_RAD Image Folder)"
_ORGANS = {"CHEST": "chest", "ABD": "abdomen", "HEAD": "head"}
_TYPES = {
    "ABN": "abnormality",
    "ATRIB": "attribute",
    "ATTRIB": "attribute",
    "COLOR": "color",
    "COUNT": "count",
    "MODALITY": "modality",
    "ORGAN": "organ",
    "OTHER": "other",
    "PLANE": "plane",
    "POS": "position",
    "PRES": "presence",
    "PRSE": "presence",
    "SIZE": "size",
}
_PUBLISHED = {
    "records": 2248,
    "images": 314,
    "training records": 1797,
    "framed rewordings of training questions": 983,
    "framed rewordings of test questions": 284,
    "test questions": 451,
    "closed test questions": 272,
    "open test questions": 179,
    "test questions whose image is in training": 446,
}
_PUBLISHED_SPLIT = {
    "official": {"training questions": 3064, "answers of training": 458, "test answers not in training": 43},
    "strict": {"training questions": 2780, "answers of training": 415, "test answers not in training": 111},
}
_FIELDS = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise_answer(answer: object) -> str:
    """Write answers that mean the same in the same way, as earlier work does.

    Lower case; the punctuation rule of VQA (a mark beside a space anywhere in the answer vanishes, another becomes a
    space, a full stop stays in numbers only); articles dropped; "x ray" is "xray".

    Example:
        >>> normalise_answer("The X-ray, PA."), normalise_answer("3.5 cm"), normalise_answer(4)
        ('xray pa', '3.5 cm', '4')
    """
    text = " ".join(str(answer).lower().split())
    has_thousands = bool(re.search(r"\d,\d", text))
    for mark in _PUNCTUATION:
        vanishes = has_thousands or f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if vanishes else " ")
    text = re.sub(r"(?<!\d)\.(?!\d)", "", text)
    words = [word for word in text.split() if word not in ("a", "an", "the")]
    return " ".join(words).replace("x ray", "xray")


class VQARADFiles(NamedTuple):
    """Where the parts of the dataset lie: the JSON and the images (a folder or an archive).

    Example:
        >>> VQARADFiles(Path("VQA_RAD Dataset Public.json"), Path("VQA_RAD Image Folder")).images.name
        'VQA_RAD Image Folder'
    """

    records: Path
    images: Path


def find_vqa_rad(source: Path) -> VQARADFiles:
    """Find the parts of VQA-RAD.

    Args:
        source: folder with the JSON and with the images as a folder or an archive.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "VQA_RAD Dataset Public.json").write_text("[]")
        ...     Path(folder, "VQA_RAD Image Folder").mkdir()
        ...     files = find_vqa_rad(Path(folder))
        >>> files.records.name, files.images.name
        ('VQA_RAD Dataset Public.json', 'VQA_RAD Image Folder')
    """
    records = find(source, ["VQA_RAD Dataset Public.json", "vqa_rad.json", "*VQA*RAD*.json"], _PUBLISHER)
    return VQARADFiles(records, find_images(source, "synpic*.jpg", ["VQA_RAD Image Folder*"], _PUBLISHER))


@dataclass(frozen=True)
class Question:
    """One question of VQA-RAD as a row of the corpus, and what its split depends on.

    Attributes:
        row: the row; its ``split`` is train or test.
        kind: ``test``, ``train``, or ``framed``: a rewording that the record carries as ``question_frame``.
        of_test: whether the record is one of the test split.
        link: records with one link ask the same in other words.

    Example:
        >>> row = Row("1", "1", "train", "synpic1.jpg", "", question="is there a fracture?", answer="no")
        >>> Question(row, "framed", of_test=True, link="2").row.question
        'is there a fracture?'
    """

    row: Row
    kind: Literal["train", "test", "framed"]
    of_test: bool
    link: str


def read_vqa_rad(records: Path) -> list[Question]:
    """Read the JSON: its 2,248 records and the framed rewordings in them.

    A record that lacks a field, or whose image leaves the data folder, is kept with the reason for its rejection.

    Raises:
        ValueError: if the file is no list of records.

    Example:
        >>> import tempfile
        >>> record = {"qid": 1, "phrase_type": "freeform", "image_name": "synpic1.jpg", "image_organ": "CHEST"}
        >>> record |= {"question": "Is there a fracture?", "answer": "No", "answer_type": "CLOSED "}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "VQA_RAD Dataset Public.json"
        ...     _ = path.write_text(json.dumps([record]))
        ...     question = read_vqa_rad(path)[0]
        >>> question.kind, question.row.answer, question.row.answer_type, question.row.organ
        ('train', 'no', 'closed', 'chest')
    """
    try:
        content = json.loads(records.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{records} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{records} must be a list of records")
    earlier: set[str] = set()
    questions = []
    for number, record in enumerate(content):
        for question in _questions_of(record, number):
            row = question.row
            reason = f"the identifier {row.id} occurs twice" if row.id in earlier else row.rejection
            earlier.add(row.id)
            questions.append(replace(question, row=replace(row, rejection=reason)))
    return questions


def _questions_of(record: Any, number: int) -> Iterator[Question]:
    if not isinstance(record, dict) or any(_text(record.get(name)) == "" for name in _FIELDS):
        reason = f"the record lacks one of {', '.join(_FIELDS)}"
        yield Question(Row(f"record {number}", "", "train", "", "", rejection=reason), "train", False, "")
        return
    of_test = _text(record["phrase_type"]).startswith("test_")
    row = _row_of(record, "test" if of_test else "train")
    link = _text(record.get("qid_linked_id"))
    yield Question(row, "test" if of_test else "train", of_test, link)
    if frame := _text(record.get("question_frame")):
        framed = replace(row, id=f"{row.id}-framed", split="train", question=frame)
        yield Question(framed, "framed", of_test, link)


def _row_of(record: dict[str, Any], split: Split) -> Row:
    types = {_TYPES.get(part.strip().upper(), "other") for part in _text(record.get("question_type")).split(",")}
    organ = _text(record.get("image_organ")).upper()
    image, rejection = _text(record["image_name"]), ""
    answer_type = _text(record["answer_type"]).lower()
    if answer_type not in ("closed", "open"):
        rejection = f"the answer is {answer_type!r}, neither closed nor open"
    try:
        inside(Path(), image)
    except ValueError as error:
        image, rejection = "", str(error)
    return Row(
        id=_text(record["qid"]),
        patient_id=_text(record.get("image_case_url")).rpartition("=")[2] or image,
        split=split,
        image=image,
        report="",
        rejection=rejection,
        question=_text(record["question"]),
        answer=normalise_answer(record["answer"]),
        answer_type=answer_type,
        question_type=", ".join(sorted(types)),
        organ=_ORGANS.get(organ, organ.lower()),
    )


def _text(value: object) -> str:
    """A cell as one line of text; the file writes NULL for nothing."""
    text = "" if value is None else " ".join(str(value).split())
    return "" if text.upper() == "NULL" else text


def choose_questions(questions: Sequence[Question], rule: SplitRule) -> list[Question]:
    """Take the questions of a split rule.

    Args:
        questions: all of them.
        rule: ``official``, or ``strict``, which leaves the framed rewordings of test questions out.

    Example:
        >>> row = Row("1", "1", "train", "synpic1.jpg", "", question="is there a fracture?", answer="no")
        >>> reworded = Question(row, "framed", of_test=True, link="2")
        >>> len(choose_questions([reworded], "official")), len(choose_questions([reworded], "strict"))
        (1, 0)
    """
    if rule == "official":
        return list(questions)
    return [question for question in questions if not (question.kind == "framed" and question.of_test)]


def count_questions(questions: Sequence[Question], rule: SplitRule) -> list[Count]:
    """Count what is published of the dataset and of a split, and what training shares with the test questions.

    Args:
        questions: all of them, of either rule.
        rule: the split rule that training follows.

    Example:
        >>> row = Row("1", "1", "test", "synpic1.jpg", "", question="is there a fracture?", answer="no")
        >>> counts = count_questions([Question(row, "test", of_test=True, link="")], "official")
        >>> [count for count in counts if count.name == "test questions"]
        [Count(name='test questions', ours=1, published=451)]
    """
    usable = [question for question in questions if not question.row.rejection]
    training = [question.row for question in choose_questions(usable, rule) if question.row.split == "train"]
    test = [question for question in usable if question.kind == "test"]
    rows = [question.row for question in test]
    kinds = Counter((question.kind, question.of_test) for question in usable)
    answers = {row.answer for row in training}
    images = {question.row.image for question in usable if question.kind == "train"}
    links = {question.link for question in usable if question.kind == "train"}
    asked = {(row.image, row.question.lower()) for row in training}
    counts = {
        "records": len(usable) - kinds["framed", False] - kinds["framed", True],
        "images": len({question.row.image for question in usable}),
        "training records": kinds["train", False],
        "framed rewordings of training questions": kinds["framed", False],
        "framed rewordings of test questions": kinds["framed", True],
        "test questions": len(test),
        "closed test questions": sum(row.answer_type == "closed" for row in rows),
        "open test questions": sum(row.answer_type == "open" for row in rows),
        "training questions": len(training),
        "answers of training": len(answers),
        "test answers not in training": sum(row.answer not in answers for row in rows),
        "test questions whose image is in training": sum(row.image in images for row in rows),
    }
    published = _PUBLISHED | _PUBLISHED_SPLIT[rule]
    twins = {
        "test questions reworded in training": kinds["framed", True] if rule == "official" else 0,
        "test questions linked to one of training": sum(
            bool(question.link) and question.link in links for question in test
        ),
        "test questions asked word for word in training": sum(
            (row.image, row.question.lower()) in asked for row in rows
        ),
    }
    return [
        *(Count(name, count, published[name]) for name, count in counts.items()),
        *(Count(name, count) for name, count in twins.items()),
    ]


def _move_to_validation(rows: Sequence[Row], fraction: float, seed: int) -> list[Row]:
    """Move the questions about some training images to validation."""
    training = [row.image for row in rows if row.split == "train"]
    split_of_image = assign_splits(training, (fraction, 0), seed) if fraction else {}
    return [replace(row, split=split_of_image.get(row.image, "train")) if row.split == "train" else row for row in rows]


def check_vqa_rad(source: Path) -> VQARADFiles:
    """Check the layout without preparing anything.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.
        ValueError: if the JSON cannot be read.

    Example:
        >>> check_vqa_rad(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: no such folder: nowhere
    """
    files = find_vqa_rad(source)
    read_vqa_rad(files.records)
    return files


def prepare_vqa_rad(
    source: Path,
    output: Path,
    *,
    split: SplitRule = "official",
    val_fraction: float = 0.05,
    seed: int = 0,
    image_size: int = 512,
    cut_margins: bool = True,
    workers: int | None = None,
) -> Summary:
    """Prepare VQA-RAD.

    The published figures are counted first; then a small validation split is taken out of training, image by image.

    Args:
        source: see :func:`find_vqa_rad`.
        output: folder of the corpus to write.
        split: ``official``, or ``strict``, which leaves the framed rewordings of test questions out of training.
        val_fraction: share of the training questions for validation; 0 leaves training whole.
        seed: seed of the images for validation.
        image_size: side of the square images in pixels.
        cut_margins: cut bright and dark margins off the images.
        workers: how many images are worked on at once, by default one per core.

    Raises:
        FileNotFoundError: if a part of the dataset is missing.
        ValueError: if the JSON is broken or no row can be used.
        FileExistsError: if ``output`` holds something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> record = {"qid": 1, "phrase_type": "freeform", "image_name": "synpic1.jpg", "image_organ": "CHEST"}
        >>> record |= {"question": "Is there a fracture?", "answer": "No", "answer_type": "CLOSED"}
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "VQA_RAD Image Folder").mkdir()
        ...     Image.new("L", (32, 32), 128).save(folder / "VQA_RAD Image Folder" / "synpic1.jpg")
        ...     _ = (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps([record]))
        ...     prepare_vqa_rad(folder, folder / "corpus", image_size=32).rows
        {'train': 1}
    """
    files = find_vqa_rad(source)
    questions = read_vqa_rad(files.records)
    chosen = [question.row for question in choose_questions(questions, split)]
    rows = _move_to_validation(chosen, val_fraction, seed)
    counts = [
        *count_questions(questions, split),
        Count("training questions moved to validation", sum(row.split == "val" for row in rows)),
    ]
    info = CorpusInfo(SOURCE, False, image_size, [], cut_margins=cut_margins)
    with image_folder(files.images, output, {row.image for row in rows}.__contains__) as images:
        rows = [replace(row, image=str(images / row.image)) if row.image else row for row in rows]
        write_corpus(output, rows, info, workers)
        return finish(output, counts)
