"""What callbacks ask of a task; any LightningModule that offers it will do."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from medvill_pl.batch import Batch
from medvill_pl.data.module import BaseDataModule
from medvill_pl.tokenizer import ReportTokenizer

Rows = Sequence[Mapping[str, Any]]


class Attention(Protocol):
    """Attention on the image: of CLS, shape ``(B, h, w)``, and of text tokens, shape ``(B, T, h, w)``, or None."""

    @property
    def cls(self) -> Tensor: ...  # noqa: D102

    @property
    def tokens(self) -> Tensor | None: ...  # noqa: D102


class Knows(Protocol):
    """Knows its data module."""

    data: BaseDataModule | None


@runtime_checkable
class Arranges(Knows, Protocol):
    """Puts predictions into the order in which they are written: every task."""

    def arrange_predictions(self, rows: Rows) -> Rows: ...  # noqa: D102


@runtime_checkable
class ShowsExamples(Knows, Protocol):
    """Shows examples of a batch, and where it looks on their images."""

    @property
    def tokenizer(self) -> ReportTokenizer: ...  # noqa: D102

    def example_rows(self, batch: Batch) -> Sequence[Mapping[str, object]]: ...  # noqa: D102

    def image_attention(self, batch: Batch) -> Attention: ...  # noqa: D102


@runtime_checkable
class Searches(Arranges, Protocol):
    """Searches the data for a query."""

    query_image: str | None
    query_text: str | None
    query_pixels: Tensor | None


@runtime_checkable
class CountsFlops(Protocol):
    """Knows the work of a forward pass."""

    def flops_per_pair(self, num_text: int) -> int: ...  # noqa: D102
