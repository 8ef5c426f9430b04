"""The data modules that read a prepared corpus of image-report pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvill_pl import MIMICCXRDataModule, OpenIDataModule
from medvill_pl.batch import FINDINGS
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.prepared import PreparedDataModule

SIZE = 32
INFO = CorpusInfo("mimic-cxr", True, SIZE, list(FINDINGS))
MODULES = {"mimic-cxr": MIMICCXRDataModule, "open-i": OpenIDataModule}


def write(folder: Path, info: CorpusInfo) -> Path:
    """A corpus of six pairs, three of them for validation."""
    image = folder / "image.png"
    Image.fromarray(np.full((SIZE, SIZE), 99, np.uint8)).save(image)
    rows = [
        Row(
            f"study {number}",
            f"patient {number}",
            "train" if number < 3 else "val",
            str(image),
            f"{'Mild' if number % 2 else 'No'} pulmonary edema.",
            "AP",
            tuple(number % 2 if finding == "Edema" else None for finding in FINDINGS),
        )
        for number in range(6)
    ]
    write_corpus(folder / "corpus", rows, info)
    return folder / "corpus"


def make_data(corpus: Path, source: str = "mimic-cxr") -> PreparedDataModule:
    return MODULES[source](
        str(corpus), tokenizer="synthetic", image_size=SIZE, batch_size=3, negatives="labels", num_workers=0
    )


@pytest.mark.parametrize("source", MODULES)
def test_batches_of_a_prepared_corpus(source: str, tmp_path: Path) -> None:
    data = make_data(write(tmp_path, replace(INFO, source=source)), source)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(batch["id"]) == ["study 0", "study 1", "study 2"]
    assert batch["image"].shape == (3, 1, SIZE, SIZE)
    assert (batch["image"] == 99).all()
    edema = batch["labels"][:, FINDINGS.index("Edema")]
    assert edema.tolist() == [int(name[-1]) % 2 for name in batch["id"]]
    assert batch["labels"].isnan().sum() == 3 * 13
    (batch,) = data.val_dataloader()
    assert sorted(batch["id"]) == ["study 3", "study 4", "study 5"]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("source", "expected"), [("mimic-cxr", True), ("open-i", False)])
def test_whether_it_is_credentialed_is_the_datasets_not_the_corpus_word(
    source: str, expected: bool, marked: bool, tmp_path: Path
) -> None:
    data = make_data(write(tmp_path, replace(INFO, source=source, credentialed=marked)), source)
    assert data.name == source
    assert data.is_credentialed is expected


@pytest.mark.parametrize(("asked", "there"), [("mimic-cxr", "open-i"), ("open-i", "a table")])
def test_corpus_of_another_source_is_refused(asked: str, there: str, tmp_path: Path) -> None:
    corpus = write(tmp_path, replace(INFO, source=there))
    with pytest.raises(ValueError, match=f"{corpus} was prepared from {there}, not from {asked}"):
        make_data(corpus, asked)


def test_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no corpus"):
        make_data(tmp_path)
