"""A folder of images to predict on."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.data.images import read_grey, read_square
from medvill_pl.data.module import BaseDataModule
from medvill_pl.tokenizer import MAX_TOKENS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")


class FolderExamples:
    """The images of a folder that can be read, all with one text.

    Args:
        paths: image files.
        ids: an identifier each.
        text: the text that goes with every image.
        image_size: side of the square images in pixels.
        cut_margins: cut the margins off the images.

    Attributes:
        rejected: what cannot be read, as mappings with ``id``, ``image`` and ``reason``.
    """

    labelled = FINDINGS

    def __init__(self, paths: list[Path], ids: list[str], text: str, image_size: int, cut_margins: bool) -> None:
        self._image_size, self._cut_margins = image_size, cut_margins
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(pool.map(_fault, paths))
        self._paths = [path for path, fault in zip(paths, faults, strict=True) if not fault]
        self.ids = [name for name, fault in zip(ids, faults, strict=True) if not fault]
        self.rejected = [
            {"id": name, "image": str(path), "reason": fault}
            for name, path, fault in zip(ids, paths, faults, strict=True)
            if fault
        ]
        self.reports = [text] * len(self.ids)
        self.labels: NDArray[np.float32] = np.full((len(self.ids), len(FINDINGS)), np.nan, dtype=np.float32)
        # Read as questions, the text is asked of every image, and nothing is known of the answer.
        self.questions = self.reports
        self.answers = self.answer_types = self.question_types = self.organs = [""] * len(self.ids)

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
    the predictions); the others are done.

    Args:
        images: a folder or an image file.
        text: the text that goes with every image: a question, or a report; empty for tasks that read images alone.
        tokenizer: what :meth:`ReportTokenizer.load` takes; the same as the backbone's.
        image_size: side of the square images in pixels.
        batch_size: images of a batch, for each process.
        max_tokens: a longer text is cut to so many word pieces.
        num_workers: processes that prepare batches.
        cut_margins: cut the margins off the images, as the preparation of a corpus does.

    Raises:
        FileNotFoundError: if there is no such folder or file, or it holds no image.
        ValueError: if no image can be read.
    """

    name = "a folder"
    is_credentialed = True

    def __init__(
        self,
        images: str,
        text: str = "",
        tokenizer: str = "bert-base-uncased",
        image_size: int = 512,
        batch_size: int = 16,
        max_tokens: int = MAX_TOKENS,
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
        self.text, self.has_questions = text, bool(text)
        self.rejected: list[dict[str, str]] = []

    def examples(self, split: Split) -> FolderExamples:
        """The images that can be read.

        Raises:
            ValueError: for another stage than predict, or if no image can be read.
        """
        if split != "test":
            raise ValueError("a folder of images is to predict on: it has no training and no validation split")
        examples = FolderExamples(self._paths, self._ids, self.text, self.image_size, self.cut_margins)
        self.rejected = examples.rejected
        if not examples.ids:
            raise ValueError(f"none of the {len(self._paths)} images can be read ({self.rejected[0]['reason']})")
        if self.rejected:
            rank_zero_warn(f"{len(self.rejected)} of {len(self._paths)} images cannot be read; the others are done")
        return examples


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
