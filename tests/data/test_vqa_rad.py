"""The data module of a prepared VQA-RAD."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvill_pl import VQARADDataModule
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus

SIZE = 32
ASKED = [
    ("is there edema?", "yes", "closed", "presence", "chest"),
    ("which lobe is affected?", "left lower", "open", "position", "chest"),
    ("is there bleeding?", "no", "closed", "presence", "head"),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three questions in training and in test, about three images; the last image of training is missing."""
    rows = []
    for split in ("train", "test"):
        for number, (question, answer, kind, asked, organ) in enumerate(ASKED):
            image = tmp_path / f"{split}-{number}.png"
            Image.fromarray(np.full((SIZE, SIZE), 50 * number, np.uint8)).save(image)
            texts = {"question": question, "answer": answer, "answer_type": kind, "question_type": asked}
            rows.append(Row(f"{split} {number}", f"p{number}", split, str(image), "", organ=organ, **texts))  # type: ignore[arg-type]
    (tmp_path / "train-2.png").unlink()
    write_corpus(tmp_path / "corpus", rows, CorpusInfo("vqa-rad", False, SIZE, []))
    return tmp_path / "corpus"


def make_data(corpus: Path, organ: str | None = None) -> VQARADDataModule:
    return VQARADDataModule(str(corpus), organ, "synthetic", image_size=SIZE, batch_size=4, num_workers=0)


def test_batches_are_questions_with_answers_and_images(corpus: Path) -> None:
    data = make_data(corpus)
    data.setup("test")
    (batch,) = data.test_dataloader()
    order = [int(name[-1]) for name in batch["id"]]
    assert sorted(order) == [0, 1, 2]
    for position, column in enumerate(("report", "answer", "answer_type", "question_type", "organ")):
        assert batch[column] == [ASKED[number][position] for number in order]  # type: ignore[literal-required]
    assert batch["image"][:, 0, 0, 0].tolist() == [50 * number for number in order]
    assert batch["labels"].isnan().all()


def test_questions_about_one_organ(corpus: Path) -> None:
    examples = make_data(corpus, "chest").examples("test")
    assert examples.ids == ["test 0", "test 1"]
    assert examples.questions == [ASKED[0][0], ASKED[1][0]]
    assert set(examples.organs) == {"chest"}
    assert len(examples.labels) == 2
    assert [int(examples.image(index)[0, 0, 0]) for index in range(2)] == [0, 50]
    (of_head,) = [int(make_data(corpus, "head").examples("test").image(0)[0, 0, 0])]
    assert of_head == 100


def test_organ_that_no_image_shows_is_refused_with_those_there_are(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"the test split of .* has no organ 'CHEST': choose one of chest, head"):
        make_data(corpus, "CHEST").examples("test")


def test_question_without_its_image_is_set_aside_and_named(corpus: Path) -> None:
    assert make_data(corpus).examples("train").ids == ["train 0", "train 1"]
    _, row = (corpus / "rejected.csv").read_text().splitlines()
    assert row.startswith("train 2,")
    assert "no such file" in row


def test_corpus_of_reports_is_refused(corpus: Path) -> None:
    info = (corpus / "corpus.json").read_text()
    (corpus / "corpus.json").write_text(info.replace("vqa-rad", "open-i"))
    with pytest.raises(ValueError, match="was prepared from open-i, not from vqa-rad"):
        make_data(corpus)
