"""Tests of the self-contained page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medvill_pl import html


class Tags(HTMLParser):
    """Fails on a tag that is closed without being open."""

    EMPTY = ("meta", "img", "use", "path", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    parts = [
        html.heading("Images & <words>"),
        html.paragraph("a < b", is_note=True),
        html.table(("figure", "value"), [("loss", 0.12345), ("pairs", 7)]),
        html.drawing(figure, "a line"),
        html.card(html.picture(image, 'an "image"'), html.paragraph("text")),
    ]
    path = tmp_path / "new" / "page.html"
    html.write_page(path, "Title", parts)
    content = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(content)
    assert tags.open == []
    for message in ("Images & <words>", "a < b", "0.123", "a line"):
        assert message in tags.text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', content)
    assert list(path.parent.iterdir()) == [path]


def test_result_is_framed_by_whether_its_findings_are_the_querys() -> None:
    image = np.zeros((8, 8), dtype=np.uint8)

    def frame(findings: list[str] | None, expected: list[str] | None) -> str:
        content = html.results([html.result(image, "1.", "a <report>", findings, expected)])
        tags = Tags()
        tags.feed(content)
        assert tags.open == []
        assert "a <report>" in tags.text
        return re.findall(r'class="result(?: (\w+))?"', content)[0]

    assert frame(["Edema", "Fracture"], ["Fracture", "Edema"]) == "good"
    assert frame(["Edema"], ["Fracture", "Edema"]) == "bad"
    assert frame([], []) == "good"  # empty equals empty
    assert frame([], ["Edema"]) == "bad"
    assert frame(["Edema"], None) == frame(None, ["Edema"]) == ""


def test_tags_tell_expected_findings_from_others() -> None:
    kinds = dict(re.findall(r'class="tag(?: (\w+))?">([^<]+)', html.tags(["Edema", "Fracture"], ["Edema"])))
    assert kinds == {"right": "Edema", "wrong": "Fracture"}
    assert 'class="tag wrong">no positive finding' in html.tags([], ["Edema"])
    assert 'class="tag right">no positive finding' in html.tags([], [])
    assert 'class="tag">Edema' in html.tags(["Edema"])
