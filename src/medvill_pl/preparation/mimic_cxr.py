"""MIMIC-CXR-JPG and the reports of MIMIC-CXR, prepared."""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from tqdm import tqdm

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.corpus.schema import NOT_MENTIONED, Labels, parse_labels
from medvill_pl.data.mimic_cxr import SOURCE
from medvill_pl.preparation.sections import mimic_text
from medvill_pl.preparation.sources import BROKEN, MAX_TEXT, find, read_csv, read_zip_member
from medvill_pl.preparation.summary import Count, Summary, finish

View = Literal["AP", "PA", "frontal"]
_VIEWS: dict[str, tuple[str, ...]] = {"AP": ("AP",), "PA": ("PA",), "frontal": ("AP", "PA")}
_SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
_IMAGES_FROM = "https://physionet.org/content/mimic-cxr-jpg/ (credentialed access)"
_REPORTS_FROM = "https://physionet.org/content/mimic-cxr/ (credentialed access)"
_PUBLISHED_IMAGES = 377_110
_PAPER_PAIRS = {"train": 89_395, "val": 759, "test": 1_531}
"""AP pairs that the paper counts."""
_NUMBER = re.compile(r"\d{1,12}")
_DICOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


class MIMICCXRFiles(NamedTuple):
    """Where the parts of the dataset lie.

    Attributes:
        metadata: table of all images.
        split: table of the official split.
        chexpert: table of the labels.
        images: the folder ``files``.
        reports: ``mimic-cxr-reports.zip``, or the folder that holds ``files/p10``.

    Example:
        >>> names = ("metadata.csv.gz", "split.csv.gz", "chexpert.csv.gz", "files", "reports.zip")
        >>> files = MIMICCXRFiles(*map(Path, names))
        >>> files.reports.name
        'reports.zip'
    """

    metadata: Path
    split: Path
    chexpert: Path
    images: Path
    reports: Path


def find_mimic_cxr(source: Path) -> MIMICCXRFiles:
    """Find the parts of MIMIC-CXR.

    Args:
        source: folder of MIMIC-CXR-JPG 2.x, with the reports of MIMIC-CXR in it: as ``mimic-cxr-reports.zip`` or
            unpacked, beside the images or in a folder of their own.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.

    Example:
        >>> find_mimic_cxr(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: no such folder: nowhere
    """
    names = ("metadata", "split", "chexpert")
    tables = [
        find(
            source,
            [f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.*-{name}.csv.gz", f"mimic-cxr-2.*-{name}.csv"],
            _IMAGES_FROM,
        )
        for name in names
    ]
    images = find(source, ["files"], _IMAGES_FROM)
    try:
        reports = find(source, ["mimic-cxr-reports.zip"], _REPORTS_FROM)
    except FileNotFoundError:
        texts = [folder for folder in (images, *source.glob("*/files")) if next(folder.glob("p1*/p1*/s*.txt"), None)]
        if not texts:
            raise
        reports = texts[0].parent
    return MIMICCXRFiles(tables[0], tables[1], tables[2], images, reports)


class _Reports(Protocol):
    def read(self, path: str) -> str: ...


class _ReportFolder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> str:
        file = self._root / path
        if not file.is_file():
            raise ValueError(f"no report: {file}")
        if file.stat().st_size > MAX_TEXT:
            raise ValueError(f"the report is too large: {file}")
        return file.read_text(encoding="utf-8", errors="replace")


class _ReportZip:
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a broken archive ({error}): get it again from {_REPORTS_FROM}") from error

    def read(self, path: str) -> str:
        try:
            return read_zip_member(self._zip, path).decode("utf-8", errors="replace")
        except KeyError:
            raise ValueError(f"no report: {path} in {self._zip.filename}") from None
        except BROKEN as error:
            raise ValueError(f"broken report: {path} in {self._zip.filename}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Image:
    subject: str
    study: str
    dicom: str
    view: str

    @property
    def folder(self) -> str:
        return f"p{self.subject[:2]}/p{self.subject}"


def _choose_images(metadata: Path, view: View, one_image: bool) -> tuple[list[_Image], int]:
    """The images to use, by patient, study and identifier, and how many the table has."""
    # One pass over the table, which lists 377,110 images: only the image chosen so far of each study is kept.
    chosen: dict[str, _Image] = {}
    num_images = 0
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row in tqdm(read_csv(metadata, columns), desc="metadata", unit="row", disable=None):
        num_images += 1
        if row["ViewPosition"] not in _VIEWS[view]:
            continue
        image = _Image(row["subject_id"], row["study_id"], row["dicom_id"], row["ViewPosition"])
        key = image.study if one_image else image.dicom
        if key not in chosen or image.dicom < chosen[key].dicom:
            chosen[key] = image
    return sorted(chosen.values(), key=lambda image: (image.subject, image.study, image.dicom)), num_images


def _read_splits(path: Path, images: list[_Image]) -> dict[str, Split]:
    chosen = {image.dicom for image in images}
    splits = {}
    for row in read_csv(path, ("dicom_id", "split")):
        if row["dicom_id"] in chosen:
            if row["split"] not in _SPLITS:
                raise ValueError(f"{path}: the split of {row['dicom_id']} is {row['split']!r}")
            splits[row["dicom_id"]] = _SPLITS[row["split"]]
    return splits


def _read_labels(path: Path, images: list[_Image]) -> dict[str, Labels]:
    chosen = {image.study for image in images}
    labels = {}
    for row in read_csv(path, ("study_id", *FINDINGS)):
        if row["study_id"] in chosen:
            try:
                labels[row["study_id"]] = parse_labels([row[finding] for finding in FINDINGS])
            except ValueError as error:
                raise ValueError(f"{path}, study {row['study_id']}: {error}") from error
    return labels


def _read_rows(files: MIMICCXRFiles, images: list[_Image]) -> Iterator[Row]:
    splits, labels = _read_splits(files.split, images), _read_labels(files.chexpert, images)
    reports: _Reports = _ReportZip(files.reports) if files.reports.suffix == ".zip" else _ReportFolder(files.reports)
    for image in tqdm(images, desc="reports", unit="report", disable=None):
        text, rejection, path = "", "", ""
        try:
            _check_names(image)
            path = f"{image.folder}/s{image.study}/{image.dicom}"
            if image.dicom not in splits:
                raise ValueError("the image is in no split")
            if image.study not in labels:
                raise ValueError("the study has no labels")
            text = mimic_text(reports.read(f"files/{image.folder}/s{image.study}.txt"))
        except ValueError as error:
            rejection = str(error)
        yield Row(
            image.dicom,
            image.subject,
            splits.get(image.dicom, "train"),
            str(_image_file(files.images, path)) if path else "",
            text,
            image.view,
            labels.get(image.study, NOT_MENTIONED),
            rejection,
        )


def _check_names(image: _Image) -> None:
    """Refuse identifiers that are none: they become part of a path."""
    if not (_NUMBER.fullmatch(image.subject) and _NUMBER.fullmatch(image.study) and _DICOM_ID.fullmatch(image.dicom)):
        raise ValueError(f"wrong identifiers: {image.subject!r}, {image.study!r}, {image.dicom!r}")


def _image_file(root: Path, path: str) -> Path:
    """The JPEG, or the DICOM file where MIMIC-CXR itself lies there."""
    jpeg, dicom = root / f"{path}.jpg", root / f"{path}.dcm"
    return dicom if dicom.is_file() and not jpeg.is_file() else jpeg


def check_mimic_cxr(source: Path, view: View = "AP", one_image: bool = True) -> MIMICCXRFiles:
    """Check the layout without preparing anything.

    Raises:
        FileNotFoundError: for the first part that is missing, and who publishes it.
        ValueError: if a table cannot be read or has no image of the view.

    Example:
        >>> check_mimic_cxr(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: no such folder: nowhere
    """
    files = find_mimic_cxr(source)
    images, _ = _choose_images(files.metadata, view, one_image)
    if not images:
        raise ValueError(f"{files.metadata} has no {view} image")
    _read_splits(files.split, images)
    _read_labels(files.chexpert, images)
    first = next(_read_rows(files, images[:1]))
    if first.rejection or not Path(first.image).is_file():
        raise FileNotFoundError(f"{first.rejection or f'no image: {first.image}'}: get it from {_IMAGES_FROM}")
    return files


def prepare_mimic_cxr(
    source: Path,
    output: Path,
    *,
    view: View = "AP",
    one_image: bool = True,
    image_size: int = 512,
    cut_margins: bool = True,
    workers: int | None = None,
) -> Summary:
    """Prepare MIMIC-CXR: frontal images with the longer of Findings and Impression, official labels and split.

    An interrupted run goes on where it stopped.

    Args:
        source: see :func:`find_mimic_cxr`.
        output: folder of the corpus to write.
        view: AP (the paper), PA, or frontal, which is both.
        one_image: take one image per study, the first by ``dicom_id``; False takes all of the view.
        image_size: side of the square images in pixels.
        cut_margins: cut bright and dark margins off the images.
        workers: how many images are worked on at once, by default one per core.

    Raises:
        FileNotFoundError: if a part of the dataset is missing.
        ValueError: if a table is broken or no row can be used.
        FileExistsError: if ``output`` holds something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> dicom = "-".join(["0123abcd"] * 5)
        >>> tables = {
        ...     "metadata": {"dicom_id": dicom, "subject_id": "10", "study_id": "50", "ViewPosition": "AP"},
        ...     "split": {"dicom_id": dicom, "split": "train"},
        ...     "chexpert": {"study_id": "50"} | dict.fromkeys(FINDINGS, "") | {"Edema": "-1.0"},
        ... }
        >>> with tempfile.TemporaryDirectory() as name:
        ...     study = Path(name) / "files" / "p10" / "p10" / "s50"
        ...     study.mkdir(parents=True)
        ...     Image.new("L", (32, 32), 128).save(study / f"{dicom}.jpg")
        ...     _ = study.with_suffix(".txt").write_text("FINDINGS: Possible mild edema.")
        ...     for table, row in tables.items():
        ...         with open(f"{name}/mimic-cxr-2.0.0-{table}.csv", "w") as file:
        ...             print(",".join(row), ",".join(row.values()), sep=chr(10), file=file)
        ...     summary = prepare_mimic_cxr(Path(name), Path(name) / "corpus", image_size=32)
        >>> summary.views, summary.labels["train"]["Edema"]["uncertain"]
        ({'train': {'AP': 1}}, 1)
    """
    files = find_mimic_cxr(source)
    images, num_images = _choose_images(files.metadata, view, one_image)
    if not images:
        raise ValueError(f"{files.metadata} has no {view} image")
    rows = list(_read_rows(files, images))
    info = CorpusInfo(SOURCE, True, image_size, list(FINDINGS), cut_margins=cut_margins)
    done = write_corpus(output, rows, info, workers)
    counts = [
        Count("images in the metadata", num_images, _PUBLISHED_IMAGES),
        Count("images of the view", len(images)),
    ]
    if view == "AP" and one_image:
        counts += [
            Count(f"pairs of {split} (the paper has {count:,})", done.splits.get(split, 0))
            for split, count in _PAPER_PAIRS.items()
        ]
    return finish(output, counts)
