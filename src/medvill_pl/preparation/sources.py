"""What a publisher distributes: finding it, and reading archives, tables and paths without trusting them."""

import calendar
import csv
import gzip
import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tqdm import tqdm

MAX_TEXT = 10_000_000
"""A report or XML file with more bytes is no report."""
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
"""What goes wrong in broken and encrypted archives."""
MAX_IMAGE = 500_000_000
"""An image file with more bytes is not unpacked."""


def find(source: Path, names: Sequence[str], publisher: str) -> Path:
    """Find a file or folder in a folder or in one of its direct subfolders.

    Args:
        source: where to look.
        names: names or patterns (``*``), the usual one first.
        publisher: where it can be had, for the message.

    Raises:
        FileNotFoundError: if it is not there, or ``source`` is no folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "NLMCXR_reports.tgz").write_bytes(b"")
        ...     find(Path(folder), ["NLMCXR_reports.tgz", "ecgen-radiology"], "openi.nlm.nih.gov").name
        'NLMCXR_reports.tgz'
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    for name in names:
        for path in (*sorted(source.glob(name)), *sorted(source.glob(f"*/{name}"))):
            return path
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise FileNotFoundError(f"{source} has no {names[0]}{others}: get it from {publisher}")


def inside(root: Path, relative: str) -> Path:
    """Join a path from a table, a JSON file or an archive to the folder that it must stay in.

    Raises:
        ValueError: if it is empty, absolute or leads out of the folder.

    Example:
        >>> inside(Path("data"), "images/1.png").as_posix()
        'data/images/1.png'
        >>> inside(Path("data"), "../1.png")
        Traceback (most recent call last):
        ValueError: the path '../1.png' leaves the data folder
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in relative:
        raise ValueError(f"the path {relative!r} leaves the data folder")
    return root / path


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read a ``.csv`` or ``.csv.gz`` row by row.

    Args:
        path: the table, UTF-8.
        columns: those it must have.

    Raises:
        ValueError: if it lacks a column or is broken.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "split.csv.gz"
        ...     with gzip.open(path, "wt") as file:
        ...         print("uid,split", "CXR1,train", sep=chr(10), file=file)
        ...     list(read_csv(path, ["uid", "split"]))
        [{'uid': 'CXR1', 'split': 'train'}]
    """
    with open(path, "rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as plain:
        reader = csv.DictReader(io.TextIOWrapper(cast(BinaryIO, plain), encoding="utf-8-sig", newline=""))
        try:
            if missing := [column for column in columns if column not in (reader.fieldnames or [])]:
                raise ValueError(f"it has no column {missing[0]!r}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has another number of cells than the header")
                yield row
        except (ValueError, csv.Error, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _is_chosen(name: str, archive: Path, choose: Callable[[str], bool]) -> bool:
    try:
        inside(Path(), name)
    except ValueError as error:
        raise ValueError(f"{archive} is not to be trusted: {error}") from error
    return choose(name)


def read_members(
    archive: Path, choose: Callable[[str], bool], max_bytes: int = MAX_TEXT
) -> Iterator[tuple[str, float, bytes]]:
    """Read members of a ``.tgz``, ``.tar`` or ``.zip`` one after the other, without unpacking anything.

    Args:
        archive: the file.
        choose: whether a member, by its path in the archive, is to be read.
        max_bytes: a larger member is refused.

    Yields:
        Path in the archive, time of change in seconds since 1970, content.

    Raises:
        ValueError: if the archive is broken, a member is too large or its path leaves the archive's folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "reports.zip"
        ...     with zipfile.ZipFile(path, "w") as zipped:
        ...         zipped.writestr("files/1.txt", "No edema.")
        ...         zipped.writestr("files/index.html", "")
        ...     [(name, content) for name, _, content in read_members(path, lambda name: name.endswith(".txt"))]
        [('files/1.txt', b'No edema.')]
    """
    members = _read_zip if archive.suffix == ".zip" else _read_tar
    try:
        yield from members(archive, choose, max_bytes)
    except BROKEN as error:
        raise ValueError(f"{archive} is a broken archive ({error}): get it again") from error


def _read_tar(archive: Path, choose: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, float, bytes]]:
    with tarfile.open(archive, "r|*") as tar:  # one pass; links and devices are no files and are left out
        for member in tar:
            if not member.isfile() or not _is_chosen(member.name, archive, choose):
                continue
            _check_size(member.name, member.size, archive, max_bytes)
            content = tar.extractfile(member)
            assert content is not None
            yield member.name, float(member.mtime), content.read()


def _read_zip(archive: Path, choose: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, float, bytes]]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if member.is_dir() or not _is_chosen(member.filename, archive, choose):
                continue
            _check_size(member.filename, member.file_size, archive, max_bytes)
            yield member.filename, _zip_time(member), read_zip_member(zipped, member, max_bytes)


def read_zip_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo | str, max_bytes: int = MAX_TEXT) -> bytes:
    """Read one member of a zip file, whatever size it claims to have.

    Raises:
        KeyError: if there is no such member.
        ValueError: if it is larger than ``max_bytes`` or broken.

    Example:
        >>> with zipfile.ZipFile(io.BytesIO(), "w") as zipped:
        ...     zipped.writestr("1.txt", "No edema.")
        ...     read_zip_member(zipped, "1.txt")
        b'No edema.'
    """
    # The header's size is a claim (zip bombs lie): read one byte more than allowed, and see whether there is one.
    with zipped.open(member) as file:
        content = file.read(max_bytes + 1)
    name = member if isinstance(member, str) else member.filename
    _check_size(name, len(content), Path(zipped.filename or ""), max_bytes)
    return content


def _zip_time(member: zipfile.ZipInfo) -> float:
    return float(calendar.timegm((*member.date_time, 0, 0, 0)))


def _check_size(name: str, size: int, archive: Path, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"{archive} is not to be trusted: {name} has more than {max_bytes:,} bytes")


def unpack(archive: Path, folder: Path, choose: Callable[[str], bool]) -> None:
    """Unpack some files of an archive, each whole or not at all, flat into a folder.

    A file that is there already is not written again; each keeps its time of change, so an interrupted run goes on.

    Args:
        archive: a ``.tgz``, ``.tar`` or ``.zip``.
        folder: where to write; made where it is not there.
        choose: whether a file, by its name without folders, is to be unpacked.

    Raises:
        ValueError: as :func:`read_members`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with zipfile.ZipFile(f"{name}/images.zip", "w") as zipped:
        ...         zipped.writestr("images/1.png", b"")
        ...     unpack(Path(name) / "images.zip", Path(name) / "images", lambda file: file.endswith(".png"))
        ...     [path.name for path in Path(name, "images").iterdir()]
        ['1.png']
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {path.name for path in folder.iterdir()}

    def is_missing(name: str) -> bool:
        base = PurePosixPath(name).name
        return base not in unpacked and choose(base)

    members = read_members(archive, is_missing, MAX_IMAGE)
    for name, changed, content in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
        base = PurePosixPath(name).name
        # Not synced to the disk, unlike `replacing`: the archive is still there, and thousands of syncs take minutes.
        # The time of change goes along, since the plan of a corpus takes it for the content.
        beside = folder / f".{base}.tmp"
        beside.write_bytes(content)
        os.utime(beside, (changed, changed))
        os.replace(beside, folder / base)
        unpacked.add(base)


ARCHIVES = (".tgz", ".tar.gz", ".tar", ".zip")


def find_images(source: Path, pattern: str, names: Sequence[str], publisher: str) -> Path:
    """Find the folder that holds images, or the archive that they are distributed in.

    Args:
        source: where to look, with its direct subfolders.
        pattern: what an image file is called, such as ``CXR*.png``.
        names: names or patterns of folder or archive.
        publisher: where it can be had, for the message.

    Raises:
        FileNotFoundError: if there is neither.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "VQA_RAD Image Folder.zip").write_bytes(b"")
        ...     find_images(Path(folder), "synpic*.jpg", ["VQA_RAD Image Folder*"], "osf.io").name
        'VQA_RAD Image Folder.zip'
    """
    for folder in (source, *sorted(path for path in source.glob("*") if path.is_dir())):
        if next(folder.glob(pattern), None):
            return folder
    path = find(source, names, publisher)
    if path.is_file() and not path.name.endswith(ARCHIVES):
        raise FileNotFoundError(f"{path} is neither a folder of images nor an archive: get it from {publisher}")
    return path


@contextmanager
def image_folder(images: Path, output: Path, choose: Callable[[str], bool]) -> Iterator[Path]:
    """Give the folder of the images while a corpus is prepared from them.

    Args:
        images: a folder, which is given as it is; or an archive, which is unpacked to a hidden folder beside the
            output and removed at the end.
        output: folder of the corpus.
        choose: whether an image of the archive, by its name without folders, is to be unpacked.

    Raises:
        ValueError: as :func:`read_members`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with zipfile.ZipFile(f"{name}/images.zip", "w") as zipped:
        ...         zipped.writestr("images/1.png", b"")
        ...     with image_folder(Path(name) / "images.zip", Path(name) / "corpus", lambda file: True) as folder:
        ...         print([path.name for path in folder.iterdir()])
        ...     folder.exists()
        ['1.png']
        False
    """
    if images.is_dir():
        yield images
        return
    folder = output.with_name(f".{output.name}.images")
    unpack(images, folder, choose)
    yield folder
    shutil.rmtree(folder)  # no `finally`: a run that was interrupted goes on with what is unpacked
