"""MIMIC-CXR, prepared."""

from medvill_pl.data.prepared import PreparedDataModule

SOURCE = "mimic-cxr"


class MIMICCXRDataModule(PreparedDataModule):
    """MIMIC-CXR, from a prepared corpus folder (see :class:`PreparedDataModule`). Its text and images are credentialed.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as folder:  # `medvill prepare mimic-cxr` writes such a corpus
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.jpg")
        ...     rows = [Row("1", "10000032", "train", f"{folder}/1.jpg", "The lungs are clear.")]
        ...     _ = write_corpus(Path(folder) / "corpus", rows, CorpusInfo("mimic-cxr", True, 32, []))
        ...     data = MIMICCXRDataModule(f"{folder}/corpus", tokenizer="synthetic", image_size=32)
        ...     data.examples("train").reports
        ['The lungs are clear.']
    """

    name = SOURCE
    is_credentialed = True
