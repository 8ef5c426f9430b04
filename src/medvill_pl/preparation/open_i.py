"""Open-I (Indiana University chest X-rays), prepared."""

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from tqdm import tqdm

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.pairs import SPLIT_NAMES, assign_splits
from medvill_pl.files import write_atomically
from medvill_pl.labeler.base import Labeler
from medvill_pl.preparation.labels import Labels, label_texts
from medvill_pl.preparation.sections import OpenIReport, image_id, read_open_i_xml
from medvill_pl.preparation.sources import MAX_TEXT, find, find_images, image_folder, read_csv, read_members
from medvill_pl.preparation.summary import REPORTS, Figure, Summary, TextRow, finish, summarise_texts

SOURCE = "open-i"
LabelSource = Literal["report", "mesh"]
_PUBLISHER = "https://openi.nlm.nih.gov/faq#collection"
_IMAGES = ["NLMCXR_png.tgz", "NLMCXR_png*", "NLMCXR_dcm*"]
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_PUBLISHED = {"reports": 3955, "reports with images": 3851, "images": 7470}
_PAPER_PAIRS = 3547
_PROPORTIONS = {"train": 2483, "val": 710, "test": 354}
"""Pairs a split in the released code."""
_NUMBER = re.compile(r"-(\d+)(?:-(\d+))?$")
FRONTAL = "frontal"
_FRONTAL = ("AP", "PA", FRONTAL)


class OpenIFiles(NamedTuple):
    """Where the parts of the dataset lie.

    Attributes:
        reports: ``NLMCXR_reports.tgz`` or the unpacked folder of XML files.
        images: the folder of images or their archive; None where only the reports are wanted.
        views: table of views, or None.
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
        FileNotFoundError: for the first part that is missing, with the place that has it.
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


def id_of_file(name: str) -> str:
    """The identifier of the image in a file of Open-I, Kaggle (``1_IM-0001-4001.dcm.png``) or the DICOM archive."""
    base = PurePosixPath(name).name
    while base.lower().endswith(_SUFFIXES):
        base = base.rpartition(".")[0]
    return image_id(base)


def read_views(table: Path) -> dict[str, str]:
    """Read a table of views: ``PA``, ``AP`` or ``frontal``, anything else, or nothing where it is silent.

    Raises:
        ValueError: if it has neither Kaggle's columns nor those of the DICOM tags.
    """
    with_projection = next(read_csv(table, ()), {}).keys() >= {"filename", "projection"}
    name, view = ("filename", "projection") if with_projection else ("imageid", "View Position")
    return {
        id_of_file(row[name]): FRONTAL if row[view].lower() == FRONTAL else row[view]
        for row in read_csv(table, (name, view))
    }


def is_frontal_by_name(image: str) -> bool:
    """Whether an image is frontal by its name, for want of a table.

    The name ends in the number of a series in thousands and that of the image in it. The first image of series 1
    (``1001``), of an unnumbered series (``0001``) and all of series 4 (``4001``, ``4004``: bedside films) are frontal;
    any other is not.

    Example:
        >>> is_frontal_by_name("CXR1900_IM-0584-1001"), is_frontal_by_name("CXR1900_IM-0584-2001")
        (True, False)
    """
    found = _NUMBER.search(image)
    number = int(found[2] or found[1]) if found else 0
    return number in (1, 1001) or 4000 <= number < 5000


def view_of(image: str, views: Mapping[str, str]) -> str:
    """``AP``, ``PA``, ``frontal`` or, where it is another view, the empty string.

    The table counts where it says something of the image, the name where it is silent.
    """
    told = views.get(image, "")
    if told:
        return told if told in _FRONTAL else ""
    return FRONTAL if is_frontal_by_name(image) else ""


def frontal_images(report: OpenIReport, views: Mapping[str, str]) -> list[str]:
    """The frontal images of a report, those first that are frontal by their name too."""
    frontal = [image for image in report.images if view_of(image, views)]
    return sorted(frontal, key=lambda image: (not is_frontal_by_name(image), image))


@dataclass(frozen=True)
class _Broken:
    name: str
    reason: str


def read_open_i_reports(reports: Path) -> tuple[list[OpenIReport], list[_Broken]]:
    """Read all XML files of the archive or folder, by number, and those that cannot be read, with the reason.

    Raises:
        ValueError: if the archive is broken or a path in it leaves its folder.
        FileNotFoundError: if there is no XML file.
    """
    read: dict[str, OpenIReport] = {}
    broken = []
    for name, content in tqdm(_xml_files(reports), desc="reports", unit="file", disable=None):
        try:
            report = read_open_i_xml(content)
            if report.uid in read:
                raise ValueError(f"the report {report.uid} occurs twice")
            read[report.uid] = report
        except ValueError as error:
            broken.append(_Broken(name, str(error)))
    if not read and not broken:
        raise FileNotFoundError(f"{reports} holds no XML file: get it from {_PUBLISHER}")
    return sorted(read.values(), key=lambda report: int(report.uid[3:])), sorted(broken, key=lambda one: one.name)


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
    broken: list[_Broken]
    splits: dict[str, Split]
    labels: list[Labels]
    views: dict[str, str]

    def text_of(self, report: OpenIReport) -> str:
        if report.uid not in self.splits:
            raise ValueError("the split file does not name the report")
        return report.text

    def figures(self) -> list[Figure]:
        with_images = [report for report in self.reports if report.images]
        counts = {
            "reports": len(self.reports) + len(self.broken),
            "reports with images": len(with_images),
            "images": sum(len(report.images) for report in with_images),
        }
        usable = [report for report in with_images if frontal_images(report, self.views) and _has_text(report)]
        silent = [
            report for report in with_images if not any(self.views.get(image) in _FRONTAL for image in report.images)
        ]
        return [
            *(Figure(name, count, _PUBLISHED[name]) for name, count in counts.items()),
            Figure("reports without a frontal image by the view table alone", len(silent)),
            Figure(f"reports with text and a frontal image (the paper counts {_PAPER_PAIRS:,} pairs)", len(usable)),
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


def _rows(read: _Reports, paths: Mapping[str, str], one_image: bool) -> Iterator[Row]:
    for report, labels in zip(read.reports, read.labels, strict=True):
        text, rejection = "", ""
        images = frontal_images(report, read.views)
        try:
            if not report.images:
                raise ValueError("the report has no image")
            if not images:
                raise ValueError("the report has no frontal image")
            text = read.text_of(report)
        except ValueError as error:
            rejection = str(error)
        split = read.splits.get(report.uid, "train")
        for image in (images[:1] if one_image else images) or [report.uid]:
            path = paths.get(image, f"{image}.png")
            yield Row(image, report.uid, split, path, text, view_of(image, read.views), labels, rejection)
    for one in read.broken:
        yield Row(one.name, one.name, "train", "", "", rejection=one.reason)


def check_open_i(source: Path, *, view_table: Path | None = None, reports_only: bool = False) -> OpenIFiles:
    """Check the layout without preparing anything.

    Raises:
        FileNotFoundError: for the first part that is missing, with the place that has it.
        ValueError: if the reports or the table of views cannot be read.
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

    A report is a patient, so splits by report are patient-disjoint. A run that was interrupted goes on where it
    stopped.

    Args:
        source: see :func:`find_open_i`.
        output: folder of the corpus to write.
        view_table: see :func:`find_open_i`.
        one_image: one image a report; False takes all frontal ones.
        split_file: a ``.csv`` with ``uid`` and ``split``; by default 2,483 : 710 : 354 by the seed.
        seed: seed of the split.
        labels: what is labelled: the ``report`` (impression and findings, as the original labeler was given), or the
            ``mesh`` annotations, as in the paper.
        labeler: what labels; by default the rule-based CheXpert labeler.
        image_size: side of the square images in pixels.
        cut_margins: cut bright and dark margins off the images.
        workers: how many images are worked on at once, by default one a core.

    Raises:
        FileNotFoundError: if a part of the dataset is missing.
        ValueError: if a table or an archive is broken or no row can be used.
        FileExistsError: if ``output`` holds something else.
    """
    files = find_open_i(source, view_table=view_table)
    assert files.images is not None
    read = _read(files, split_file, labels, seed, labeler)
    wanted = {image for report in read.reports for image in frontal_images(report, read.views)}
    folder = image_folder(files.images, output, lambda name: id_of_file(name) in wanted)
    paths = {id_of_file(path.name): str(path) for path in folder.rglob("*_IM-*") if path.suffix.lower() in _SUFFIXES}
    rows = list(_rows(read, paths, one_image))
    write_corpus(output, rows, CorpusInfo(SOURCE, False, image_size, list(FINDINGS), cut_margins=cut_margins), workers)
    summary = finish(output, read.figures())
    if folder != files.images:
        shutil.rmtree(folder)
    return summary


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
    """
    if (output / "corpus.json").exists():
        raise FileExistsError(f"{output} holds a corpus: choose another folder for the reports alone")
    read = _read(find_open_i(source, reports_only=True), split_file, labels, seed, labeler)
    rows, rejected = [], Counter(one.reason.split(":")[0] for one in read.broken)
    for report, states in zip(read.reports, read.labels, strict=True):
        try:
            text = read.text_of(report)
        except ValueError as error:
            rejected[str(error)] += 1
            continue
        rows.append(TextRow(read.splits[report.uid], report.uid, text, states))
    if not rows:
        raise ValueError(f"no report of {source} can be used ({next(iter(rejected))})")
    summary = summarise_texts(SOURCE, False, rows, dict(rejected.most_common()), read.figures()[:3])
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
