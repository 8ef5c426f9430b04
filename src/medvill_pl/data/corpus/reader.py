"""Reading a corpus from disk."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.corpus.schema import CACHE, CorpusInfo


class CorpusExamples:
    """The rows of one split of a corpus on disk, read through ``datasets`` without loading the images.

    In a corpus of questions, each row has its ``questions``, ``answers``, ``answer_types``, ``question_types`` and
    ``organs``, which are empty in others.

    Args:
        folder: the corpus.
        split: ``train``, ``val`` or ``test``.
        image_size: side of the images to give in pixels, resized where the corpus has another.
        organ: keep the rows with this organ only; None keeps all.

    Attributes:
        ids: one identifier per row.
        reports: one text per row.
        labels: 1, 0, -1 or NaN (not mentioned), float32, shape ``(N, 14)``.
        labelled: the findings that the corpus labels; the others are unknown, not negative.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if the split is empty, or has no such organ.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.png")
        ...     rows = [Row("1", "1", "train", f"{folder}/1.png", "The lungs are clear.")]
        ...     _ = write_corpus(Path(folder) / "corpus", rows, CorpusInfo("my hospital", True, 32, []))
        ...     examples = CorpusExamples(Path(folder) / "corpus", "train", image_size=32)
        >>> examples.reports, examples.labels.shape, examples.image(0).shape
        (['The lungs are clear.'], (1, 14), torch.Size([1, 32, 32]))
    """

    def __init__(self, folder: Path, split: Split, image_size: int, organ: str | None = None) -> None:
        info = CorpusInfo.read(folder)
        if not info.splits.get(split):
            raise ValueError(f"the corpus {folder} has no {split} split")
        table = _open_table(folder, split)
        if organ is not None:
            organs = table["organ"]
            chosen = [index for index, name in enumerate(organs) if name == organ]
            if not chosen:
                known = ", ".join(sorted(set(organs)))
                raise ValueError(f"the {split} split of {folder} has no organ {organ!r}: choose one of {known}")
            table = table.select(chosen)
        self._images = table.select_columns(["image"])
        self._image_size = image_size
        self.ids: list[str] = list(table["id"])
        self.reports: list[str] = list(table["report"])
        self.questions: list[str] = list(table["question"])
        self.answers: list[str] = list(table["answer"])
        self.answer_types: list[str] = list(table["answer_type"])
        self.question_types: list[str] = list(table["question_type"])
        self.organs: list[str] = list(table["organ"])
        self.labelled: list[str] = info.labelled
        self.labels = label_array(table["labels"])

    def image(self, index: int) -> Tensor:
        """The image of one row, uint8, shape ``(1, image_size, image_size)``."""
        return decode_square(self._images[index]["image"], self._image_size)


def _open_table(folder: Path, split: Split) -> Any:
    """The shards of a split as one ``datasets.Dataset``, mapped into memory."""
    from datasets import Dataset
    from pyarrow.parquet import read_metadata

    # A shard whose rows were all rejected is empty, which `datasets` cannot read.
    paths = [str(path) for path in sorted(folder.glob(f"{split}-*.parquet")) if read_metadata(path).num_rows]
    # `datasets` unpacks the shards into files that it maps into memory: beside them, not into the home folder.
    cache = str(folder / CACHE) if os.access(folder, os.W_OK) else None
    with _no_progress_bars():
        return Dataset.from_parquet(paths, cache_dir=cache)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Switch the progress bars of ``datasets`` off, and on again where they were on: the switch is process-wide."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def decode_square(png: bytes, image_size: int) -> Tensor:
    """Decode an image of a corpus, resized where it has another size.

    Args:
        png: the bytes of the column ``image``.
        image_size: side of the square in pixels.

    Returns:
        Grey pixels 0..255, uint8, shape ``(1, image_size, image_size)``.

    Example:
        >>> from medvill_pl.data.images import encode_png
        >>> decode_square(encode_png(np.full((64, 64), 200, np.uint8)), 32).shape
        torch.Size([1, 32, 32])
    """
    image: Tensor = decode_image(torch.frombuffer(bytearray(png), dtype=torch.uint8), ImageReadMode.GRAY)
    if image.shape[-1] != image_size:
        image = resize(image, [image_size, image_size], antialias=True)
    return image


def label_array(labels: Iterable[Sequence[int | None]]) -> NDArray[np.float32]:
    """Turn the labels of rows into one array.

    Args:
        labels: for each row 14 values 1, 0, -1 or None (not mentioned).

    Returns:
        NaN where not mentioned, float32, shape ``(N, 14)``.

    Example:
        >>> label_array([[1, None, -1] + [0] * 11])[0, :3]
        array([ 1., nan, -1.], dtype=float32)
    """
    rows = [[np.nan if value is None else value for value in row] for row in labels]
    return np.array(rows, dtype=np.float32).reshape(-1, len(FINDINGS))
