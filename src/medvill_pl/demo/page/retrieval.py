"""The section on retrieval: reports for an image, images for a report."""

from collections.abc import Sequence
from html import escape
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from medvill_pl import FINDINGS, RetrievalTask, html
from medvill_pl.demo.page.tables import Row, compare_table
from medvill_pl.demo.story import Story
from medvill_pl.synthetic.datamodule import SyntheticExamples

GALLERY_SIZE = 100
"""Test pairs that the page's searches go through."""
NUM_BEST = 4


def retrieval_section(story: Story) -> list[str]:
    """Heading, table and searches."""
    task = cast(RetrievalTask, story.tasks["retrieval"])
    examples = cast(SyntheticExamples, story.data.retrieval.datasets["test"].examples)
    return [
        html.heading("Retrieval"),
        html.paragraph(
            f"Each of {len(examples.ids)} images searches {task.num_candidates} reports for one with its own set of "
            "findings, and each report the images."
        ),
        _table(story),
        html.paragraph(_frequencies(story), is_note=True),
        html.paragraph(
            f"The best {NUM_BEST} of {min(GALLERY_SIZE, len(examples.ids))}; frames are green where the findings are "
            "the query's, red where they are not."
        ),
        *_searches(task, examples),
    ]


def _table(story: Story) -> str:
    scores, rival = story.results["retrieval"].scores(), story.rival["retrieval"]
    rows: list[Row] = []
    for way, name in (("image_to_report", "reports for an image"), ("report_to_image", "images for a report")):
        for metric, label in (("mrr", "MRR"), ("hit@5", "Hit@5")):
            key = f"{way}/{metric}"
            chance = scores[f"{way}/chance_{metric}"]
            rows.append((f"{name}: {label}", scores[key], rival[key], chance, "chance", 1.0))
    return compare_table(rows)


def _frequencies(story: Story) -> str:
    scores = story.results["retrieval"].scores()
    by_image, by_report = (scores[f"{way}/frequency_mrr"] for way in ("image_to_report", "report_to_image"))
    return f"A ranker that knows label frequencies alone has an MRR of {by_image:.3f} and {by_report:.3f}."


@torch.inference_mode()
def _searches(task: RetrievalTask, examples: SyntheticExamples, queries: Sequence[int] = (3, 11)) -> list[str]:
    """Search the first test pairs by an image and by a report, as the paper's Fig. 7 shows it."""
    number = min(GALLERY_SIZE, len(examples.ids))
    images = torch.stack([examples.image(index) for index in range(number)])
    gallery = task.make_gallery(task.backbone.encode_image(images), task.encode_texts(examples.reports[:number]))
    everything = np.arange(number)
    parts = []
    for query in queries:
        own = np.full(number, query)
        by_image = task.score_pairs(gallery, np.stack([own, everything], axis=1))
        by_report = task.score_pairs(gallery, np.stack([everything, own], axis=1))
        findings = _positive(examples, query)
        text = f"<div><p>{escape(examples.reports[query])}</p><p>{html.tags(findings, findings)}</p></div>"
        parts.append(html.card(html.picture(_pixels(examples, query)), text))
        for name, scores in (("Reports for this image", by_image), ("Images for this report", by_report)):
            parts += [html.paragraph(name, is_note=True), _results(examples, query, scores)]
    return parts


def _results(examples: SyntheticExamples, query: int, scores: NDArray[np.float32]) -> str:
    best = np.argsort(-scores, kind="stable")[:NUM_BEST].tolist()
    expected = _positive(examples, query)
    return html.results(
        [
            html.result(
                _pixels(examples, index),
                f"{rank}. {examples.ids[index]}" + " (its own)" * (index == query),
                examples.reports[index],
                _positive(examples, index),
                expected,
            )
            for rank, index in enumerate(best, start=1)
        ]
    )


def _pixels(examples: SyntheticExamples, index: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = examples.image(index)[0].numpy()
    return pixels


def _positive(examples: SyntheticExamples, index: int) -> list[str]:
    return [finding for finding, label in zip(FINDINGS, examples.labels[index], strict=True) if label == 1]
