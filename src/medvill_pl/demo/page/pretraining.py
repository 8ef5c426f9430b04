"""The section on pre-training: losses, and reports with masked tokens."""

from html import escape
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl import PretrainingTask, html
from medvill_pl.demo.figures import Pretrained
from medvill_pl.demo.page.tables import middle_batch
from medvill_pl.demo.story import Story
from medvill_pl.demo.training import History
from medvill_pl.evaluation.figures import overlay
from medvill_pl.tasks.pretraining import MaskedReport

NUM_EXAMPLES = 4


def pretraining_section(story: Story) -> list[str]:
    """Heading, table, curves and examples."""
    figures = story.pretrained
    return [
        html.heading("Pre-training"),
        _table(figures),
        html.paragraph(
            "Is the image used? With the image of another study in place of the right one, the perplexity of masked "
            f"tokens is {figures.perplexity_of_other_image:.3f} instead of {figures.perplexity:.3f}; without use of "
            "the image they would be equal."
        ),
        html.drawing(_curves(story.history, figures), "Losses while training; dots are the validation split."),
        html.paragraph(
            "Images of the test split with their reports. Some tokens were masked: the model predicted the green ones "
            "rightly; where it was wrong, its prediction is struck out before the true token. Point at a token to see "
            "the top five. Beside it, where the masked token looks that looks at the image most (mean over the heads "
            "of the last layer). Attention shows where information was taken from; it is no proof of why a token was "
            "chosen."
        ),
        *_examples(story),
    ]


def _table(figures: Pretrained) -> str:
    rows: list[tuple[str, float, float, str]] = [
        ("MLM: perplexity of masked tokens", figures.perplexity, figures.unigram_perplexity, "token frequencies alone"),
        ("MLM: accuracy", figures.mlm_accuracy, figures.most_frequent_token, "always the most frequent token"),
        ("IRM: accuracy", figures.irm_accuracy, 0.5, "chance"),
        ("IRM: AUROC", figures.irm_auroc, 0.5, "chance"),
        ("IRM: loss", figures.irm_loss, float(np.log(2)), "chance"),
    ]
    return html.table(("figure", "this model", "without learning", "which is"), rows)


def _curves(history: History, figures: Pretrained) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    baselines = {
        "mlm": (float(np.log(figures.unigram_perplexity)), "token frequencies alone"),
        "irm": (float(np.log(2)), "chance"),
    }
    for axis, (name, (level, label)) in zip(figure.subplots(1, 2), baselines.items(), strict=True):
        steps = np.arange(1, len(history.train[name]) + 1)
        axis.plot(steps, _smooth(history.train[name]), color="#2f6db3", label="training")
        axis.plot(*zip(*history.val[name], strict=True), "o-", color="#d2691e", label="validation", markersize=4)
        axis.axhline(level, color="#7a8694", linestyle="--", linewidth=1, label=label)
        axis.set(title=f"{name.upper()} loss", xlabel="optimizer step", ylabel="nats", ylim=(0, None))
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _smooth(values: list[float], window: int = 50) -> NDArray[np.float64]:
    """Mean of each value and those before it, ``window`` at most."""
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: NDArray[np.float64] = (total[ends] - total[starts]) / (ends - starts)
    return means


def _examples(story: Story) -> list[str]:
    """Cards of the first matching pairs of a batch."""
    task = cast(PretrainingTask, story.tasks["pretraining"])
    batch = task.masking(middle_batch(story.data.pretraining))
    maps = task.image_attention(batch).tokens
    assert maps is not None  # under bar, tokens see the image
    cards = []
    for report in task.fill_masks(batch)[:NUM_EXAMPLES]:
        row = batch["id"].index(report.id)
        cards.append(_card(report, batch["image"][row, 0].numpy(), maps[row, report.masked]))
    return cards


def _card(report: MaskedReport, image: NDArray[np.uint8], maps: Tensor) -> str:
    is_word = torch.tensor([report.tokens[position].isalpha() for position in report.masked])
    best = int((maps.sum((1, 2)) * is_word).argmax())
    message = f"attention: {report.tokens[report.masked[best]]} ({maps[best].sum():.0%} on the image)"
    text = f"<div><p>{_text(report)}</p>{html.paragraph(message, is_note=True)}</div>"
    return html.card(html.picture(image, report.id), html.picture(overlay(image, maps[best])), text)


def _text(report: MaskedReport) -> str:
    guesses = dict(zip(report.masked, zip(report.predictions, report.probabilities, strict=True), strict=True))
    words = []
    for position, token in enumerate(report.tokens[:-1]):
        is_joined = position == 0 or token in (".", ",", "-") or report.tokens[position - 1] == "-"
        word = _guess(token, *guesses[position]) if position in guesses else escape(token)
        words.append(word if is_joined else f" {word}")
    return "".join(words)


def _guess(token: str, predictions: list[str], probabilities: list[float]) -> str:
    """A masked token as the page shows it."""
    top = ", ".join(f"{word} {share:.2f}" for word, share in zip(predictions, probabilities, strict=True))
    if predictions[0] == token:
        return f'<span class="right" title="{escape(top)}">{escape(token)}</span>'
    return f'<span class="wrong" title="{escape(top)}"><s>{escape(predictions[0])}</s> {escape(token)}</span>'
