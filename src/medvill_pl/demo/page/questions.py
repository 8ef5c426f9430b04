"""The section on question answering."""

from collections.abc import Mapping
from html import escape
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medvill_pl import VQATask, html
from medvill_pl.demo.page.tables import Row, compare_table, middle_batch
from medvill_pl.demo.story import Story
from medvill_pl.tasks.result_table import slice_batch

NUM_EXAMPLES = 4
CONTROLS = {"blank": "a black image", "shuffled": "another image"}
"""What the model is shown in place of the right image, so that it has the question alone to answer from."""


def questions_section(story: Story) -> list[str]:
    """Heading, tables and examples."""
    task = cast(VQATask, story.tasks["vqa"])
    scores = story.results["vqa"].scores()
    kinds = [(key.split("/")[-1], value) for key, value in scores.items() if key.startswith("accuracy/type/")]
    batch = slice_batch(middle_batch(story.data.vqa), NUM_EXAMPLES)
    rows, images = task.predict_step(batch, 0), batch["image"][:, 0].numpy()
    return [
        html.heading("Questions"),
        html.paragraph(
            "Share of right answers. With a black image, or that of another question, the model has the question alone "
            "to answer from."
        ),
        _table(story),
        html.table(("what is asked about", "accuracy"), kinds),
        *(_card(*each) for each in zip(rows, batch["answer"], images, strict=True)),
    ]


def _table(story: Story) -> str:
    scores, rival = story.results["vqa"].scores(), story.rival["vqa"]
    rows: list[Row] = []
    for kind in ("closed", "open"):
        key, best = f"accuracy_{kind}", scores[f"ceiling_{kind}"]
        baseline = scores[f"accuracy_most_frequent_{kind}"]
        rows.append((f"{kind} questions", scores[key], rival[key], baseline, "the most frequent answer", best))
        for control, name in CONTROLS.items():
            rows.append((f"{kind} questions, {name}", scores[f"accuracy_{control}_{kind}"], "", "", "", ""))
    return compare_table(rows)


def _card(row: Mapping[str, Any], answer: str, image: NDArray[np.uint8]) -> str:
    top = ", ".join(f"{row[f'answer_{rank}']} {row[f'probability_{rank}']:.2f}" for rank in range(1, 4))
    kind = "right" if row["answer_1"] == answer else "wrong"
    text = f'<p><b>{escape(row["question"])}</b> <span class="{kind}">{escape(row["answer_1"])}</span></p>'
    note = html.paragraph(f"answer: {answer}; top three: {top}", is_note=True)
    return html.card(html.picture(image), f"<div>{text}{note}</div>")
