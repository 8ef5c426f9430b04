"""Which images of Open-I are frontal: by a table of views, and where it is silent by the file name."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from medvill_pl.preparation.sections import OpenIReport, image_id
from medvill_pl.preparation.sources import read_csv

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
FRONTAL = "frontal"
FRONTAL_VIEWS = ("AP", "PA", FRONTAL)
_NUMBER = re.compile(r"-(\d+)(?:-(\d+))?$")


def id_of_file(name: str) -> str:
    """The identifier of the image in a file of Open-I, of Kaggle's copy or of the DICOM archive.

    Example:
        >>> id_of_file("images/1_IM-0001-4001.dcm.png")
        'CXR1_IM-0001-4001'
    """
    base = PurePosixPath(name).name
    while base.lower().endswith(IMAGE_SUFFIXES):
        base = base.rpartition(".")[0]
    return image_id(base)


def read_views(table: Path) -> dict[str, str]:
    """Read a table of views: ``PA``, ``AP`` or ``frontal``, anything else, or nothing where it is silent.

    Returns:
        The view of each image, by its identifier.

    Raises:
        ValueError: if it has neither Kaggle's columns nor those of the DICOM tags.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder) / "indiana_projections.csv"
        ...     with table.open("w") as file:
        ...         print("uid,filename,projection", "1,1_IM-0001-4001.dcm.png,Frontal", sep=chr(10), file=file)
        ...     read_views(table)
        {'CXR1_IM-0001-4001': 'frontal'}
    """
    is_kaggle = next(read_csv(table, ()), {}).keys() >= {"filename", "projection"}
    name, view = ("filename", "projection") if is_kaggle else ("imageid", "View Position")
    return {
        id_of_file(row[name]): FRONTAL if row[view].lower() == FRONTAL else row[view]
        for row in read_csv(table, (name, view))
    }


def is_frontal_by_name(image: str) -> bool:
    """Whether an image is frontal by its name, which decides where no table does.

    The name ends in the number of a series in thousands and that of the image in it. The first image of series 1
    (``1001``), of an unnumbered series (``0001``) and all of series 4 (``4001``, ``4004``: bedside images) are frontal;
    any other is not.

    Example:
        >>> is_frontal_by_name("CXR1900_IM-0584-1001"), is_frontal_by_name("CXR1900_IM-0584-2001")
        (True, False)
    """
    match = _NUMBER.search(image)
    number = int(match[2] or match[1]) if match else 0
    return number in (1, 1001) or 4000 <= number < 5000


def view_of(image: str, views: Mapping[str, str]) -> str:
    """``AP``, ``PA``, ``frontal`` or, where it is another view, the empty string.

    The table counts where it says something of the image, the name where it is silent.

    Example:
        >>> view_of("CXR1_IM-0001-4001", {}), view_of("CXR1_IM-0001-4001", {"CXR1_IM-0001-4001": "LL"})
        ('frontal', '')
    """
    if view := views.get(image, ""):
        return view if view in FRONTAL_VIEWS else ""
    return FRONTAL if is_frontal_by_name(image) else ""


def frontal_images(report: OpenIReport, views: Mapping[str, str]) -> list[str]:
    """The frontal images of a report, those first that are frontal by their name too.

    Example:
        >>> report = OpenIReport("CXR1", "", "", (), ("CXR1_IM-0001-2001", "CXR1_IM-0001-1001"))
        >>> frontal_images(report, {"CXR1_IM-0001-2001": "PA"})
        ['CXR1_IM-0001-1001', 'CXR1_IM-0001-2001']
    """
    frontal = [image for image in report.images if view_of(image, views)]
    return sorted(frontal, key=lambda image: (not is_frontal_by_name(image), image))
