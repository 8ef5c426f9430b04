"""Pictures and tables of one corpus, or of two side by side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medvill_pl.batch import FINDINGS
from medvill_pl.preparation.describe import (
    choose_images,
    contact_sheet,
    describe,
    label_figure,
    length_figure,
    read_description,
)
from medvill_pl.preparation.open_i import prepare_open_i, read_open_i_statistics
from medvill_pl.preparation.vqa_rad import prepare_vqa_rad

Write = Callable[..., Path]


@pytest.fixture
def corpus(write_open_i: Write, tmp_path: Path) -> Path:
    prepare_open_i(write_open_i(tmp_path / "raw", 20), tmp_path / "open-i", image_size=32)
    return tmp_path / "open-i"


def test_page_of_two_corpora(corpus: Path, write_vqa_rad: Write, tmp_path: Path) -> None:
    prepare_vqa_rad(write_vqa_rad(tmp_path / "vqa"), tmp_path / "questions", image_size=32)
    output = tmp_path / "pages" / "both.html"
    first, second = describe([corpus, tmp_path / "questions"], output)
    assert (first.source, second.source) == ("open-i", "vqa-rad")
    assert first.counts[0].name == "reports"
    html = output.read_text()
    names = ("open-i (open-i)", "vqa-rad (questions)")
    for text in (*names, "Cardiomegaly", "not labelled", "50.0%", "<svg", "Images of"):
        assert text in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "credentialed" not in html


def test_page_of_credentialed_images_says_so(write_mimic_cxr: Callable[..., None], tmp_path: Path) -> None:
    from medvill_pl.preparation.mimic_cxr import prepare_mimic_cxr

    write_mimic_cxr(tmp_path / "raw", 20, side=32)
    prepare_mimic_cxr(tmp_path / "raw", tmp_path / "corpus", image_size=32)
    describe([tmp_path / "corpus"], tmp_path / "page.html")
    assert "credentialed images: it must not be shared" in (tmp_path / "page.html").read_text()


def test_reports_alone_are_described(write_open_i: Write, tmp_path: Path) -> None:
    raw = write_open_i(tmp_path / "raw", 20, with_images=False)
    summary = read_open_i_statistics(raw, tmp_path / "texts")
    assert describe([tmp_path / "texts"], tmp_path / "page.html") == [summary]
    assert "Images of" not in (tmp_path / "page.html").read_text()
    assert choose_images(tmp_path / "texts", 5) == []


def test_bars_are_shares_of_all_rows(corpus: Path) -> None:
    summary = read_description(corpus)
    (axis,) = label_figure(["a", "b"], [summary, summary]).axes
    widths = [[bar.get_width() for bar in container] for container in axis.containers]
    assert widths[0] == widths[1]
    assert widths[0][FINDINGS.index("Cardiomegaly")] == pytest.approx(50)
    assert widths[0][FINDINGS.index("Fracture")] == 0
    assert [label.get_text() for label in axis.get_yticklabels()] == list(FINDINGS)


def test_lengths_are_shares_that_sum_to_all_texts() -> None:
    words = np.array([1, 2, 2, 3, 400] * 30)
    (axis,) = length_figure(["a"], [words]).axes
    corners = axis.patches[0].get_xy()
    widths, heights = np.diff(corners[:, 0]), corners[:-1, 1]
    assert (widths * heights)[widths > 0].sum() / widths[widths > 0].min() == pytest.approx(100)


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (7, 7), (50, 20)])
def test_images_are_spaced_over_all_splits(number: int, expected: int, corpus: Path) -> None:
    images = choose_images(corpus, number)
    assert len(images) == expected
    assert images[0].caption.startswith("train ")
    if number > 1:
        assert images[-1].caption.startswith("test ")
    sheet = contact_sheet(images, columns=3)
    assert sum(bool(axis.images) for axis in sheet.axes) == expected


def test_what_cannot_be_described_is_said(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        describe([tmp_path], tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"page\.png must end in \.html"):
        describe([corpus], tmp_path / "page.png")
    with pytest.raises(ValueError, match="one or two corpora"):
        describe([corpus] * 3, tmp_path / "page.html")
