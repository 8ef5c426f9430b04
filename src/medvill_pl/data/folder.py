"""A folder of images to predict on."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.images import read_grey, read_square
from medvill_pl.data.module import BaseDataModule

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")


class FolderExamples:
    """Image files, all with one text.

    Args:
        paths: image files.
        ids: one identifier per file.
        text: the text that goes with every image.
        image_size: side of the square images in pixels.
        cut_margins: cut the margins off the images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "1.png"
        ...     Image.new("L", (40, 30), 128).save(path)
        ...     FolderExamples([path], ["1"], "Is there a fracture?", 32, cut_margins=False).image(0).shape
        torch.Size([1, 32, 32])
    """

    labelled = FINDINGS

    def __init__(
        self, paths: Sequence[Path], ids: Sequence[str], text: str, image_size: int, cut_margins: bool
    ) -> None:
        self._paths, self._image_size, self._cut_margins = paths, image_size, cut_margins
        self.ids = ids
        self.reports = [text] * len(ids)
        self.labels: NDArray[np.float32] = np.full((len(ids), len(FINDINGS)), np.nan, dtype=np.float32)
        # Read as questions, the text is asked of every image, and nothing is known of the answer.
        self.questions = self.reports
        self.answers = self.answer_types = self.question_types = self.organs = [""] * len(ids)

    def image(self, index: int) -> Tensor:
        """One image, uint8, shape ``(1, image_size, image_size)``."""
        pixels = read_square(self._paths[index], self._image_size, self._cut_margins)
        return torch.from_numpy(pixels.copy())[None]


def _fault(path: Path) -> str:
    """Why an image cannot be used; empty if it can."""
    try:
        read_grey(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


class FolderDataModule(BaseDataModule):
    """Images to predict on: a folder with its subfolders, or one file.

    Images that cannot be read are listed in ``rejected`` (and by ``medvill predict`` in a ``rejected.csv`` beside
    the predictions); the others are predicted on.

    Args:
        images: a folder or an image file.
        text: the text that goes with every image: a question, or a report; empty for tasks that read images alone.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: images of a batch, for each process.
        max_tokens: a longer text is truncated to this many tokens; None takes the task's limit.
        num_workers: processes that prepare batches.
        cut_margins: cut the margins off the images, as the preparation of a corpus does.

    Raises:
        FileNotFoundError: if there is no such folder or file, or it holds no image.
        ValueError: if no image can be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (40, 30), 128).save(f"{folder}/1.png")
        ...     data = FolderDataModule(folder, "Is there a fracture?", tokenizer="synthetic", image_size=32)
        ...     data.examples("test").ids, data.rejected
        (['1.png'], [])
    """

    name = "a folder"
    is_credentialed = True

    def __init__(
        self,
        images: str,
        text: str = "",
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        num_workers: int = 4,
        cut_margins: bool = True,
    ) -> None:
        super().__init__(tokenizer, image_size, batch_size, "none", max_tokens, 1, num_workers)
        self.cut_margins = cut_margins
        root = Path(images)
        if not root.exists():
            raise FileNotFoundError(f"no such folder or image: {images}")
        self._paths = [root] if root.is_file() else _images_in(root)
        if not self._paths:
            raise FileNotFoundError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        self._ids = [root.name] if root.is_file() else [path.relative_to(root).as_posix() for path in self._paths]
        self.text, self.has_texts, self.has_questions = text, bool(text), bool(text)

    @cached_property
    def _faults(self) -> list[str]:
        """Why each image cannot be used; empty strings for those that can. Each image is decoded for it, once."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(_fault, self._paths))

    @property
    def rejected(self) -> list[dict[str, str]]:
        """The images that cannot be read, as mappings with ``id``, ``image`` and ``reason``."""
        return [
            {"id": name, "image": str(path), "reason": fault}
            for name, path, fault in zip(self._ids, self._paths, self._faults, strict=True)
            if fault
        ]

    def examples(self, split: Split) -> FolderExamples:
        """The images that can be read.

        Raises:
            ValueError: for another stage than predict, or if no image can be read.
        """
        if split != "test":
            raise ValueError("a folder of images is to predict on: it has no training and no validation split")
        readable = [index for index, fault in enumerate(self._faults) if not fault]
        if not readable:
            raise ValueError(f"none of the {len(self._paths)} images can be read ({self._faults[0]})")
        if num_rejected := len(self._paths) - len(readable):
            rank_zero_warn(f"{num_rejected} of {len(self._paths)} images cannot be read; the others are predicted on")
        paths, ids = [self._paths[index] for index in readable], [self._ids[index] for index in readable]
        return FolderExamples(paths, ids, self.text, self.image_size, self.cut_margins)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
