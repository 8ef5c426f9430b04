"""Pictures of what is in one corpus, or in two side by side (MedViLL, Fig. 5)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvill_pl import html
from medvill_pl.batch import FINDINGS, SPLITS
from medvill_pl.preparation.summary import FILE, REPORTS, Summary, read_rows, read_summary, text_of, view_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#3b6ea5", "#d08a3c")
_THUMBNAIL = 192


def read_description(folder: Path) -> Summary:
    """The summary of a folder: counted from its rows where it is a corpus, else the one that was written with it.

    Args:
        folder: a corpus, or the output of a preparation of reports without images.

    Raises:
        FileNotFoundError: if it is neither.

    Example:
        >>> import tempfile
        >>> from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as name:
        ...     Image.new("L", (32, 32), 128).save(f"{name}/1.png")
        ...     rows = [Row("1", "1", "train", f"{name}/1.png", "The lungs are clear.", view="AP")]
        ...     _ = write_corpus(Path(name) / "corpus", rows, CorpusInfo("one row", False, 32, []))
        ...     read_description(Path(name) / "corpus").views
        {'train': {'AP': 1}}
    """
    if not (folder / "corpus.json").is_file() and (folder / REPORTS).is_file():
        return Summary.read(folder)
    written = Summary.read(folder) if (folder / FILE).is_file() else None
    return read_summary(folder, written.counts if written else ())


def describe(folders: Sequence[Path], output: Path, num_images: int = 24) -> list[Summary]:
    """Draw one or two corpora on a page: labels side by side, lengths of texts, splits and views, and some images.

    Args:
        folders: folders of corpora, or of reports without images.
        output: the page to write, ``.html``.
        num_images: images of each corpus on its contact sheet.

    Returns:
        The summary of each.

    Raises:
        FileNotFoundError: if a folder is neither.
        ValueError: if there are more than two, or the page is no ``.html``.

    Example:
        >>> describe([Path("corpora/open-i")], Path("page.pdf"))
        Traceback (most recent call last):
        ValueError: page.pdf must end in .html
    """
    if not 1 <= len(folders) <= len(_COLOURS):
        raise ValueError(f"one or two corpora can be described, not {len(folders)}")
    if output.suffix != ".html":
        raise ValueError(f"{output} must end in .html")
    summaries = [read_description(folder) for folder in folders]
    names = [_name(summary, folder) for summary, folder in zip(summaries, folders, strict=True)]
    parts = [_notice(summaries), *_numbers(names, summaries)]
    if any(_positives(summary) for summary in summaries):
        parts += [html.heading("Labels"), html.drawing(label_figure(names, summaries), "Rows that are positive.")]
        parts += [html.table(["finding", *names], _label_rows(summaries))]
    lengths = [_lengths(folder) for folder in folders]
    parts += [html.heading("Lengths of texts"), html.drawing(length_figure(names, lengths), "Words of a text.")]
    for name, folder in zip(names, folders, strict=True):
        if thumbnails := choose_images(folder, num_images):
            parts += [
                html.heading(f"Images of {name}"),
                html.drawing(contact_sheet(thumbnails), "Evenly spaced over all rows."),
            ]
    html.write_page(output, " and ".join(names), parts)
    return summaries


def _name(summary: Summary, folder: Path) -> str:
    return f"{summary.source} ({folder.name})"


def _notice(summaries: Sequence[Summary]) -> str:
    if any(summary.credentialed for summary in summaries):
        return html.paragraph("This page shows credentialed images: it must not be shared.")
    return html.paragraph("What is in the corpus, counted from its rows.", is_note=True)


def _numbers(names: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    rows = []
    for name, summary in zip(names, summaries, strict=True):
        for split, views in summary.views.items():
            counts = f"{summary.rows[split]:,}", f"{summary.patients[split]:,}"
            rows.append([name, split, *counts, view_counts(views), f"{summary.words[split]['median']:g}"])
    header = ["corpus", "split", "rows", "patients", "views", "median words"]
    leaks = [
        [name, split, f"{shared['patients']:,}", f"{shared['images']:,}", f"{shared['texts']:,}"]
        for name, summary in zip(names, summaries, strict=True)
        for split, shared in summary.shared.items()
    ]
    shared_header = ["corpus", "split", "patients", "rows with an image", "rows with a text"]
    parts = [html.heading("Splits and views"), html.table(header, rows)]
    return [*parts, html.heading("Shared with training"), html.table(shared_header, leaks)] if leaks else parts


def _positives(summary: Summary) -> dict[str, float]:
    """The share of all rows that is positive, by finding that the corpus labels."""
    total = sum(summary.rows.values())
    return {
        finding: sum(labels[finding]["positive"] for labels in summary.labels.values()) / total
        for finding in FINDINGS
        if all(finding in labels for labels in summary.labels.values())
    }


def _label_rows(summaries: Sequence[Summary]) -> list[list[str]]:
    shares = [_positives(summary) for summary in summaries]
    return [
        [finding, *(f"{share[finding]:.1%}" if finding in share else "not labelled" for share in shares)]
        for finding in FINDINGS
    ]


def label_figure(names: Sequence[str], summaries: Sequence[Summary]) -> Figure:
    """Draw the share of positive rows by finding, one bar per corpus (MedViLL, Fig. 5).

    Args:
        names: what the legend calls each corpus.
        summaries: the summary of each.

    Example:
        >>> from medvill_pl.preparation.summary import TextRow, summarise_texts
        >>> row = TextRow("train", "CXR1", "The lungs are clear.", (1,) + (None,) * 13)
        >>> figure = label_figure(["open-i"], [summarise_texts("open-i", False, [row], {}, [])])
        >>> figure.axes[0].get_xlabel()
        'positive, % of rows'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(summaries)
    positions = np.arange(len(FINDINGS))
    for number, (name, summary) in enumerate(zip(names, summaries, strict=True)):
        shares = _positives(summary)
        values = [100 * shares.get(finding, 0.0) for finding in FINDINGS]
        bars = axis.barh(positions + (number + 0.5) * height - 0.4, values, height, label=name, color=_COLOURS[number])
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axis.set_yticks(positions, FINDINGS)
    axis.invert_yaxis()
    axis.set_xlabel("positive, % of rows")
    axis.margins(x=0.08)
    _tidy(axis, names)
    return figure


def length_figure(names: Sequence[str], lengths: Sequence[NDArray[np.int64]]) -> Figure:
    """Draw how long texts are, in words; the longest hundredth is gathered in the last bar.

    Args:
        names: what the legend calls each corpus.
        lengths: words of each text of a corpus, int64, shape ``(N,)``.

    Example:
        >>> figure = length_figure(["mine"], [np.array([12, 30, 31])])
        >>> figure.axes[0].get_ylabel()
        '% of texts'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    end = max(int(np.percentile(words, 99)) for words in lengths) + 1
    edges = list(range(0, end + (step := -(-end // 40)) + 1, step))  # bars of equal width
    for number, (name, words) in enumerate(zip(names, lengths, strict=True)):
        shares = np.full(len(words), 100 / len(words))
        axis.hist(
            np.minimum(words, end),
            edges,
            histtype="stepfilled",
            weights=shares,
            alpha=0.55,
            label=name,
            color=_COLOURS[number],
        )
    axis.set_xlabel("words")
    axis.set_ylabel("% of texts")
    _tidy(axis, names)
    return figure


def _tidy(axis: Axes, names: Sequence[str]) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axis.legend(frameon=False, loc="lower right" if axis.yaxis_inverted() else "upper right")


def _lengths(folder: Path) -> NDArray[np.int64]:
    if not (folder / "corpus.json").is_file():
        with open(folder / REPORTS, newline="", encoding="utf-8") as file:
            return np.array([len(row["report"].split()) for row in csv.DictReader(file)])
    columns = ("report", "question", "answer")
    return np.array([len(text_of(row).split()) for split in SPLITS for row in read_rows(folder, split, columns)])


class Thumbnail(NamedTuple):
    """An image of the contact sheet.

    Attributes:
        pixels: uint8, shape ``(H, W)``.
        caption: what stands above it.

    Example:
        >>> Thumbnail(np.zeros((192, 192), np.uint8), "train AP").caption
        'train AP'
    """

    pixels: NDArray[np.uint8]
    caption: str


def choose_images(folder: Path, number: int) -> list[Thumbnail]:
    """Take images evenly spaced over all rows of a corpus; none of a folder without images.

    Args:
        folder: the corpus.
        number: how many; all of them where there are fewer.

    Example:
        >>> import tempfile
        >>> from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as name:
        ...     Image.new("L", (32, 32), 128).save(f"{name}/1.png")
        ...     rows = [Row(f"row {index}", "1", "train", f"{name}/1.png", "Clear lungs.") for index in range(5)]
        ...     _ = write_corpus(Path(name) / "corpus", rows, CorpusInfo("five rows", False, 32, []))
        ...     [image.caption.split(chr(10))[1] for image in choose_images(Path(name) / "corpus", 3)]
        ['row 0', 'row 2', 'row 4']
    """
    if not (folder / "corpus.json").is_file():
        return []
    total = sum(1 for split in SPLITS for _ in read_rows(folder, split, ("view",)))
    chosen = set(np.linspace(0, total - 1, min(number, total)).round().astype(int).tolist())
    thumbnails: list[Thumbnail] = []
    rows = ((split, row) for split in SPLITS for row in read_rows(folder, split, ("id", "view", "image")))
    for index, (split, row) in enumerate(rows):
        if index in chosen:
            image = Image.open(io.BytesIO(row["image"])).convert("L")
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            caption = f"{split} {row['view']}".strip() + f"\n{row['id'][:24]}"
            thumbnails.append(Thumbnail(np.asarray(image), caption))
    return thumbnails


def contact_sheet(thumbnails: Sequence[Thumbnail], columns: int = 6) -> Figure:
    """Draw images in rows, each with its caption.

    Args:
        thumbnails: the images; at least one.
        columns: images of a row.

    Example:
        >>> figure = contact_sheet([Thumbnail(np.zeros((8, 8), np.uint8), "train AP")] * 3, columns=2)
        >>> [axis.get_title() for axis in figure.axes]
        ['train AP', 'train AP', 'train AP', '']
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(thumbnails))
    rows = -(-len(thumbnails) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows), layout="constrained")
    for axis in figure.subplots(rows, columns, squeeze=False).ravel():
        axis.axis("off")
    for axis, thumbnail in zip(figure.axes, thumbnails, strict=False):
        axis.imshow(thumbnail.pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axis.set_title(thumbnail.caption, fontsize=6.5)
    return figure
