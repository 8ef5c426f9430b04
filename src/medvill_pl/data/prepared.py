"""The base of the data modules that read a prepared corpus."""

from pathlib import Path

from medvill_pl.batch import Split
from medvill_pl.data.corpus import CorpusExamples, CorpusInfo
from medvill_pl.data.module import BaseDataModule
from medvill_pl.data.negatives import Negatives


class PreparedDataModule(BaseDataModule):
    """A dataset, from the corpus folder that its preparation made. A subclass gives it its name.

    Args:
        corpus: folder of the prepared corpus.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: pairs of a batch, for each process.
        negatives: how the non-matching half of the pairs is drawn.
        max_tokens: longer texts are truncated to this many tokens; None takes the task's limit.
        bucket_batches: batches that are pooled and sorted by length in training.
        num_workers: processes that prepare batches.
        seed: seed of order, pairing and masking.
        augment: change the images of training a little.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import Row, write_corpus
        >>> class MyHospital(PreparedDataModule):
        ...     name, is_credentialed = "my hospital", True
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.png")
        ...     rows = [Row("1", "1", "train", f"{folder}/1.png", "The lungs are clear.")]
        ...     _ = write_corpus(Path(folder) / "corpus", rows, CorpusInfo("my hospital", True, 32, []))
        ...     MyHospital(f"{folder}/corpus", tokenizer="synthetic", image_size=32).examples("train").reports
        ['The lungs are clear.']
    """

    def __init__(
        self,
        corpus: str,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        negatives: Negatives = "none",
        max_tokens: int | None = None,
        bucket_batches: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(
            tokenizer, image_size, batch_size, negatives, max_tokens, bucket_batches, num_workers, seed, augment
        )
        self.save_hyperparameters(logger=False)
        self.corpus = Path(corpus)
        info = CorpusInfo.read(self.corpus)
        if info.source != self.name:
            raise ValueError(f"{corpus} was prepared from {info.source}, not from {self.name}")
        self.cut_margins = info.cut_margins

    def examples(self, split: Split) -> CorpusExamples:
        """The rows of one split, from the corpus folder."""
        return CorpusExamples(self.corpus, split, self.image_size)
