"""What a data module and a task say to each other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from medvill_pl.batch import Batch, Split
from medvill_pl.tokenizer import InputSpec

if TYPE_CHECKING:
    from medvill_pl.data.module import BaseDataModule


@runtime_checkable
class DataUser(Protocol):
    """A LightningModule that a data module connects to: every task.

    Attributes:
        data: the data module of the running stage, which puts itself here; None with loaders of the user's own.

    Example:
        >>> from medvill_pl import PretrainingTask
        >>> small = {"image_encoder": "resnet_tiny", "image_size": 32, "tokenizer": "synthetic", "hidden_size": 8}
        >>> task = PretrainingTask({**small, "num_layers": 1, "num_heads": 1, "intermediate_size": 8})
        >>> isinstance(task, DataUser), task.input_spec.image_size
        (True, 32)
    """

    data: "BaseDataModule | None"

    @property
    def input_spec(self) -> InputSpec | None:
        """What the model reads; None if any data will do."""
        ...

    def batch_transform(self, split: Split) -> Callable[[Batch], Batch] | None:
        """What is done to each batch of a split in worker processes, such as masking tokens; None for nothing."""
        ...
