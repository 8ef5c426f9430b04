"""What the sections share: the tables' columns, the headline figures, and batches to show."""

from collections.abc import Sequence
from typing import NamedTuple

from medvill_pl import BaseDataModule, Batch, html
from medvill_pl.demo.story import Story

RIVAL = "image encoder's own head"
HEADER = ("figure", "this model", RIVAL, "without learning", "which is", "at best")
Row = tuple[str, float, float | str, float | str, str, float | str]
"""Name, value of the model, of the rival, of a baseline, the baseline's name, and the best possible value."""


def compare_table(rows: Sequence[Row]) -> str:
    """A table of model, rival and baseline."""
    return html.table(HEADER, rows)


class Headline(NamedTuple):
    """A figure by which model and rival are compared; higher is better.

    Attributes:
        name: for people.
        model: its value.
        rival: that of the image encoder's own head.
        baseline: what is reached without learning.
    """

    name: str
    model: float
    rival: float
    baseline: float


HEADLINES: dict[str, tuple[str, str, str | float]] = {
    "AUROC of findings, macro": ("classification", "auroc_macro", 0.5),
    "AUROC of findings, micro": ("classification", "auroc_micro", "frequency_auroc_micro"),
    "MRR of reports for an image": ("retrieval", "image_to_report/mrr", "image_to_report/chance_mrr"),
    "MRR of images for a report": ("retrieval", "report_to_image/mrr", "report_to_image/chance_mrr"),
    "accuracy of closed questions": ("vqa", "accuracy_closed", "accuracy_most_frequent_closed"),
    "accuracy of open questions": ("vqa", "accuracy_open", "accuracy_most_frequent_open"),
    "clinical F1 of reports": ("generation", "clinical_f1", "constant_clinical_f1"),
    "BLEU-4 of reports": ("generation", "bleu_4", "constant_bleu_4"),
}
"""By name, the task, its metric, and the metric of the baseline or its value."""


def read_headlines(story: Story) -> list[Headline]:
    """The headline figures."""
    headlines = []
    for name, (task, metric, baseline) in HEADLINES.items():
        scores = story.results[task].scores()
        without = scores[baseline] if isinstance(baseline, str) else baseline
        headlines.append(Headline(name, scores[metric], story.rival[task][metric], without))
    return headlines


def middle_batch(data: BaseDataModule) -> Batch:
    """The test batch in the middle, whose texts have the usual length."""
    batches: list[Batch] = list(data.test_dataloader())
    return batches[len(batches) // 2]
