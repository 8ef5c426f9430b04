"""Open-I (the chest radiographs of Indiana University), prepared."""

from medvill_pl.data.prepared import PreparedDataModule

SOURCE = "open-i"


class OpenIDataModule(PreparedDataModule):
    """Open-I, from a prepared corpus folder (see :class:`PreparedDataModule`).

    Raises:
        FileNotFoundError: if the folder is no corpus.
        ValueError: if it was prepared from another dataset.
    """

    name = SOURCE
    is_credentialed = False
