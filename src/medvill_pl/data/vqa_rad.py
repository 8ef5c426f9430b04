"""VQA-RAD, prepared."""

from medvill_pl.batch import Split
from medvill_pl.data.corpus import CorpusExamples
from medvill_pl.data.prepared import PreparedDataModule

SOURCE = "vqa-rad"


class VQARADDataModule(PreparedDataModule):
    """The questions of VQA-RAD with their answers, from a prepared corpus folder (see :class:`PreparedDataModule`).

    Args:
        corpus: folder of the prepared corpus.
        organ: keep the questions about images of this organ only, such as ``chest``; None keeps all.
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the task's.
        image_size: side of the square images in pixels; None takes the task's.
        batch_size: questions of a batch, for each process.
        max_tokens: longer questions are truncated to this many tokens; None takes the task's limit.
        num_workers: processes that prepare batches.
        seed: seed of the order.
        augment: change the images of training a little.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset, or has no such organ.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as folder:  # `medvill prepare vqa-rad` writes such a corpus
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.jpg")
        ...     row = Row("1", "1", "train", f"{folder}/1.jpg", "", question="Is there a fracture?", answer="no")
        ...     _ = write_corpus(Path(folder) / "corpus", [row], CorpusInfo("vqa-rad", False, 32, []))
        ...     data = VQARADDataModule(f"{folder}/corpus", tokenizer="synthetic", image_size=32)
        ...     examples = data.examples("train")
        >>> examples.questions, examples.answers
        (['Is there a fracture?'], ['no'])
    """

    name = SOURCE
    is_credentialed = False
    has_questions = True

    def __init__(
        self,
        corpus: str,
        organ: str | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(corpus, tokenizer, image_size, batch_size, "none", max_tokens, 1, num_workers, seed, augment)
        self.organ = organ

    def examples(self, split: Split) -> CorpusExamples:
        """The questions of one split, from the corpus folder."""
        return CorpusExamples(self.corpus, split, self.image_size, self.organ)
