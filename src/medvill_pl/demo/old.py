"""The demo: a small backbone pre-trained on the embedded corpus in minutes, and a page that shows what it learnt."""

import logging
import time
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_auroc
from tqdm import tqdm

from medvill_pl import page
from medvill_pl.backbone import BackboneConfig
from medvill_pl.batch import Batch
from medvill_pl.evaluation.figures import overlay
from medvill_pl.jobs import quieten
from medvill_pl.masks import MaskStrategy
from medvill_pl.synthetic.datamodule import SyntheticDataModule
from medvill_pl.tasks.pretraining import MaskedReport, PretrainingTask
from medvill_pl.vision import VisionTrunk, make_trunk

IMAGE_SIZE = 128
STRATEGY = MaskStrategy.BAR


class Budget(NamedTuple):
    """How much the demo does.

    Attributes:
        num_train: pairs to train on.
        num_test: pairs of the validation and of the test split.
        trunk_steps: optimizer steps of the trunk alone, with 64 films each.
        epochs: epochs of pre-training, with 16 pairs a step.
    """

    num_train: int = 4000
    num_test: int = 400
    trunk_steps: int = 450
    epochs: int = 6


def run(output: Path, seed: int = 0, budget: Budget | None = None) -> None:
    """Pre-train, test and write ``report.html`` and the backbone.

    Args:
        output: folder to write to.
        seed: seed of weights, order and masking.
        budget: how much to do; by default what takes 2 cores under 3 minutes.

    Raises:
        OSError: if the folder cannot be written to.
    """
    budget = budget or Budget()
    output.mkdir(parents=True, exist_ok=True)
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    start = time.perf_counter()
    seed_everything(seed, verbose=False)
    data = SyntheticDataModule(
        num_train=budget.num_train,
        num_val=budget.num_test,
        num_test=budget.num_test,
        image_size=IMAGE_SIZE,
        batch_size=16,
        negatives="labels",
        seed=seed,
    )
    data.setup("fit")
    data.setup("test")
    trunk = output / "trunk.pt"
    torch.save(train_trunk(data, budget.trunk_steps).state_dict(), trunk)
    history = History()
    task = pretrain(data, trunk, budget.epochs, history, seed)
    task.backbone.save_pretrained(output / "backbone")
    figures = evaluate(task, data)
    minutes = (time.perf_counter() - start) / 60
    write_report(output / "report.html", task, data, history, figures, budget, minutes)
    print(
        f"MLM perplexity {figures.perplexity:.2f} (word frequencies alone: {figures.unigram_perplexity:.2f}), "
        f"IRM accuracy {figures.irm_accuracy:.2f} (chance: 0.50), {minutes:.1f} minutes: open {output / 'report.html'}"
    )


# -- training ------------------------------------------------------------------------------------


def train_trunk(data: SyntheticDataModule, steps: int) -> nn.Module:
    """Teach a small CNN to see: it predicts the labels of the training films.

    It stands in for the ImageNet weights that the paper's trunk starts from, which no machine can
    make in a minute.
    """
    dataset = data.datasets["train"]
    labels = torch.from_numpy((dataset.examples.labels == 1).astype(np.float32))
    films = torch.stack([dataset.examples.image(index) for index in tqdm(range(len(dataset)), "drawing films")])
    cnn = make_trunk("resnet_small").to(memory_format=torch.channels_last)
    trunk = VisionTrunk(cnn)
    head = nn.Linear(2 * trunk.channels, labels.shape[1])
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    use_bf16 = _is_bf16_faster()
    for _ in tqdm(range(steps), "training the CNN"):
        chosen = torch.randint(len(films), (64,))
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
            features = trunk(films[chosen].contiguous(memory_format=torch.channels_last)).flatten(2)
            logits = head(torch.cat([features.mean(2), features.amax(2)], dim=1))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return cnn


def _is_bf16_faster() -> bool:
    """Whether this processor multiplies in bfloat16 faster than in float32, which not all do."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


class History(Callback):
    """Keeps the losses of training steps and of validation."""

    def __init__(self) -> None:
        self.train: dict[str, list[float]] = {"mlm": [], "irm": []}
        self.val: dict[str, list[tuple[int, float]]] = {"mlm": [], "irm": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the losses of the step."""
        for name, losses in self.train.items():
            losses.append(float(trainer.callback_metrics[f"train/{name}_loss_step"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the losses of the validation split."""
        for name, losses in self.val.items():
            losses.append((trainer.global_step, float(trainer.callback_metrics[f"val/{name}_loss"])))


def pretrain(data: SyntheticDataModule, trunk: Path, epochs: int, history: History, seed: int) -> PretrainingTask:
    """Pre-train a small backbone by MLM and IRM over the features of the trained CNN."""
    backbone: BackboneConfig = {
        "vision": "resnet_small",
        "vision_weights": str(trunk),
        "freeze_vision_stages": 4,
        "image_size": IMAGE_SIZE,
        "tokenizer": "synthetic",
        "hidden_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 384,
        "dropout": 0.0,
    }
    task = PretrainingTask(
        backbone,
        mask_strategy=STRATEGY.value,
        num_visual_samples=32,
        mlm_probability=0.3,
        lr=2e-3,
        warmup_steps=100,
        seed=seed,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[history, TQDMProgressBar(refresh_rate=10)],
    )
    trainer.fit(task, datamodule=data)
    return task.eval()


# -- figures -------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What the test split gives, and what it would give without learning."""

    perplexity: float
    perplexity_of_other_film: float
    unigram_perplexity: float
    mlm_accuracy: float
    commonest_word: float
    irm_accuracy: float
    irm_auroc: float
    irm_loss: float


@torch.inference_mode()
def evaluate(task: PretrainingTask, data: SyntheticDataModule) -> Figures:
    """Score the test split: with its own films, with others' films, and by word frequencies alone."""
    unigram = _log_frequencies(data)
    sums: dict[str, float] = dict.fromkeys(("own", "other", "unigram", "right"), 0.0)
    matched, match_logits, targets = [], [], []
    for plain in data.test_dataloader():
        batch = task.hide_words(plain)
        target = batch["mlm_targets"]
        logits, irm_logits = task.score(batch, STRATEGY)
        other_logits, _ = task.score(Batch(**{**batch, "image": batch["image"].roll(1, 0)}), STRATEGY)
        sums["own"] += nn.functional.cross_entropy(logits, target, reduction="sum").item()
        sums["other"] += nn.functional.cross_entropy(other_logits, target, reduction="sum").item()
        sums["unigram"] -= unigram[target].sum().item()
        sums["right"] += (logits.argmax(1) == target).sum().item()
        matched.append(batch["matched"].int())
        match_logits.append(irm_logits)
        targets.append(target)
    is_match, match = torch.cat(matched), torch.cat(match_logits)
    words = torch.cat(targets)
    return Figures(
        perplexity=float(np.exp(sums["own"] / len(words))),
        perplexity_of_other_film=float(np.exp(sums["other"] / len(words))),
        unigram_perplexity=float(np.exp(sums["unigram"] / len(words))),
        mlm_accuracy=sums["right"] / len(words),
        commonest_word=(words == unigram.argmax()).float().mean().item(),
        irm_accuracy=binary_accuracy(match.sigmoid(), is_match).item(),
        irm_auroc=binary_auroc(match.sigmoid(), is_match).item(),
        irm_loss=nn.functional.binary_cross_entropy_with_logits(match, is_match.float()).item(),
    )


def _log_frequencies(data: SyntheticDataModule) -> Tensor:
    """Logarithm of each word's share of the training texts, one added to each count."""
    ids = [index for report in data.tokenizer.encode(data.datasets["train"].examples.reports) for index in report]
    counts = torch.bincount(torch.tensor(ids), minlength=data.tokenizer.vocab_size) + 1.0
    return (counts / counts.sum()).log()


# -- the page ------------------------------------------------------------------------------------


def write_report(
    path: Path,
    task: PretrainingTask,
    data: SyntheticDataModule,
    history: History,
    figures: Figures,
    budget: Budget,
    minutes: float,
) -> None:
    """Write the page."""
    shown = _examples(task, data)
    parts = [
        page.paragraph(
            "A small backbone, pre-trained on the embedded corpus (phantom chest films and their reports) by masked "
            f"language modelling (MLM) and image-report matching (IRM) under the {STRATEGY} attention mask. "
            "For research, not a medical device."
        ),
        page.heading("What it learnt"),
        page.paragraph(f"On {budget.num_test} pairs of patients that training never saw:"),
        _figure_table(figures),
        page.paragraph(
            "Is the film used? With the film of another study in place of the right one, the perplexity of hidden "
            f"words is {figures.perplexity_of_other_film:.3f} instead of {figures.perplexity:.3f}; without use of the "
            "film they would be equal."
        ),
        page.drawing(_curves(history, figures), "Losses while training; dots are the validation split."),
        page.heading("Hidden words"),
        page.paragraph(
            "Films of the test split with their reports. Some words were hidden: green ones were found; where the "
            "model was wrong, its guess is struck out before the true word. Point at a word to see the likeliest five."
        ),
        *(_example_card(each) for each in shown),
        page.heading("Where a hidden word looks"),
        page.paragraph(
            "The attention of one hidden word on the film, mean over the heads of the last layer: brighter is more. "
            "Of each example, it is the hidden word that looks at the film most. Attention shows where information was "
            "taken from; it is no proof of why a word was chosen."
        ),
        *_attention_cards(task, shown),
        page.heading("How it was made"),
        page.paragraph(
            f"{budget.num_train:,} pairs. First the CNN alone learnt to predict findings from the training films "
            f"({budget.trunk_steps} steps of 64), in place of the ImageNet weights that the paper starts from. Then it "
            f"was kept as it was, and {budget.epochs} epochs of MLM and IRM trained the rest: 2 layers, 96 wide, "
            f"AdamW with a learning rate of 0.002. {minutes:.1f} minutes in all."
        ),
    ]
    page.write_page(path, "MedViLL pre-training in three minutes", parts)


def _figure_table(figures: Figures) -> str:
    rows: list[tuple[object, ...]] = [
        ("MLM: perplexity of hidden words", figures.perplexity, figures.unigram_perplexity, "word frequencies alone"),
        ("MLM: hidden words found", figures.mlm_accuracy, figures.commonest_word, "always the commonest word"),
        ("IRM: accuracy", figures.irm_accuracy, 0.5, "chance"),
        ("IRM: AUROC", figures.irm_auroc, 0.5, "chance"),
        ("IRM: loss", figures.irm_loss, float(np.log(2)), "chance"),
    ]
    return page.table(("figure", "this model", "without learning", "which is"), rows)


def _curves(history: History, figures: Figures) -> Figure:
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

    @property
    def film(self) -> NDArray[np.uint8]:
        """The film, uint8, shape ``(H, W)``."""
        film: NDArray[np.uint8] = self.batch["image"][self.row, 0].numpy()
        return film


def _examples(task: PretrainingTask, data: SyntheticDataModule, number: int = 5) -> list[Shown]:
    """Matching pairs of the batch in the middle, whose reports have the usual length."""
    batches = list(data.test_dataloader())
    batch = task.hide_words(batches[len(batches) // 2])
    return [Shown(batch, report) for report in task.fill_masks(batch)[:number]]


def _example_card(shown: Shown) -> str:
    report = shown.report
    guesses = dict(zip(report.hidden, zip(report.predictions, report.probabilities, strict=True), strict=True))
    words = []
    for place, token in enumerate(report.tokens[:-1]):
        space = "" if place == 0 or token in (".", ",", "-") or report.tokens[place - 1] == "-" else " "
        words.append(space + (_guess(token, *guesses[place]) if place in guesses else escape(token)))
    text = "".join(words)
    return page.card(page.picture(shown.film, report.id), f"<div><p>{text}</p></div>")


def _guess(token: str, predictions: list[str], probabilities: list[float]) -> str:
    """A hidden word as the page shows it."""
    likeliest = ", ".join(f"{word} {share:.2f}" for word, share in zip(predictions, probabilities, strict=True))
    if predictions[0] == token:
        return f'<span class="right" title="{escape(likeliest)}">{escape(token)}</span>'
    return f'<span class="wrong" title="{escape(likeliest)}"><s>{escape(predictions[0])}</s> {escape(token)}</span>'


@torch.inference_mode()
def _attention_cards(task: PretrainingTask, shown: list[Shown], number: int = 3) -> list[str]:
    """For some examples, the hidden word that looks most at the film, and where."""
    backbone, cards = task.backbone, []
    for each in shown[:number]:
        row = slice(each.row, each.row + 1)
        weights = backbone.attention_weights(
            images=each.batch["image"][row],
            input_ids=each.batch["mlm_input_ids"][row],
            text_mask=each.batch["text_mask"][row],
            mask_strategy=STRATEGY,
        )[0, -1].mean(0)
        first_word = backbone.num_visual + 2
        on_film = weights[[first_word + place for place in each.report.hidden], 1 : 1 + backbone.num_visual]
        side = round(backbone.num_visual**0.5)
        best = int(on_film.sum(1).argmax())
        word, guess = each.report.tokens[each.report.hidden[best]], each.report.predictions[best][0]
        share = f"{on_film[best].sum():.0%} of its attention is on the film"
        told = f"<p>hidden: <b>{escape(word)}</b>, guessed: <b>{escape(guess)}</b></p>"
        text = f"<div>{told}{page.paragraph(share, is_note=True)}</div>"
        cards.append(
            page.card(
                page.picture(each.film),
                page.picture(overlay(each.film, on_film[best].view(side, side))),
                text,
            )
        )
    return cards
