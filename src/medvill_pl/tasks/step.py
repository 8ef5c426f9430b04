"""What one step of a task gives back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medvill_pl.evaluation.statistics import Rows


class StepOutput(NamedTuple):
    """What one step computed.

    Attributes:
        loss: the loss to descend, scalar; a mean over examples, or over ``loss_weight`` terms.
        metric_inputs: for each group of metrics, predictions and targets.
        losses: further losses to log at every training step, scalars by name.
        results: what validation and test keep of each example: columns by name, tensors or lists of length B.
        loss_weight: of how many terms the loss is the mean, where these are not the examples: so that validation and
            test weigh batches rightly, however the split is divided into them.

    Example:
        >>> import torch
        >>> output = StepOutput(torch.tensor(0.5), results={"id": ["a", "b"], "score": torch.tensor([1.0, 2.0])})
        >>> to_rows(output.results)
        [{'id': 'a', 'score': 1.0}, {'id': 'b', 'score': 2.0}]
    """

    loss: Tensor
    metric_inputs: Mapping[str, tuple[Tensor, Tensor]] = {}
    losses: Mapping[str, Tensor] = {}
    results: Mapping[str, Tensor | Sequence[Any]] = {}
    loss_weight: int | None = None


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the weights are those before the step."""


def require_finite(loss: Tensor, what: str, where: str, ids: Sequence[str]) -> None:
    """Stop a run before a loss that is no number reaches the weights.

    Args:
        loss: scalar.
        what: what it is, for the message, such as ``train loss``.
        where: epoch and step.
        ids: the examples of the batch.

    Raises:
        NonFiniteLossError: if the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise NonFiniteLossError(f"the {what} is {loss.item()} at {where}; the batch is {', '.join(ids)}")


def to_rows(columns: Mapping[str, Tensor | Sequence[Any]]) -> Rows:
    """Turn columns of one length into one mapping per example, of plain values.

    Args:
        columns: tensors or sequences of length B by name.

    Returns:
        B mappings; floating-point tensors become Python floats of their float32 value.

    Raises:
        ValueError: if the columns differ in length.
    """
    lists = [_to_list(column) if isinstance(column, Tensor) else column for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _to_list(column: Tensor) -> list[Any]:
    column = column.detach().cpu()
    values: list[Any] = (column.float() if column.is_floating_point() else column).tolist()
    return values
