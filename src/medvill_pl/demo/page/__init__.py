"""The demo's page: a section per task, with figures, baselines and examples."""

from pathlib import Path

from medvill_pl import html
from medvill_pl.demo.page.findings import findings_section
from medvill_pl.demo.page.pretraining import pretraining_section
from medvill_pl.demo.page.questions import questions_section
from medvill_pl.demo.page.reports import reports_section
from medvill_pl.demo.page.retrieval import retrieval_section
from medvill_pl.demo.page.tables import HEADLINES, RIVAL, Headline, read_headlines
from medvill_pl.demo.settings import STRATEGY
from medvill_pl.demo.story import Story

NOTE = (
    "What the rival does with its findings: it ranks reports by how likely their labels are on the image, answers by a "
    "logistic regression over the findings for each wording of a question, and writes the most frequent training "
    "report of the top set of findings. At best stands what a reader would reach who sees every image perfectly."
)


def write_report_page(path: Path, story: Story) -> None:
    """Write the page."""
    parts = [
        html.paragraph(introduction(story)),
        html.paragraph(NOTE, is_note=True),
        *pretraining_section(story),
        *findings_section(story),
        *retrieval_section(story),
        *questions_section(story),
        *reports_section(story),
        html.heading("How it was made"),
        html.paragraph(_how(story)),
        html.table(("part", "seconds"), [(part, f"{seconds:.0f}") for part, seconds in story.seconds.items()]),
    ]
    html.write_page(path, "MedViLL in minutes", parts)


def introduction(story: Story) -> str:
    """The first paragraph: what the model is, what its rival got, and which of the two is better at what."""
    budget = story.budget
    return (
        "A small MedViLL, pre-trained on the embedded corpus (phantom chest radiographs and their reports) under the "
        f"{STRATEGY} attention mask, then fine-tuned for four tasks. Its rival is the {RIVAL}: the image encoder that "
        "the model starts from, with the linear layer for findings that it was trained with, on the same "
        f"{budget.num_images:,} images in the same {budget.image_encoder_steps:,} steps; it got nothing else. "
        f"{verdict(read_headlines(story))} All figures are on {budget.num_test} pairs of patients that training never "
        "saw. For research, not a medical device."
    )


def verdict(headlines: list[Headline]) -> str:
    """Say which of model and rival is better at what, by the figures as the page rounds them.

    Example:
        >>> verdict([Headline("AUROC", 0.9404, 0.961, 0.5), Headline("MRR", 0.6, 0.5, 0.2)])
        'The rival is better in AUROC (0.961 against 0.940), the model in MRR (0.600 against 0.500).'
    """
    rival, model = [], []
    for name, ours, theirs, _ in headlines:
        ours, theirs = round(ours, 3), round(theirs, 3)
        if theirs > ours:
            rival.append(f"{name} ({theirs:.3f} against {ours:.3f})")
        elif ours > theirs:
            model.append(f"{name} ({ours:.3f} against {theirs:.3f})")
    if rival and model:
        return f"The rival is better in {join(rival)}, the model in {join(model)}."
    if not rival and not model:
        return "Neither is better in any figure."
    return f"The {'model' if model else 'rival'} is better in {join(model or rival)}."


def join(names: list[str]) -> str:
    """Join names to a part of a sentence.

    Example:
        >>> join(["AUROC", "MRR", "BLEU"])
        'AUROC, MRR and BLEU'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def summary(story: Story) -> str:
    """The main figures in a few lines, for the terminal."""
    headlines = read_headlines(story)
    width = max(len(name) for name in HEADLINES)
    lines = [f"{'':{width}}  model  rival  without learning"]
    lines += [f"{name:{width}}  {ours:.3f}  {theirs:.3f}  {chance:.3f}" for name, ours, theirs, chance in headlines]
    write = story.results["generation"].scores()
    return "\n".join(
        [
            *lines,
            f"perplexity of reports {write['perplexity']:.3f} (word frequencies "
            f"{story.pretrained.unigram_perplexity:.1f}, at best {story.best['perplexity']:.3f})",
            f"The rival is the {RIVAL}. {verdict(headlines)}",
        ]
    )


def _how(story: Story) -> str:
    budget = story.budget
    return (
        f"First the image encoder alone learnt to predict the findings of {budget.num_images:,} images of other "
        f"patients and the tokens of their reports ({budget.image_encoder_steps:,} steps of "
        f"{story.data.image_encoder.batch_size}), in place of the ImageNet weights that the paper starts from; it was "
        f"then kept as it was. {budget.pretraining} epochs of MLM and IRM over {budget.num_train:,} pairs trained a "
        "transformer of 2 layers, 96 wide, on top of it. Each task went on from there with a copy: "
        f"{budget.classification} epochs of classification, {budget.retrieval} of retrieval, {budget.vqa} of question "
        f"answering and {budget.generation} of report generation, which predicts every token from those before it "
        "instead of a few masked ones. The tasks ran side by side. The results of each test lie beside this page, "
        "example by example, as Parquet."
    )
