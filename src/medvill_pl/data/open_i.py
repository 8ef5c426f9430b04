"""Open-I (the chest radiographs of Indiana University), prepared."""

from medvill_pl.data.prepared import PreparedDataModule

SOURCE = "open-i"


class OpenIDataModule(PreparedDataModule):
    """Open-I, from a prepared corpus folder (see :class:`PreparedDataModule`).

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
        >>> with tempfile.TemporaryDirectory() as folder:  # `medvill prepare open-i` writes such a corpus
        ...     Image.new("L", (32, 32), 128).save(f"{folder}/1.png")
        ...     rows = [Row("CXR1_IM-0001-4001", "CXR1", "train", f"{folder}/1.png", "The heart is normal in size.")]
        ...     _ = write_corpus(Path(folder) / "corpus", rows, CorpusInfo("open-i", False, 32, []))
        ...     data = OpenIDataModule(f"{folder}/corpus", tokenizer="synthetic", image_size=32)
        ...     data.examples("train").reports
        ['The heart is normal in size.']
    """

    name = SOURCE
    is_credentialed = False
