"""From the per-example results of all processes to the metrics of a split."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from medvill_pl.evaluation.results import Results, importable_path
from medvill_pl.runs import gather

if TYPE_CHECKING:
    from medvill_pl.tasks.base import BaseTask


def collect_results(task: "BaseTask", stage: str) -> Results:
    """Put the rows of all processes together, score them and log the metrics as ``{stage}/{metric}``.

    Args:
        task: a task whose stage has ended.
        stage: ``val`` or ``test``.

    Returns:
        The rows, sorted by identifier, with all that a table needs.
    """
    rows = sorted(gather(task.finish_results(stage), task.trainer), key=lambda row: str(row["id"]))
    results = Results(rows, {}, task.score_fn, _describe(task))
    if stage == "test" and task.score_fn:
        _, warning = importable_path(task.score_fn)
        if warning:
            rank_zero_warn(warning)
    if rows and not task.trainer.sanity_checking:
        results.context = task.score_context(stage, rows)
        # All processes have the same rows, so the mean over processes changes nothing.
        for name, value in results.scores().items():
            key = f"{stage}/{name}"
            task.log(key, value, prog_bar=key == task.monitor, sync_dist=True)
    return results


def _describe(task: "BaseTask") -> dict[str, Any]:
    """Task and hyper-parameters, for the record beside the results."""
    hyperparameters = {name: value for name, value in task.hparams.items() if name != "backbone"}
    name = f"{type(task).__module__}.{type(task).__qualname__}"
    return {"task": name, "hyper_parameters": hyperparameters, **task.describe()}
