"""Tests of the page of a search."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from PIL import Image, ImageOps

from medvill_pl import (
    FINDINGS,
    FolderDataModule,
    PairsDataModule,
    PretrainingTask,
    RetrievalTask,
    SearchPage,
    SyntheticDataModule,
)
from medvill_pl.models.medvill import BackboneConfig

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def data() -> SyntheticDataModule:
    return SyntheticDataModule(num_train=24, num_val=8, num_test=9, image_size=64, batch_size=4, negatives="labels")


def search(task: RetrievalTask, data: Any, path: Path, make_trainer: MakeTrainer, **numbers: int) -> str:
    make_trainer(callbacks=[SearchPage(str(path), **numbers)]).predict(task, datamodule=data)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def frames(html: str) -> list[str]:
    return re.findall(r'<div class="result(?: (\w+))?">', html)


def positive(labels: Any) -> set[str]:
    return {finding for finding, label in zip(FINDINGS, labels, strict=True) if label == 1}


def test_search_page_marks_results_with_the_findings_of_the_query(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    examples = data.examples("test")
    query = examples.reports[4]
    html = search(
        RetrievalTask(tiny, query_text=query), data, tmp_path / "p.html", make_trainer, num_best=6, num_worst=2
    )
    titles = re.findall(r"<strong>(\d+)\. (\S+) \((0\.\d+)\)</strong>", html)
    assert [int(rank) for rank, _, _ in titles] == [1, 2, 3, 4, 5, 6, 8, 9]
    probabilities = [float(probability) for _, _, probability in titles]
    assert probabilities == sorted(probabilities, reverse=True)
    right = [
        positive(examples.labels[examples.ids.index(name)]) == positive(examples.labels[4]) for _, name, _ in titles
    ]
    assert frames(html) == ["good" if each else "bad" for each in right]
    in_all = sum(positive(labels) == positive(examples.labels[4]) for labels in examples.labels)
    assert f"{sum(right[:6])} of the first 6, and {in_all} of all 9" in html
    assert html.count("data:image/png") == 8
    assert "does not have this text" not in html
    assert "credentialed" not in html


def test_findings_of_a_typed_query_are_read_by_the_labeler(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    html = search(RetrievalTask(tiny, query_text="Small left effusion."), data, tmp_path / "p.html", make_trainer)
    assert "what the rule-based labeler reads in it" in html
    assert re.search(r'Small left effusion.*<span class="tag right">Pleural Effusion</span></p></div></div>', html)


@pytest.mark.parametrize("is_known", [True, False])
def test_findings_of_a_query_image_are_known_if_the_corpus_has_it(
    is_known: bool, tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    pixels = data.examples("test").image(2)[0].numpy().copy()
    pixels[0, 0] += not is_known
    Image.fromarray(pixels).save(tmp_path / "query.png")
    task = RetrievalTask(tiny, query_image=str(tmp_path / "query.png"))
    html = search(task, data, tmp_path / "p.html", make_trainer)
    assert ("its findings are not known" in html) != is_known
    assert ("good" in frames(html)) == is_known  # itself, at least
    assert is_known or set(frames(html)) == {""}
    assert html.count("data:image/png") == 1 + 9  # 8 best, one from the end


@pytest.mark.parametrize("cut_margins", [True, False])
def test_query_image_loses_its_margins_as_the_images_searched_did(
    cut_margins: bool, tiny: BackboneConfig, make_pairs: Callable[..., Path], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    table = make_pairs(24)
    for path in (table.parent / "images").iterdir():
        with Image.open(path) as image:
            framed = ImageOps.expand(image, border=12, fill=255)
        framed.save(path)
    data = PairsDataModule(
        str(table),
        patient_column="patient",
        tokenizer="synthetic",
        image_size=64,
        num_workers=0,
        cut_margins=cut_margins,
    )
    data.prepare_data()
    own = int(data.examples("test").ids[0]) - 1
    task = RetrievalTask(tiny, query_image=str(table.parent / f"images/{own}.png"))
    html = search(task, data, tmp_path / "p.html", make_trainer)
    assert "its findings are not known" not in html
    assert (task.query_pixels[2:-2, 32].max() == 255) == (not cut_margins)  # type: ignore[index]


def test_search_page_of_a_credentialed_folder_says_so_and_marks_nothing(
    tiny: BackboneConfig, make_pairs: Callable[..., Path], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    folder = FolderDataModule(
        str(make_pairs(3).parent / "images"), tokenizer="synthetic", image_size=64, max_tokens=120, num_workers=0
    )
    html = search(RetrievalTask(tiny, query_text="Edema."), folder, tmp_path / "p.html", make_trainer)
    assert "credentialed corpus: keep it on this machine" in html
    assert "The corpus has no labels" in html
    assert frames(html) == ["", "", ""]


def test_findings_that_the_corpus_does_not_label_do_not_count(
    tiny: BackboneConfig, make_pairs: Callable[..., Path], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    pairs = PairsDataModule(str(make_pairs(12)), tokenizer="synthetic", image_size=64, max_tokens=120, num_workers=0)
    # The table labels edema and cardiomegaly; an effusion beside them must not turn every result red.
    query = "Pulmonary edema and a pleural effusion."
    pairs.prepare_data()
    html = search(RetrievalTask(tiny, query_text=query), pairs, tmp_path / "p.html", make_trainer)
    assert 'class="tag right">Edema' in html
    assert "Pleural Effusion" not in html


def test_without_a_query_there_is_no_search_page(
    tiny: BackboneConfig,
    data: SyntheticDataModule,
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    assert search(RetrievalTask(tiny), data, tmp_path / "p.html", make_trainer) == ""
    make_trainer(callbacks=[SearchPage(str(tmp_path / "p.html"))]).predict(PretrainingTask(tiny), datamodule=data)
    assert not (tmp_path / "p.html").exists()
