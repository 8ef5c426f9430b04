"""The section on report generation."""

from collections.abc import Mapping
from html import escape
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from medvill_pl import GenerationTask, html
from medvill_pl.demo.page.tables import Row, compare_table, middle_batch
from medvill_pl.demo.story import Story
from medvill_pl.evaluation.figures import join_tokens, overlay
from medvill_pl.tasks.result_table import slice_batch

NUM_EXAMPLES = 4
METRICS = {"clinical_f1": "clinical F1", "clinical_f1_five": "clinical F1, five findings", "bleu_4": "BLEU-4"}


def reports_section(story: Story) -> list[str]:
    """Heading, table and examples."""
    task = cast(GenerationTask, story.tasks["generation"])
    task.return_attention = True
    batch = slice_batch(middle_batch(story.data.generation), NUM_EXAMPLES)
    rows, images = task.predict_step(batch, 0), batch["image"][:, 0].numpy()
    distinct = story.results["generation"].scores()["distinct"]
    return [
        html.heading("Reports"),
        _table(story),
        html.paragraph(
            "At best: for the perplexity, a writer who knows the grammar and all findings; for the others, a second "
            f"report of the same image by the grammar. Different texts among those written: {distinct:.0%}. "
            "Clinical F1 is measured by the rule-based labeler.",
            is_note=True,
        ),
        *(_card(*each) for each in zip(rows, images, strict=True)),
    ]


def _table(story: Story) -> str:
    scores, rival, best = story.results["generation"].scores(), story.rival["generation"], story.best
    unigram = story.pretrained.unigram_perplexity
    rows: list[Row] = [
        ("perplexity", scores["perplexity"], "-", unigram, "token frequencies", best["perplexity"]),
    ]
    for metric, name in METRICS.items():
        constant = scores[f"constant_{metric}"]
        rows.append((name, scores[metric], rival[metric], constant, "the best constant report", best[metric]))
    return compare_table(rows)


def _card(row: Mapping[str, Any], image: NDArray[np.uint8]) -> str:
    texts = (("Reference", row["reference"]), ("Written", row["prediction"]))
    text = "".join(f"<p><b>{name}.</b> {escape(report)}</p>" for name, report in texts)
    if not row["attention"]:  # an empty report
        return html.card(html.picture(image), f"<div>{text}</div>")
    words, maps = join_tokens(row["tokens"], torch.tensor(row["attention"]))
    best = int(maps.sum(1).argmax())
    side = round(maps.shape[1] ** 0.5)
    note = html.paragraph(f"{words[best]}: {maps[best].sum():.0%} of its attention is on the image", is_note=True)
    picture = html.picture(overlay(image, maps[best].view(side, side)))
    return html.card(html.picture(image), picture, f"<div>{text}{note}</div>")
