"""Metrics and per-example results of one stage of a task."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from medvill_pl.evaluation.statistics import Rows
from medvill_pl.tasks.step import StepOutput, to_rows


class Stage(nn.Module):
    """What ``train``, ``val`` or ``test`` collects over its batches.

    Args:
        name: ``train``, ``val`` or ``test``: the prefix of its log names.
        metrics: fresh metrics by group.
    """

    def __init__(self, name: str, metrics: Mapping[str, MetricCollection]) -> None:
        super().__init__()
        self.name = name
        self.loss = MeanMetric(nan_strategy="disable")  # looking for NaN would make the device wait
        self.groups = nn.ModuleDict({group: metric.clone(prefix=f"{name}/") for group, metric in metrics.items()})
        self._columns: list[Mapping[str, Tensor | Sequence[Any]]] = []

    def update(self, output: StepOutput, size: int) -> None:
        """Add what a step computed of ``size`` examples; the losses of training are not collected here."""
        if self.name != "train":
            weight = size if output.loss_weight is None else output.loss_weight
            # A weight argument is lost on a metric that does not look for NaN, so the loss is repeated instead.
            self.loss.update(output.loss.detach().expand(weight))
            self._columns.append(output.results)
        for group, (preds, target) in output.metric_inputs.items():
            self._collection(group).update(preds.detach(), target)

    def named_metrics(self, group: str) -> list[tuple[str, Metric]]:
        """The metrics of a group by the names they are logged under."""
        return list(self._collection(group).items(keep_base=False, copy_state=False))

    def _collection(self, group: str) -> MetricCollection:
        metrics = self.groups[group]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def take_rows(self) -> Rows:
        """The results of this process, one mapping per example; the next epoch begins with none."""
        columns, self._columns = self._columns, []
        return [row for part in columns for row in to_rows(part)]
