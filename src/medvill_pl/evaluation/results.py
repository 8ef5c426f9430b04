"""Per-example results on disk, from which every table can be made again without the model."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

from medvill_pl.evaluation.statistics import Estimate, Rows, bootstrap, independent_t_test, paired_bootstrap_test
from medvill_pl.files import write_atomically

ScoreFunction = Callable[[Rows, Mapping[str, Any]], dict[str, float]]
"""Takes the rows of a test and its context, and gives metrics by name."""

_MAIN = ("__main__", "__mp_main__")  # the second is its name in a process that was spawned


def importable_path(path: str) -> tuple[str, str | None]:
    """Say under which path another process finds a function.

    A function of the program itself is ``__main__.f`` here, and another program's ``f`` elsewhere. Under ``python -m``
    its module has a name that can be imported; a script has none.

    Args:
        path: import path of a scoring function in this process, such as ``score_fn`` of a task; empty for none.

    Returns:
        The path to store, and None. Of a function that no other process can import, ``script.py:f``, which names it
        to people only, and one line to warn with.

    Example:
        >>> importable_path("medvill_pl.evaluation.vqa.vqa_scores")
        ('medvill_pl.evaluation.vqa.vqa_scores', None)
    """
    module, _, name = path.rpartition(".")
    if module not in _MAIN:
        return path, None
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return f"{main.__spec__.name}.{name}", None
    script = Path(str(vars(main).get("__file__", "an interactive session"))).name
    return f"{script}:{name}", (
        f"these results cannot be scored again by themselves, since {name} is defined in {script}, which has no import "
        f"path: move it into a module, or pass it later, results.scores(score_fn={name})"
    )


@dataclass
class Results:
    """The results of one ``test`` run.

    Attributes:
        rows: one mapping per example, with its ``id``.
        context: what the scoring function needs besides, such as names and baselines; plain values.
        score_fn: import path of the function that scores rows and context; empty where rows have no scores.
        config: what was tested on what: task, hyper-parameters, backbone, corpus, device, inference time.

    Example:
        >>> rows = [{"id": "a", "matched": True, "match_probability": 0.9}]
        >>> results = Results(rows, {}, "medvill_pl.evaluation.retrieval.retrieval_scores")
        >>> results.scores()
        {'match_accuracy': 1.0}
        >>> results.scores(score_fn=lambda rows, context: {"number": float(len(rows))})
        {'number': 1.0}
    """

    rows: Rows
    context: Mapping[str, Any]
    score_fn: str
    config: dict[str, Any] = field(default_factory=dict)

    def scores(self, score_fn: ScoreFunction | None = None) -> dict[str, float]:
        """The metrics of all rows.

        Args:
            score_fn: what to score with; None takes the function that :attr:`score_fn` names.

        Raises:
            ValueError: if that function cannot be imported.
        """
        return (score_fn or self._score_function())(self.rows, self.context)

    def bootstrap(
        self, num_replicates: int = 30, seed: int = 0, score_fn: ScoreFunction | None = None
    ) -> dict[str, Estimate]:
        """The metrics with their spread over replicates of the test set.

        Args:
            num_replicates: replicates of the test set; the paper takes 30.
            seed: seed of the draws.
            score_fn: what to score with; None takes the function that :attr:`score_fn` names.

        Raises:
            ValueError: if that function cannot be imported, or there is nothing to draw from.
        """
        score = score_fn or self._score_function()
        return bootstrap(self.rows, lambda rows: score(rows, self.context), num_replicates, seed)

    def _score_function(self) -> ScoreFunction:
        if not self.score_fn:
            return lambda rows, context: {}
        if ":" in self.score_fn:
            script, _, name = self.score_fn.partition(":")
            raise ValueError(
                f"these results are scored by {name} of {script}, which cannot be imported: "
                f"pass the function, results.scores(score_fn={name})"
            )
        module, _, name = self.score_fn.rpartition(".")
        try:
            return cast(ScoreFunction, getattr(import_module(module), name))
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"these results are scored by {self.score_fn}, which cannot be imported here ({error}): "
                f"run where it can be, or pass the function, results.scores(score_fn={name})"
            ) from error

    def write(self, path: Path) -> None:
        """Write ``path`` (Parquet) and beside it, under the same name, a ``.json`` with all but the rows.

        The path of the scoring function is written as :func:`importable_path` gives it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        beside = {name: value for name, value in asdict(self).items() if name != "rows"}
        beside["score_fn"], _ = importable_path(self.score_fn)
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(self.rows)), sink)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path.with_suffix(".json"), (json.dumps(beside, indent=2, default=str) + "\n").encode())
        write_atomically(path, sink.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read results from the Parquet file that :meth:`write` wrote, also that of version 0.1.

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
            rows = pq.read_table(path).to_pylist()
            if "metrics" in values:
                rows, values = _from_version_0_1(rows, values)
            results = cls(rows=rows, **values)
        except (pa.ArrowInvalid, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no results of a test run: {error}") from error
        module, _, name = results.score_fn.rpartition(".")
        if module in _MAIN:  # the program that wrote it, not this one
            results.score_fn = f"a script:{name}"
        return results


_RENAMED = {"metrics": "score_fn", "commonest": "most_frequent", "ms_an_example": "ms_per_example"}
_GALLERIES = {"trial": "candidates", "whole": "full"}


def _from_version_0_1(
    rows: list[dict[str, Any]], values: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give what version 0.1 wrote the names of today."""
    values = {_RENAMED.get(name, name): value for name, value in values.items()}
    for part in ("context", "config"):
        values[part] = {_RENAMED.get(name, name): value for name, value in values[part].items()}
    if values["score_fn"] == "medvill_pl.evaluation.retrieval.retrieval_scores":
        rows = [{"gallery": _GALLERIES[row.pop("pool")], **row} if "pool" in row else row for row in rows]
    return rows, values


def compare(
    results: Mapping[str, Results],
    num_replicates: int = 30,
    num_paired: int = 200,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    score_fn: ScoreFunction | None = None,
) -> list[dict[str, Any]]:
    """Compare models that were tested on the same examples (MedViLL, Sec. IV-D).

    Args:
        results: results by the name of the model; the others are compared with the first.
        num_replicates: bootstrap replicates for mean, standard deviation, interval and the paper's t-test.
        num_paired: replicates for the paired test.
        seed: seed of the draws.
        metrics: names of metrics to keep; None keeps those that all results have.
        score_fn: what to score with; None takes the function that each result names.

    Returns:
        One row per metric and model: ``metric``, ``model``, ``value``, ``mean``, ``deviation``, ``low``, ``high``,
        and ``p_t_test`` and ``p_paired`` against the first model (None for itself).

    Raises:
        ValueError: if the examples differ, a metric is unknown, or the scoring function cannot be imported.

    Example:
        >>> def share(rows, context):
        ...     return {"accuracy": sum(row["is_right"] for row in rows) / len(rows)}
        >>> good, bad = (Results([{"id": n, "is_right": n % k > 0} for n in range(20)], {}, "") for k in (5, 2))
        >>> for row in compare({"good": good, "bad": bad}, score_fn=share):
        ...     print(row["model"], row["value"], row["p_paired"])
        good 0.8 None
        bad 0.5 0.049...
    """
    first, *others = results
    for name in others:
        if _ids(results[name]) != _ids(results[first]):
            raise ValueError(f"{name} was tested on other examples than {first}: only the same can be compared")
    short = {name: result.bootstrap(num_replicates, seed, score_fn) for name, result in results.items()}
    long = {name: result.bootstrap(num_paired, seed, score_fn) for name, result in results.items()} if others else {}
    table: list[dict[str, Any]] = []
    for metric in _choose(metrics, list(short.values())):
        for name in results:
            estimate = short[name][metric]._asdict()
            replicates, t_test, paired = estimate.pop("replicates"), None, None
            if name != first:
                t_test = independent_t_test(short[first][metric].replicates, replicates)
                paired = paired_bootstrap_test(long[first][metric].replicates, long[name][metric].replicates)
            table.append({"metric": metric, "model": name, **estimate, "p_t_test": t_test, "p_paired": paired})
    return table


def _ids(results: Results) -> set[str]:
    return {str(row["id"]) for row in results.rows}


def _choose(metrics: Sequence[str] | None, models: Sequence[Mapping[str, Estimate]]) -> Sequence[str]:
    """The metrics that were asked for, which all models must have; all that they share where none were asked for."""
    shared = [metric for metric in models[0] if all(metric in estimates for estimates in models)]
    for metric in metrics or ():
        if metric not in shared:
            raise ValueError(f"no metric {metric!r}: choose of {', '.join(shared)}")
    return metrics or shared
