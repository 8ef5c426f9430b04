"""The section on classification: findings from the image alone."""

from typing import cast

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl import FINDINGS, ClassificationTask, html
from medvill_pl.demo.figures import Scores
from medvill_pl.demo.page.tables import RIVAL, Row, compare_table, middle_batch
from medvill_pl.demo.story import Story
from medvill_pl.evaluation.figures import overlay
from medvill_pl.tasks.result_table import slice_batch

NUM_EXAMPLES = 3


def findings_section(story: Story) -> list[str]:
    """Heading, table, bars and examples."""
    task = cast(ClassificationTask, story.tasks["classification"])
    scores, rival = story.results["classification"].scores(), story.rival["classification"]
    batch = slice_batch(middle_batch(story.data.classification), NUM_EXAMPLES)
    images, maps = batch["image"][:, 0].numpy(), task.image_attention(batch).cls
    return [
        html.heading("Findings, from the image alone"),
        _table(scores, rival),
        html.drawing(_bars(scores, rival), "AUROC of each finding that occurs in the test split."),
        *(_card(*each) for each in zip(task.example_rows(batch), images, maps, strict=True)),
    ]


def _table(scores: Scores, rival: Scores) -> str:
    rows: list[Row] = [
        ("AUROC, mean of findings", scores["auroc_macro"], rival["auroc_macro"], 0.5, "label frequencies", 1.0)
    ]
    for metric, name in (("auroc", "AUROC"), ("average_precision", "average precision")):
        key = f"{metric}_micro"
        baseline = scores[f"frequency_{key}"]
        rows.append((f"{name}, all cells", scores[key], rival[key], baseline, "label frequencies", 1.0))
    return compare_table(rows)


def _bars(scores: Scores, rival: Scores) -> Figure:
    keys = {finding: f"auroc/{finding.lower().replace(' ', '_')}" for finding in FINDINGS}
    names = [finding for finding, key in keys.items() if key in scores]
    positions = np.arange(len(names))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    for shift, values, colour, label in ((-0.2, scores, "#2f6db3", "this model"), (0.2, rival, "#b9c3cf", RIVAL)):
        heights = [values[keys[name]] for name in names]
        axis.bar(positions + shift, heights, width=0.38, color=colour, label=label)
    axis.set(ylim=(0.4, 1.0), ylabel="AUROC")
    axis.axhline(0.5, color="#7a8694", linestyle="--", linewidth=1)
    axis.set_xticks(positions, names, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _card(row: dict[str, object], image: NDArray[np.uint8], attention: Tensor) -> str:
    text = html.paragraph(f"Positive: {row['findings'] or 'nothing that is labelled'}.")
    text += html.paragraph(f"Top three of the model: {row['top findings']}.")
    text += html.paragraph("Right: where CLS looks.", is_note=True)
    return html.card(html.picture(image), html.picture(overlay(image, attention)), f"<div>{text}</div>")
