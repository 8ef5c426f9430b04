"""Write your own data module: an image and a text file per study, in one folder per split.

python examples/own_data.py            # writes such a folder first, from the embedded corpus
python examples/own_data.py FOLDER     # FOLDER/train/1.png, FOLDER/train/1.txt, ..., FOLDER/val/..., FOLDER/test/...
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import Tensor

from medvill_pl import FINDINGS, BaseDataModule, CheXpertLabeler, PretrainingTask, SyntheticDataModule
from medvill_pl.batch import Split
from medvill_pl.data.images import fit_square, read_grey
from medvill_pl.data.negatives import Negatives


class TextFileExamples:
    """The studies of one split: all that a data module has to give."""

    labelled = FINDINGS  # or fewer: findings that nobody labelled are not counted as negative

    def __init__(self, folder: Path, image_size: int) -> None:
        self._images = sorted(folder.glob("*.png"))
        self._image_size = image_size
        self.ids = [path.stem for path in self._images]
        self.reports = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in self._images]
        self.labels = CheXpertLabeler()(self.reports)  # float32 (N, 14): 1, 0, -1 or NaN (not mentioned)

    def image(self, index: int) -> Tensor:
        """One image, uint8, shape ``(1, image_size, image_size)``."""
        return torch.from_numpy(fit_square(read_grey(self._images[index]), self._image_size).copy())[None]


class TextFileDataModule(BaseDataModule):
    """Batches, buckets, non-matching pairs and resuming come with the base."""

    name = "text files"
    is_credentialed = True  # until you know better: nothing of it is sent to a tracker or a hub

    def __init__(
        self,
        folder: str,
        tokenizer: str | None = None,  # None: what the task reads
        image_size: int | None = None,
        batch_size: int = 8,
        negatives: Negatives = "none",
        num_workers: int = 0,
    ) -> None:
        super().__init__(tokenizer, image_size, batch_size, negatives, num_workers=num_workers)
        self._folder = Path(folder)

    def examples(self, split: Split) -> TextFileExamples:
        """The studies of one split."""
        return TextFileExamples(self._folder / split, self.image_size)


def write_folder(folder: Path) -> None:
    """Make up a folder to read."""
    corpus = SyntheticDataModule(num_train=32, num_val=8, num_test=8, image_size=64)
    for split in ("train", "val", "test"):
        examples = corpus.examples(split)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(examples.ids):
            Image.fromarray(examples.image(index)[0].numpy()).save(folder / split / f"{name}.png")
            (folder / split / f"{name}.txt").write_text(examples.reports[index], encoding="utf-8")


def main() -> None:
    """Pre-train a tiny backbone on the folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/text-files")
    if not folder.exists():
        write_folder(folder)
    seed_everything(0)
    data = TextFileDataModule(str(folder), negatives="labels")
    small = {
        "image_encoder": "resnet_tiny",
        "image_size": 64,
        "tokenizer": "synthetic",
        "hidden_size": 32,
        "num_layers": 1,
    }
    task = PretrainingTask({**small, "num_heads": 2, "intermediate_size": 64}, lr=1e-3)  # type: ignore[typeddict-item]
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, log_every_n_steps=1)
    trainer.fit(task, datamodule=data)
    print(f"{len(data.datasets['train'])} pairs, MLM loss {float(trainer.callback_metrics['val/mlm_loss']):.2f}")


if __name__ == "__main__":
    main()
