"""The demo's page: a section a task, with figures, baselines and examples."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medvill_pl import html
from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.demo import STRATEGY, Pretrained, Story
from medvill_pl.demo.training import FILMS_A_STEP, History
from medvill_pl.evaluation.figures import attention_on_image, overlay
from medvill_pl.tasks.classification import ClassificationTask
from medvill_pl.tasks.gallery import pad_texts
from medvill_pl.tasks.generation import GenerationTask
from medvill_pl.tasks.pretraining import MaskedReport, PretrainingTask
from medvill_pl.tasks.result_table import slice_batch
from medvill_pl.tasks.retrieval import RetrievalTask
from medvill_pl.tasks.vqa import VQATask

HEADER = ("figure", "this model", "plain ResNet-18", "without learning", "which is", "at best")
POOL = 100
"""Test pairs that the page's searches go through."""


def write_report_page(path: Path, story: Story) -> None:
    """Write the page."""
    parts = [
        html.paragraph(
            "A small MedViLL, pre-trained on the embedded corpus (phantom chest films and their reports) under the "
            f"{STRATEGY} attention mask, then fine-tuned for four tasks. All figures are on {story.budget.num_test} "
            "pairs of patients that training never saw. For research, not a medical device."
        ),
        html.paragraph(
            "The plain ResNet-18 learnt the findings of the training films from nothing, for as many seconds as the "
            "CNN here, but sharing the processor with the pre-training; its findings then rank, answer and choose a "
            "training report. At best stands what a reader would reach who sees every film perfectly.",
            is_note=True,
        ),
        *_pretraining(story),
        *_classification(story),
        *_retrieval(story),
        *_vqa(story),
        *_generation(story),
        html.heading("How it was made"),
        html.paragraph(_how(story)),
        html.table(("part", "seconds"), [(part, f"{seconds:.0f}") for part, seconds in story.seconds.items()]),
    ]
    html.write_page(path, "MedViLL in minutes", parts)


def summary(story: Story) -> str:
    """The main figures in a few lines, for the terminal."""
    scores = {name: results.scores() for name, results in story.results.items()}
    find, search, answer, write = (scores[n] for n in ("classification", "retrieval", "vqa", "generation"))
    mrr = ", ".join(
        f"{search[f'{way}/mrr']:.3f} {told} (chance {search[f'{way}/chance_mrr']:.3f})"
        for way, told in (("image_to_report", "image to report"), ("report_to_image", "report to image"))
    )
    floor = story.best["generation"]["perplexity"]
    return (
        f"findings, image only: AUROC {find['auroc_macro']:.3f} macro, {find['auroc_micro']:.3f} micro "
        f"(label frequencies {find['frequency_auroc_micro']:.3f})\n"
        f"retrieval: MRR {mrr}\n"
        f"questions: accuracy {answer['accuracy_closed']:.3f} closed, {answer['accuracy_open']:.3f} open "
        f"(black image {answer['accuracy_blank_closed']:.3f}, {answer['accuracy_blank_open']:.3f})\n"
        f"reports: perplexity {write['perplexity']:.3f} (floor {floor:.3f}), clinical F1 {write['clinical_f1']:.3f}, "
        f"BLEU-4 {write['bleu_4']:.3f} (constant report {write['constant_clinical_f1']:.3f}, "
        f"{write['constant_bleu_4']:.3f})"
    )


def _how(story: Story) -> str:
    budget = story.budget
    return (
        f"First the CNN alone learnt to predict the findings of {budget.num_cnn:,} films of other patients and the "
        f"words of their reports ({budget.image_encoder_steps} steps of {FILMS_A_STEP}), in place of the ImageNet "
        "weights that "
        f"the paper starts from; it was then kept as it was. {budget.pretraining} epochs of MLM and IRM over "
        f"{budget.num_train:,} pairs trained a transformer of 2 layers, 96 wide, on top of it. Each task went on from "
        f"there with a copy: {budget.classification} epochs of classification, {budget.retrieval} of retrieval, "
        f"{budget.vqa} of question answering and {budget.generation} of report generation, which predicts every word "
        "from those before it instead of a hidden few. The tasks ran side by side. The results of each test lie beside "
        "this page, example by example, as Parquet."
    )


# -- pre-training --------------------------------------------------------------------------------


def _pretraining(story: Story) -> list[str]:
    task, figures = cast(PretrainingTask, story.tasks["pretraining"]), story.pretrained
    shown = _examples(task, story.data["pretraining"])
    return [
        html.heading("Pre-training"),
        _pretraining_table(figures),
        html.paragraph(
            "Is the film used? With the film of another study in place of the right one, the perplexity of hidden "
            f"words is {figures.perplexity_of_other_film:.3f} instead of {figures.perplexity:.3f}; without use of the "
            "film they would be equal."
        ),
        html.drawing(_curves(story.history, figures), "Losses while training; dots are the validation split."),
        html.paragraph(
            "Films of the test split with their reports. Some words were hidden: green ones were found; where the "
            "model was wrong, its guess is struck out before the true word. Point at a word to see the likeliest five. "
            "Beside it, where the hidden word looks that looks at the film most (mean over the heads of the last "
            "layer). Attention shows where information was taken from; it is no proof of why a word was chosen."
        ),
        *(_masked_card(task, each) for each in shown),
    ]


def _pretraining_table(figures: Pretrained) -> str:
    rows: list[tuple[object, ...]] = [
        ("MLM: perplexity of hidden words", figures.perplexity, figures.unigram_perplexity, "word frequencies alone"),
        ("MLM: hidden words found", figures.mlm_accuracy, figures.most_frequent_token, "always the most_frequent word"),
        ("IRM: accuracy", figures.irm_accuracy, 0.5, "chance"),
        ("IRM: AUROC", figures.irm_auroc, 0.5, "chance"),
        ("IRM: loss", figures.irm_loss, float(np.log(2)), "chance"),
    ]
    return html.table(("figure", "this model", "without learning", "which is"), rows)


def _curves(history: History, figures: Pretrained) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    baselines = {
        "mlm": (float(np.log(figures.unigram_perplexity)), "word frequencies alone"),
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


class Shown(NamedTuple):
    """One row of a batch, for the page."""

    batch: Batch
    report: MaskedReport

    @property
    def row(self) -> int:
        """Place of the report in the batch."""
        return self.batch["id"].index(self.report.id)


def _examples(task: PretrainingTask, data: Any, number: int = 4) -> list[Shown]:
    """Matching pairs of the batch in the middle, whose reports have the usual length."""
    batch = task.masking(_middle_batch(data))
    return [Shown(batch, report) for report in task.fill_masks(batch)[:number]]


def _middle_batch(data: Any) -> Batch:
    batches: list[Batch] = list(data.test_dataloader())
    return batches[len(batches) // 2]


def _masked_card(task: PretrainingTask, shown: Shown) -> str:
    report = shown.report
    guesses = dict(zip(report.masked, zip(report.predictions, report.probabilities, strict=True), strict=True))
    words = []
    for place, token in enumerate(report.tokens[:-1]):
        space = "" if place == 0 or token in (".", ",", "-") or report.tokens[place - 1] == "-" else " "
        words.append(space + (_guess(token, *guesses[place]) if place in guesses else escape(token)))
    film = shown.batch["image"][shown.row, 0].numpy()
    maps = _word_maps(task, shown)
    is_word = torch.tensor([report.tokens[place].isalpha() for place in report.masked])
    best = int((maps.sum((1, 2)) * is_word).argmax())
    told = f"attention: {report.tokens[report.masked[best]]} ({maps[best].sum():.0%} on the film)"
    text = f"<div><p>{''.join(words)}</p>{html.paragraph(told, is_note=True)}</div>"
    return html.card(html.picture(film, report.id), html.picture(overlay(film, maps[best])), text)


def _word_maps(task: PretrainingTask, shown: Shown) -> torch.Tensor:
    """Where each hidden word looks: mean over the heads of the last layer, shape ``(hidden words, h, w)``."""
    row = slice(shown.row, shown.row + 1)
    weights = task.backbone.attention_weights(
        images=shown.batch["image"][row],
        input_ids=shown.batch["mlm_input_ids"][row],
        text_mask=shown.batch["text_mask"][row],
        mask_strategy=STRATEGY,
    )
    of_words = attention_on_image(weights, task.backbone.num_visual)[0, -1].mean(0)[1:]
    return of_words[shown.report.masked]


def _guess(token: str, predictions: list[str], probabilities: list[float]) -> str:
    """A hidden word as the page shows it."""
    likeliest = ", ".join(f"{word} {share:.2f}" for word, share in zip(predictions, probabilities, strict=True))
    if predictions[0] == token:
        return f'<span class="right" title="{escape(likeliest)}">{escape(token)}</span>'
    return f'<span class="wrong" title="{escape(likeliest)}"><s>{escape(predictions[0])}</s> {escape(token)}</span>'


# -- the four tasks ------------------------------------------------------------------------------


def _classification(story: Story) -> list[str]:
    task = cast(ClassificationTask, story.tasks["classification"])
    scores, plain = story.results["classification"].scores(), story.plain["classification"]
    rows: list[tuple[object, ...]] = [
        ("AUROC, mean over findings", scores["auroc_macro"], plain["auroc_macro"], 0.5, "label frequencies", 1.0),
        (
            "AUROC over all cells",
            scores["auroc_micro"],
            plain["auroc_micro"],
            scores["frequency_auroc_micro"],
            "label frequencies",
            1.0,
        ),
        (
            "average precision over all cells",
            scores["average_precision_micro"],
            plain["average_precision_micro"],
            scores["frequency_average_precision_micro"],
            "label frequencies",
            1.0,
        ),
    ]
    batch = slice_batch(_middle_batch(story.data["classification"]), 3)
    parts = [html.heading("Findings, from the film alone"), html.table(HEADER, rows)]
    parts.append(html.drawing(_bars(scores, plain), "AUROC of each finding that occurs in the test split."))
    for shown, film, maps in zip(
        task.example_rows(batch), batch["image"][:, 0].numpy(), _cls_maps(task, batch), strict=True
    ):
        told = html.paragraph(f"There: {shown['findings'] or 'nothing that is labelled'}.")
        guessed = html.paragraph(f"Top: {shown['top findings']}.")
        note = html.paragraph("Right: where CLS looks.", is_note=True)
        parts.append(
            html.card(html.picture(film), html.picture(overlay(film, maps)), f"<div>{told}{guessed}{note}</div>")
        )
    return parts


def _cls_maps(task: ClassificationTask, batch: Batch) -> torch.Tensor:
    """Where CLS looks on each film: mean over the heads of the last layer, shape ``(B, h, w)``."""
    no_text = batch["input_ids"][:, :0]
    weights = task.backbone.attention_weights(images=batch["image"], input_ids=no_text, text_mask=no_text.bool())
    return attention_on_image(weights, task.backbone.num_visual)[:, -1].mean(1)[:, 0]


def _bars(scores: dict[str, float], plain: dict[str, float]) -> Figure:
    names = [finding for finding in FINDINGS if f"auroc/{_snake(finding)}" in scores]
    places = np.arange(len(names))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    for shift, values, colour, label in (
        (-0.2, scores, "#2f6db3", "this model"),
        (0.2, plain, "#b9c3cf", "plain ResNet-18"),
    ):
        heights = [values[f"auroc/{_snake(name)}"] for name in names]
        axis.bar(places + shift, heights, width=0.38, color=colour, label=label)
    axis.set(ylim=(0.4, 1.0), ylabel="AUROC")
    axis.axhline(0.5, color="#7a8694", linestyle="--", linewidth=1)
    axis.set_xticks(places, names, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _snake(finding: str) -> str:
    return finding.lower().replace(" ", "_")


def _retrieval(story: Story) -> list[str]:
    task = cast(RetrievalTask, story.tasks["retrieval"])
    scores, plain = story.results["retrieval"].scores(), story.plain["retrieval"]
    rows: list[tuple[object, ...]] = []
    for way, told in (("image_to_report", "image to report"), ("report_to_image", "report to image")):
        for metric, name in (("mrr", "MRR"), ("hit@5", "Hit@5")):
            key = f"{way}/{metric}"
            chance = scores[f"{way}/chance_{metric}"]
            rows.append((f"{told}: {name}", scores[key], plain[key], chance, "chance", 1.0))
        frequency = scores[f"{way}/frequency_mrr"]
        rows.append((f"{told}: MRR", scores[f"{way}/mrr"], plain[f"{way}/mrr"], frequency, "label frequencies", 1.0))
    return [
        html.heading("Retrieval"),
        html.paragraph(
            f"Each of {story.budget.num_retrieved} films searches {task.num_candidates} reports for one with its own "
            "set of findings, and each report the films."
        ),
        html.table(HEADER, rows),
        html.paragraph(
            f"The best four of {POOL}; frames are green where the findings are the query's, red where they are not."
        ),
        *_searches(task, story.data["retrieval"].datasets["test"].examples),
    ]


@torch.inference_mode()
def _searches(task: RetrievalTask, examples: Any, queries: Sequence[int] = (3, 11)) -> list[str]:
    """Search the first test pairs by a film and by a report, as the paper's Fig. 7 shows it."""
    number = min(POOL, len(examples.ids))
    films = torch.stack([examples.image(index) for index in range(number)])
    tokens = task.backbone.encode_image(films)
    ids, mask = pad_texts(task.encode_texts(list(examples.reports[:number])), task.tokenizer.pad_id)
    parts = []
    for query in queries:
        findings = _positive(examples, query)
        told = f"<div><p>{escape(examples.reports[query])}</p><p>{html.tags(findings, findings)}</p></div>"
        parts.append(html.card(html.picture(films[query, 0].numpy()), told))
        by_film = task(tokens[query].expand_as(tokens), ids, mask)
        by_text = task(tokens, ids[query].expand_as(ids), mask[query].expand_as(mask))
        for logits, name in ((by_film, "Reports for this film"), (by_text, "Films for this report")):
            best = enumerate(logits.topk(min(4, number)).indices.tolist(), start=1)
            found = [
                html.result(
                    films[index, 0].numpy(),
                    f"{rank}. {examples.ids[index]}" + " (its own)" * (index == query),
                    examples.reports[index],
                    _positive(examples, index),
                    findings,
                )
                for rank, index in best
            ]
            parts += [html.paragraph(name, is_note=True), html.results(found)]
    return parts


def _positive(examples: Any, index: int) -> list[str]:
    return [finding for finding, label in zip(FINDINGS, examples.labels[index], strict=True) if label == 1]


def _vqa(story: Story) -> list[str]:
    task = cast(VQATask, story.tasks["vqa"])
    scores, plain = story.results["vqa"].scores(), story.plain["vqa"]
    rows: list[tuple[object, ...]] = []
    for kind in ("closed", "open"):
        model, other, best = scores[f"accuracy_{kind}"], plain[f"accuracy_{kind}"], scores[f"ceiling_{kind}"]
        for control, told in (
            ("most_frequent", "the most_frequent answer"),
            ("blank", "a black film"),
            ("shuffled", "another film"),
        ):
            value = scores[f"accuracy_{control}_{kind}"]
            rows.append((f"accuracy, {kind} questions", model, other, value, told, best))
    kinds = [(key.split("/")[-1], value) for key, value in scores.items() if key.startswith("accuracy/type/")]
    batch = _middle_batch(story.data["vqa"])
    parts = [
        html.heading("Questions"),
        html.table(HEADER, rows),
        html.table(("what is asked about", "accuracy"), kinds),
    ]
    for row in list(zip(task.predict_step(batch, 0), batch["answer"], batch["image"], strict=True))[:4]:
        parts.append(_question_card(*row))
    return parts


def _question_card(row: dict[str, Any], answer: str, image: torch.Tensor) -> str:
    likeliest = ", ".join(f"{row[f'answer_{n}']} {row[f'probability_{n}']:.2f}" for n in range(1, 4))
    kind = "right" if row["answer_1"] == answer else "wrong"
    told = f'<p><b>{escape(row["question"])}</b> <span class="{kind}">{escape(row["answer_1"])}</span></p>'
    note = html.paragraph(f"answer: {answer}; likeliest: {likeliest}", is_note=True)
    return html.card(html.picture(image[0].numpy()), f"<div>{told}{note}</div>")


def _generation(story: Story) -> list[str]:
    task = cast(GenerationTask, story.tasks["generation"])
    scores, plain, best = (
        story.results["generation"].scores(),
        story.plain["generation"],
        story.best["generation"],
    )
    unigram = story.pretrained.unigram_perplexity
    rows: list[tuple[object, ...]] = [
        ("perplexity", scores["perplexity"], "-", unigram, "word frequencies", best["perplexity"])
    ]
    for metric, name in _OF_REPORTS.items():
        constant = scores[f"constant_{metric}"]
        rows.append((name, scores[metric], plain[metric], constant, "the best constant report", best[metric]))
    batch = slice_batch(_middle_batch(story.data["generation"]), 4)
    task.return_attention = True
    parts = [
        html.heading("Reports"),
        html.table(HEADER, rows),
        html.paragraph(
            "At best: for the perplexity, a writer who knows the grammar and all findings; for the others, a second "
            f"report of the same film by the grammar. Different texts among those written: {scores['distinct']:.0%}. "
            "Clinical F1 is measured by the rule-based labeler.",
            is_note=True,
        ),
    ]
    for row, image in zip(task.predict_step(batch, 0), batch["image"], strict=True):
        parts.append(_report_card(row, image[0].numpy()))
    return parts


_OF_REPORTS = {"clinical_f1": "clinical F1", "clinical_f1_five": "clinical F1, five findings", "bleu_4": "BLEU-4"}


def _report_card(row: dict[str, Any], film: NDArray[np.uint8]) -> str:
    texts = (("Reference", row["reference"]), ("Written", row["prediction"]))
    told = "".join(f"<p><b>{name}.</b> {escape(text)}</p>" for name, text in texts)
    if not row["attention"]:
        return html.card(html.picture(film), f"<div>{told}</div>")
    maps = torch.tensor(row["attention"])
    best = int(maps.sum(1).argmax())
    side = round(maps.shape[1] ** 0.5)
    note = html.paragraph(f"{row['words'][best]}: {maps[best].sum():.0%} of its attention is on the film", is_note=True)
    picture = html.picture(overlay(film, maps[best].view(side, side)))
    return html.card(html.picture(film), picture, f"<div>{told}{note}</div>")
