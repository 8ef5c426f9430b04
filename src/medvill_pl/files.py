"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path``, and when it is written, sync it to the disk and rename it to ``path``.

    A full disk, a kill or a power cut leaves what was at ``path`` before.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "table.csv"
        ...     with replacing(path) as file:
        ...         _ = file.write(b"id,report")
        ...         path.exists()
        ...     path.read_bytes()
        False
        b'id,report'
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            # A rename can reach the disk before the content does: without the sync, a power cut leaves an empty file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a crash.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "table.csv", b"id,report")
        ...     [path.name for path in Path(folder).iterdir()]
        ['table.csv']
    """
    with replacing(path) as file:
        file.write(content)


def free_name(path: Path) -> Path:
    """``path``, or where it is taken the first of ``name-1.ext``, ``name-2.ext``, ...

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "test.parquet").touch()
        ...     free_name(Path(folder) / "test.parquet").name
        'test-1.parquet'
    """
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
