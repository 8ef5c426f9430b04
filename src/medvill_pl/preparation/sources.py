"""What a publisher ships: finding it, and reading archives, tables and paths without trusting them."""

import calendar
import csv
import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
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
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    for name in names:
        for found in (*sorted(source.glob(name)), *sorted(source.glob(f"*/{name}"))):
            return found
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise FileNotFoundError(f"{source} has no {names[0]}{others}: get it from {publisher}")


def inside(root: Path, relative: str) -> Path:
    """Join a path from a table, a JSON file or an archive to the folder that it must stay in.

    Raises:
        ValueError: if it is empty, absolute or leads out of the folder.
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


def _is_wanted(name: str, archive: Path, wanted: Callable[[str], bool]) -> bool:
    try:
        inside(Path(), name)
    except ValueError as error:
        raise ValueError(f"{archive} is not to be trusted: {error}") from error
    return wanted(name)


def read_members(
    archive: Path, wanted: Callable[[str], bool], max_bytes: int = MAX_TEXT
) -> Iterator[tuple[str, float, bytes]]:
    """Read members of a ``.tgz``, ``.tar`` or ``.zip`` one after the other, without unpacking anything.

    Args:
        archive: the file.
        wanted: whether a member, by its path in the archive, is to be read.
        max_bytes: a larger member is refused.

    Yields:
        Path in the archive, time of change in seconds since 1970, content.

    Raises:
        ValueError: if the archive is broken, a member is too large or its path leaves the archive's folder.
    """
    members = _read_zip if archive.suffix == ".zip" else _read_tar
    try:
        yield from members(archive, wanted, max_bytes)
    except BROKEN as error:
        raise ValueError(f"{archive} is a broken archive ({error}): get it again") from error


def _read_tar(archive: Path, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, float, bytes]]:
    with tarfile.open(archive, "r|*") as tar:  # one pass; links and devices are no files and are left out
        for member in tar:
            if not member.isfile() or not _is_wanted(member.name, archive, wanted):
                continue
            _check_size(member.name, member.size, archive, max_bytes)
            content = tar.extractfile(member)
            assert content is not None
            yield member.name, float(member.mtime), content.read()


def _read_zip(archive: Path, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, float, bytes]]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if member.is_dir() or not _is_wanted(member.filename, archive, wanted):
                continue
            _check_size(member.filename, member.file_size, archive, max_bytes)
            yield member.filename, _zip_time(member), read_zip_member(zipped, member, max_bytes)


def read_zip_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo | str, max_bytes: int = MAX_TEXT) -> bytes:
    """Read one member of a zip file, whatever size it claims to have.

    Raises:
        KeyError: if there is no such member.
        ValueError: if it is larger than ``max_bytes`` or broken.
    """
    with zipped.open(member) as file:
        content = file.read(max_bytes + 1)
    _check_size(getattr(member, "filename", str(member)), len(content), Path(zipped.filename or ""), max_bytes)
    return content


def _zip_time(member: zipfile.ZipInfo) -> float:
    return float(calendar.timegm((*member.date_time, 0, 0, 0)))


def _check_size(name: str, size: int, archive: Path, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"{archive} is not to be trusted: {name} has more than {max_bytes:,} bytes")


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the wanted files of an archive, each whole or not at all, flat into a folder.

    A file that is there already is not written again; each keeps its time of change, so an interrupted run goes on.

    Args:
        archive: a ``.tgz``, ``.tar`` or ``.zip``.
        folder: where to write; made where it is not there.
        wanted: whether a file, by its name without folders, is wanted.

    Raises:
        ValueError: as :func:`read_members`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}

    def is_missing(name: str) -> bool:
        base = PurePosixPath(name).name
        return base not in there and wanted(base)

    members = read_members(archive, is_missing, MAX_IMAGE)
    for name, changed, content in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
        base = PurePosixPath(name).name
        beside = folder / f".{base}.tmp"
        beside.write_bytes(content)
        os.utime(beside, (changed, changed))
        os.replace(beside, folder / base)
        there.add(base)


ARCHIVES = (".tgz", ".tar.gz", ".tar", ".zip")


def find_images(source: Path, pattern: str, names: Sequence[str], publisher: str) -> Path:
    """Find the folder that holds images, or the archive that they are shipped in.

    Args:
        source: where to look, with its direct subfolders.
        pattern: what an image file is called, such as ``CXR*.png``.
        names: names or patterns of folder or archive.
        publisher: where it can be had, for the message.

    Raises:
        FileNotFoundError: if there is neither.
    """
    for folder in (source, *sorted(path for path in source.glob("*") if path.is_dir())):
        if next(folder.glob(pattern), None):
            return folder
    found = find(source, names, publisher)
    if found.is_file() and not found.name.endswith(ARCHIVES):
        raise FileNotFoundError(f"{found} is neither a folder of images nor an archive: get it from {publisher}")
    return found


def image_folder(images: Path, output: Path, wanted: Callable[[str], bool]) -> Path:
    """The folder of the images: that given, or one beside the output that the archive given is unpacked to.

    The caller removes the latter when the corpus is whole.
    """
    if images.is_dir():
        return images
    folder = output.with_name(f".{output.name}.images")
    unpack(images, folder, wanted)
    return folder
