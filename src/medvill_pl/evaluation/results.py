"""Per-example results on disk, from which every table can be made again without the model."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

from medvill_pl.evaluation.statistics import Estimate, Rows, bootstrap, independent_t_test, paired_bootstrap_test
from medvill_pl.files import write_atomically

Metrics = Callable[[Rows, Mapping[str, Any]], dict[str, float]]


@dataclass
class Results:
    """What one ``test`` run found.

    Attributes:
        rows: one mapping an example, with its ``id``.
        context: what the metrics need besides, such as names and baselines; plain values.
        metrics: import path of the function that scores rows and context; empty where rows have no scores.
        config: what was tested on what: task, hyper-parameters, backbone, corpus, device, inference time.
    """

    rows: Rows
    context: Mapping[str, Any]
    metrics: str
    config: dict[str, Any] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """The metrics of all rows."""
        return self._metrics()(self.rows, self.context)

    def bootstrap(self, num_replicates: int = 30, seed: int = 0) -> dict[str, Estimate]:
        """The metrics with their spread over bootstrap replicates."""
        metrics = self._metrics()
        return bootstrap(self.rows, lambda rows: metrics(rows, self.context), num_replicates, seed)

    def _metrics(self) -> Metrics:
        if not self.metrics:
            return lambda rows, context: {}
        module, _, name = self.metrics.rpartition(".")
        return cast(Metrics, getattr(import_module(module), name))

    def write(self, path: Path) -> None:
        """Write ``path`` (Parquet) and beside it, under the same name, a ``.json`` with all but the rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        beside = {name: value for name, value in asdict(self).items() if name != "rows"}
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(self.rows)), sink)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path.with_suffix(".json"), (json.dumps(beside, indent=2, default=str) + "\n").encode())
        write_atomically(path, sink.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read results from the Parquet file that :meth:`write` wrote.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if one of them is broken.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        beside = path.with_suffix(".json")
        for part in (path, beside):
            if not part.is_file():
                raise FileNotFoundError(f"no results: {part} is missing")
        try:
            values = json.loads(beside.read_text(encoding="utf-8"))
            return cls(rows=pq.read_table(path).to_pylist(), **values)
        except (pa.ArrowInvalid, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} holds no results of a test run: {error}") from error


def compare(
    results: Mapping[str, Results],
    num_replicates: int = 30,
    num_paired: int = 200,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Compare models that were tested on the same examples.

    Args:
        results: results by the name of the model; the first is the one that others are compared with.
        num_replicates: bootstrap replicates for mean, deviation, interval and the paper's t-test.
        num_paired: replicates for the paired test.
        seed: seed of the draws.
        metrics: names of metrics to keep; None keeps those that all results have.

    Returns:
        One row a metric and model: ``metric``, ``model``, ``value``, ``mean``, ``deviation``, ``low``, ``high``,
        and ``p_t_test`` and ``p_paired`` against the first model (None for itself).

    Raises:
        ValueError: if the examples differ.
    """
    first, *others = results
    ids = {str(row["id"]) for row in results[first].rows}
    for name in others:
        if {str(row["id"]) for row in results[name].rows} != ids:
            raise ValueError(f"{name} was tested on other examples than {first}: only the same can be compared")
    short = {name: result.bootstrap(num_replicates, seed) for name, result in results.items()}
    long = {name: result.bootstrap(num_paired, seed) for name, result in results.items()} if others else {}
    shared = [metric for metric in short[first] if all(metric in of_model for of_model in short.values())]
    table = []
    for metric in metrics or shared:
        if metric not in shared:
            raise ValueError(f"no metric {metric!r}: choose of {', '.join(shared)}")
        for name in results:
            estimate = short[name][metric]
            row: dict[str, Any] = {"metric": metric, "model": name, **estimate._asdict()}
            del row["replicates"]
            is_first = name == first
            row["p_t_test"] = (
                None if is_first else independent_t_test(short[first][metric].replicates, estimate.replicates)
            )
            row["p_paired"] = (
                None
                if is_first
                else paired_bootstrap_test(long[first][metric].replicates, long[name][metric].replicates)
            )
            table.append(row)
    return table
