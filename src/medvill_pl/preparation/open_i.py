"""Open-I (Indiana University chest X-rays), prepared."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from tqdm import tqdm

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.corpus.schema import Labels
from medvill_pl.data.open_i import SOURCE
from medvill_pl.data.pairs import SPLIT_NAMES, assign_splits
from medvill_pl.files import write_atomically
from medvill_pl.labeler.base import Labeler
from medvill_pl.preparation.labels import label_texts
from medvill_pl.preparation.open_i_views import (
    FRONTAL_VIEWS,
    IMAGE_SUFFIXES,
    frontal_images,
    id_of_file,
    read_views,
    view_of,
)
from medvill_pl.preparation.sections import OpenIReport, read_open_i_xml
from medvill_pl.preparation.sources import MAX_TEXT, find, find_images, image_folder, read_csv, read_members
from medvill_pl.preparation.summary import REPORTS, Count, Summary, TextRow, finish, summarise_texts

LabelSource = Literal["report", "mesh"]
_PUBLISHER = "https://openi.nlm.nih.gov/faq#collection"
_IMAGES = ["NLMCXR_png.tgz", "NLMCXR_png*", "NLMCXR_dcm*"]
_PUBLISHED = {"reports": 3955, "reports with images": 3851, "images": 7470}
_PAPER_PAIRS = 3547
_PROPORTIONS = {"train": 2483, "val": 710, "test": 354}
"""Pairs of each split in the released code."""


class OpenIFiles(NamedTuple):
    """Where the parts of the dataset lie.

    Attributes:
        reports: ``NLMCXR_reports.tgz`` or the unpacked folder of XML files.
        images: the folder of images or their archive; None where only the reports are read.
        views: table of views, or None.

    Example:
        >>> OpenIFiles(Path("NLMCXR_reports.tgz"), images=None, views=None).reports.name
        'NLMCXR_reports.tgz'
    """

    reports: Path
    images: Path | None
    views: Path | None


def find_open_i(source: Path, *, view_table: Path | None = None, reports_only: bool = False) -> OpenIFiles:
    """Find the parts of Open-I.

    Args:
        source: folder with the reports and the images, each as the archive or unpacked, and perhaps with a table of
            views: Kaggle's ``indiana_projections.csv`` or the DICOM tags as ``nlmcxr_dicom_metadata.csv(.gz)``.
        view_table: the table of views, where it lies elsewhere.
        reports_only: look for no images.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("NLMCXR_reports.tgz", "NLMCXR_png.tgz"):
        ...         _ = Path(folder, name).write_bytes(b"")
        ...     files = find_open_i(Path(folder))
        >>> files.reports.name, files.images.name, files.views
        ('NLMCXR_reports.tgz', 'NLMCXR_png.tgz', None)
    """
    reports = find(source, ["NLMCXR_reports.tgz", "ecgen-radiology", "NLMCXR_reports*"], _PUBLISHER)
    if view_table is not None and not view_table.is_file():
        raise FileNotFoundError(f"no such table of views: {view_table}")
    if view_table is None:
        try:
            view_table = find(source, ["indiana_projections.csv", "nlmcxr_dicom_metadata.csv*"], _PUBLISHER)
        except FileNotFoundError:
            view_table = None
    images = None if reports_only else find_images(source, "*_IM-*.png", _IMAGES, _PUBLISHER)
    return OpenIFiles(reports, images, view_table)


@dataclass(frozen=True)
class _BrokenFile:
    name: str
    reason: str


def read_open_i_reports(reports: Path) -> tuple[list[OpenIReport], list[_BrokenFile]]:
    """Read all XML files of the archive or folder, by number, and those that cannot be read, with the reason.

    Raises:
        ValueError: if the archive is broken or a path in it leaves its folder.
        FileNotFoundError: if there is no XML file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "1.xml").write_text('<eCitation><uId id="CXR1"/></eCitation>')
        ...     reports, broken = read_open_i_reports(Path(folder))
        >>> reports[0].uid, broken
        ('CXR1', [])
    """
    by_uid: dict[str, OpenIReport] = {}
    broken = []
    for name, content in tqdm(_xml_files(reports), desc="reports", unit="file", disable=None):
        try:
            report = read_open_i_xml(content)
            if report.uid in by_uid:
                raise ValueError(f"the report {report.uid} occurs twice")
            by_uid[report.uid] = report
        except ValueError as error:
            broken.append(_BrokenFile(name, str(error)))
    if not by_uid and not broken:
        raise FileNotFoundError(f"{reports} holds no XML file: get it from {_PUBLISHER}")
    reports_by_number = sorted(by_uid.values(), key=lambda report: int(report.uid[3:]))
    return reports_by_number, sorted(broken, key=lambda file: file.name)


def _xml_files(reports: Path) -> Iterator[tuple[str, bytes]]:
    if reports.is_dir():
        for path in sorted(reports.rglob("*.xml")):
            yield path.name, path.read_bytes() if path.stat().st_size <= MAX_TEXT else b""
        return
    for name, _, content in read_members(reports, lambda name: name.endswith(".xml")):
        yield PurePosixPath(name).name, content


def _split_reports(reports: Sequence[OpenIReport], split_file: Path | None, seed: int) -> dict[str, Split]:
    """The split of each report; a report is a patient. Absent are those that a split file does not name."""
    if split_file is None:
        total = sum(_PROPORTIONS.values())
        shares = _PROPORTIONS["val"] / total, _PROPORTIONS["test"] / total
        return assign_splits([report.uid for report in reports], shares, seed)
    splits: dict[str, Split] = {}
    for row in read_csv(split_file, ("uid", "split")):
        uid = f"CXR{row['uid'].removeprefix('CXR')}"
        if row["split"].lower() not in SPLIT_NAMES:
            raise ValueError(f"{split_file}: the split of {uid} is {row['split']!r}, not train, val or test")
        if splits.setdefault(uid, split := SPLIT_NAMES[row["split"].lower()]) != split:
            raise ValueError(f"{split_file} puts {uid} into two splits")
    return splits


@dataclass(frozen=True)
class _Reports:
    """The reports with all that does not need the images."""

    reports: list[OpenIReport]
    broken: list[_BrokenFile]
    splits: dict[str, Split]
    labels: list[Labels]
    views: dict[str, str]

    def text_of(self, report: OpenIReport) -> str:
        if report.uid not in self.splits:
            raise ValueError("the split file does not name the report")
        return report.text

    def counts(self) -> list[Count]:
        with_images = [report for report in self.reports if report.images]
        published = {
            "reports": len(self.reports) + len(self.broken),
            "reports with images": len(with_images),
            "images": sum(len(report.images) for report in with_images),
        }
        usable = [report for report in with_images if frontal_images(report, self.views) and _has_text(report)]
        frontal = {image for image, view in self.views.items() if view in FRONTAL_VIEWS}
        silent = [report for report in with_images if frontal.isdisjoint(report.images)]
        return [
            *(Count(name, count, _PUBLISHED[name]) for name, count in published.items()),
            Count("reports without a frontal image by the view table alone", len(silent)),
            Count(f"reports with text and a frontal image (the paper counts {_PAPER_PAIRS:,} pairs)", len(usable)),
        ]


def _has_text(report: OpenIReport) -> bool:
    try:
        return bool(report.text)
    except ValueError:
        return False


def _read(
    files: OpenIFiles, split_file: Path | None, labels: LabelSource, seed: int, labeler: Labeler | None
) -> _Reports:
    reports, broken = read_open_i_reports(files.reports)
    views = read_views(files.views) if files.views else {}
    splits = _split_reports(reports, split_file, seed)
    texts = [report.mesh_input if labels == "mesh" else report.labeler_input for report in reports]
    return _Reports(reports, broken, splits, label_texts(texts, labeler), views)


def _rows(reports: _Reports, paths: Mapping[str, str], one_image: bool) -> Iterator[Row]:
    for report, labels in zip(reports.reports, reports.labels, strict=True):
        text, rejection = "", ""
        images = frontal_images(report, reports.views)
        try:
            if not report.images:
                raise ValueError("the report has no image")
            if not images:
                raise ValueError("the report has no frontal image")
            text = reports.text_of(report)
        except ValueError as error:
            rejection = str(error)
        split = reports.splits.get(report.uid, "train")
        for image in (images[:1] if one_image else images) or [report.uid]:
            path = paths.get(image, f"{image}.png")
            yield Row(image, report.uid, split, path, text, view_of(image, reports.views), labels, rejection)
    for file in reports.broken:
        yield Row(file.name, file.name, "train", "", "", rejection=file.reason)


def check_open_i(source: Path, *, view_table: Path | None = None, reports_only: bool = False) -> OpenIFiles:
    """Check the layout without preparing anything.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.
        ValueError: if the reports or the table of views cannot be read.

    Example:
        >>> check_open_i(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: no such folder: nowhere
    """
    files = find_open_i(source, view_table=view_table, reports_only=reports_only)
    if files.views:
        read_views(files.views)
    if next(_xml_files(files.reports), None) is None:
        raise FileNotFoundError(f"{files.reports} holds no XML file: get it from {_PUBLISHER}")
    return files


def prepare_open_i(
    source: Path,
    output: Path,
    *,
    view_table: Path | None = None,
    one_image: bool = True,
    split_file: Path | None = None,
    seed: int = 0,
    labels: LabelSource = "report",
    labeler: Labeler | None = None,
    image_size: int = 512,
    cut_margins: bool = True,
    workers: int | None = None,
) -> Summary:
    """Prepare Open-I: frontal images with the longer of Findings and Impression.

    A report is a patient, so splits by report are patient-disjoint. An interrupted run goes on where it stopped.

    Args:
        source: see :func:`find_open_i`.
        output: folder of the corpus to write.
        view_table: see :func:`find_open_i`.
        one_image: take one image per report; False takes all frontal ones.
        split_file: a ``.csv`` with ``uid`` and ``split``; by default 2,483 : 710 : 354 by the seed.
        seed: seed of the split.
        labels: what is labelled: the ``report`` (impression and findings, as the original labeler was given), or the
            ``mesh`` annotations, as in the paper.
        labeler: what labels; by default the rule-based CheXpert labeler.
        image_size: side of the square images in pixels.
        cut_margins: cut bright and dark margins off the images.
        workers: how many images are worked on at once, by default one per core.

    Raises:
        FileNotFoundError: if a part of the dataset is missing.
        ValueError: if a table or an archive is broken or no row can be used.
        FileExistsError: if ``output`` holds something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> xml = (
        ...     '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">Mild edema.</AbstractText>'
        ...     '<parentImage id="CXR1_IM-0001-1001"/></eCitation>'
        ... )
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "ecgen-radiology").mkdir()
        ...     _ = (folder / "ecgen-radiology" / "1.xml").write_text(xml)
        ...     Image.new("L", (32, 32), 128).save(folder / "CXR1_IM-0001-1001.png")
        ...     summary = prepare_open_i(folder, folder / "corpus", image_size=32)
        >>> summary.views, summary.labels["train"]["Edema"]["positive"]
        ({'train': {'frontal': 1}}, 1)
    """
    files = find_open_i(source, view_table=view_table)
    assert files.images is not None
    reports = _read(files, split_file, labels, seed, labeler)
    frontal = {image for report in reports.reports for image in frontal_images(report, reports.views)}
    info = CorpusInfo(SOURCE, False, image_size, list(FINDINGS), cut_margins=cut_margins)
    with image_folder(files.images, output, lambda name: id_of_file(name) in frontal) as folder:
        images = (path for path in folder.rglob("*_IM-*") if path.suffix.lower() in IMAGE_SUFFIXES)
        rows = list(_rows(reports, {id_of_file(path.name): str(path) for path in images}, one_image))
        write_corpus(output, rows, info, workers)
        return finish(output, reports.counts())


def read_open_i_statistics(
    source: Path,
    output: Path,
    *,
    split_file: Path | None = None,
    seed: int = 0,
    labels: LabelSource = "report",
    labeler: Labeler | None = None,
) -> Summary:
    """Label the reports alone, without images: ``reports.csv`` and ``summary.json`` in the output folder.

    Args:
        source: folder with the reports.
        output: folder to write to; made where it is not there.
        split_file: see :func:`prepare_open_i`.
        seed: see :func:`prepare_open_i`.
        labels: see :func:`prepare_open_i`.
        labeler: see :func:`prepare_open_i`.

    Raises:
        FileNotFoundError: if the reports are missing.
        ValueError: if their archive is broken.
        FileExistsError: if the output folder holds a corpus.

    Example:
        >>> import tempfile
        >>> xml = '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">Mild edema.</AbstractText></eCitation>'
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "ecgen-radiology").mkdir()
        ...     _ = (folder / "ecgen-radiology" / "1.xml").write_text(xml)
        ...     read_open_i_statistics(folder, folder / "texts").rows
        {'train': 1}
    """
    if (output / "corpus.json").exists():
        raise FileExistsError(f"{output} holds a corpus: choose another folder for the reports alone")
    reports = _read(find_open_i(source, reports_only=True), split_file, labels, seed, labeler)
    rows, rejected = [], Counter(file.reason.split(":")[0] for file in reports.broken)
    for report, states in zip(reports.reports, reports.labels, strict=True):
        try:
            text = reports.text_of(report)
        except ValueError as error:
            rejected[str(error)] += 1
            continue
        rows.append(TextRow(reports.splits[report.uid], report.uid, text, states))
    if not rows:
        raise ValueError(f"no report of {source} can be used ({next(iter(rejected))})")
    summary = summarise_texts(SOURCE, False, rows, dict(rejected.most_common()), reports.counts()[:3])
    output.mkdir(parents=True, exist_ok=True)
    _write_texts(output / REPORTS, rows)
    summary.write(output)
    return summary


def _write_texts(path: Path, rows: Sequence[TextRow]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "split", "report", *FINDINGS])
    for row in rows:
        writer.writerow(
            [row.patient_id, row.split, row.text, *("" if state is None else state for state in row.labels)]
        )
    write_atomically(path, text.getvalue().encode())
