"""MIMIC-CXR, prepared."""

from medvill_pl.data.prepared import PreparedDataModule

SOURCE = "mimic-cxr"


class MIMICCXRDataModule(PreparedDataModule):
    """MIMIC-CXR, from a prepared corpus folder (see :class:`PreparedDataModule`). Its text and images are credentialed.

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset.
    """

    name = SOURCE
    is_credentialed = True
