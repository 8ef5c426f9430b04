"""The demo: pre-training and the four tasks on the embedded corpus, in minutes, and a page of what was learnt."""

import copy
import logging
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_auroc
from tqdm import tqdm

from medvill_pl.batch import Batch
from medvill_pl.cli.quiet import quieten
from medvill_pl.demo.plain import PlainModel
from medvill_pl.demo.training import (
    IMAGE_SIZE,
    Budget,
    FilmFeatures,
    FineTuned,
    History,
    fine_tune,
    make_pretraining,
    pretrain,
    save_backbone,
    start_workers,
    train_image_encoder,
    training_films,
)
from medvill_pl.evaluation.generation import bleu, clinical_efficacy
from medvill_pl.evaluation.results import Results
from medvill_pl.labeler.chexpert import CheXpertLabeler
from medvill_pl.masks import MaskStrategy
from medvill_pl.synthetic.datamodule import (
    SyntheticDataModule,
    SyntheticExamples,
    SyntheticQuestions,
    SyntheticVQADataModule,
)
from medvill_pl.synthetic.grammar import perplexity_floor, rewrite_report, write_report
from medvill_pl.tasks.base import BaseTask
from medvill_pl.tasks.classification import ClassificationTask
from medvill_pl.tasks.generation import GenerationTask
from medvill_pl.tasks.pretraining import PretrainingTask
from medvill_pl.tasks.retrieval import RetrievalTask
from medvill_pl.tasks.vqa import VQATask

STRATEGY = MaskStrategy.BAR
TASKS = ("generation", "classification", "retrieval", "vqa")
DEFAULT = Budget()
FULL = Budget(
    num_cnn=10000,
    num_train=16000,
    num_retrieved=200,
    image_encoder_steps=3000,
    pretraining=6,
    classification=2,
    retrieval=2,
    vqa=2,
    generation=8,
)


class Pretrained(NamedTuple):
    """What the pre-trained model makes of the test split, and what it would give without learning."""

    perplexity: float
    perplexity_of_other_film: float
    unigram_perplexity: float
    mlm_accuracy: float
    most_frequent_token: float
    irm_accuracy: float
    irm_auroc: float
    irm_loss: float


class Story(NamedTuple):
    """Everything that the page tells.

    Attributes:
        budget: how much was done.
        history: losses of pre-training.
        pretrained: figures of pre-training.
        tasks: the pre-trained task and the four fine-tuned ones, by name.
        results: the results of the four tests, by name.
        data: the data module of each, by name.
        plain: figures of a plain ResNet-18, by task and metric.
        best: the best figures that this corpus allows, by task and metric.
        seconds: how long each part took.
    """

    budget: Budget
    history: History
    pretrained: Pretrained
    tasks: dict[str, BaseTask]
    results: dict[str, Results]
    data: dict[str, Any]
    plain: dict[str, dict[str, float]]
    best: dict[str, dict[str, float]]
    seconds: dict[str, float]


def run(output: Path, seed: int = 0, budget: Budget = DEFAULT) -> None:
    """Pre-train, fine-tune and test all tasks, and write ``report.html``, the results and the backbone.

    Args:
        output: folder to write to.
        seed: seed of weights, order and masking.
        budget: how much to do; by default what takes 2 cores about 6 minutes.

    Raises:
        OSError: if the folder cannot be written to.
    """
    from medvill_pl.demo.report import summary, write_report_page

    output.mkdir(parents=True, exist_ok=True)
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(seed, verbose=False)
    story = tell(output, seed, budget)
    write_report_page(output / "report.html", story)
    print(f"{summary(story)}\n{sum(story.seconds.values()) / 60:.1f} minutes: open {output / 'report.html'}")


def tell(output: Path, seed: int, budget: Budget) -> Story:
    """Do all that the page tells of."""
    clock = Clock()
    data = make_data(budget, seed)
    with start_workers() as pool:
        films = draw_films(data, pool)
        clock.stop("drawing films")
        features = FilmFeatures(train_image_encoder(data["cnn"], budget.image_encoder_steps), films)
        clock.stop("the CNN")
        plain = pool.submit(PlainModel, *training_films(data["classification"]), clock.seconds["the CNN"])
        pretrained = make_pretraining(features, seed)
        learnt = pool.submit(pretrain, pretrained, data["pretraining"], budget.pretraining).result()
        pretrained.load_state_dict(learnt.weights)
        pretrained.backbone.trained_on = learnt.trained_on
        clock.stop("pre-training")
        jobs, tasks = start_tasks(pretrained.eval(), data, budget, output, seed, pool)
        save_backbone(pretrained.backbone, output / "backbone")
        figures = evaluate(pretrained, data["pretraining"])
        results = finish_tasks(jobs, tasks)
        compared = compare_plain(plain.result(), data, results)
    clock.stop("the four tasks")
    tasks["pretraining"] = pretrained
    return Story(budget, learnt.history, figures, tasks, results, data, compared, best_possible(data), clock.seconds)


def start_tasks(
    pretrained: PretrainingTask,
    data: dict[str, Any],
    budget: Budget,
    output: Path,
    seed: int,
    pool: ProcessPoolExecutor,
) -> tuple[dict[str, Future[FineTuned]], dict[str, BaseTask]]:
    """Begin to fine-tune and test the four tasks, as many at a time as there are processes; the longest first."""
    print(f"fine-tuning {', '.join(TASKS)}, as many at a time as there are cores", flush=True)
    tasks = {name: make_task(name, pretrained, data, seed) for name in TASKS}
    jobs = {
        name: pool.submit(fine_tune, task, data[name], getattr(budget, name), output / name)
        for name, task in tasks.items()
    }
    return jobs, tasks


def finish_tasks(jobs: dict[str, Future[FineTuned]], tasks: dict[str, BaseTask]) -> dict[str, Results]:
    """Wait for the four tasks and give them their weights; returns their results."""
    names = {job: name for name, job in jobs.items()}
    for job in as_completed(names):
        name, done = names[job], job.result()
        tasks[name].load_state_dict(done.weights)
        tasks[name].eval()
        print(f"{name}: trained and tested in {done.seconds:.0f} s", flush=True)
    return {name: job.result().results for name, job in jobs.items()}


class Clock:
    """Times the parts of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, part: str) -> None:
        """Note how long a part took, and begin the next one."""
        now = time.perf_counter()
        self.seconds[part], self._start = now - self._start, now


def make_data(budget: Budget, seed: int) -> dict[str, Any]:
    """The data module of each part; all but the CNN's show the same films."""

    def pairs(num_test: int, batch_size: int, negatives: Any = "none") -> SyntheticDataModule:
        return SyntheticDataModule(
            num_train=budget.num_train,
            num_val=budget.num_test,
            num_test=num_test,
            image_size=IMAGE_SIZE,
            batch_size=batch_size,
            negatives=negatives,
            bucket_batches=8,
            seed=seed,
        )

    data: dict[str, Any] = {
        "cnn": SyntheticDataModule(budget.num_cnn, 1, 1, image_size=IMAGE_SIZE, corpus_seed=1),
        "pretraining": pairs(budget.num_test, 32, "labels"),
        "classification": pairs(budget.num_test, 32),
        "retrieval": pairs(budget.num_retrieved, 16, "labels"),
        "vqa": SyntheticVQADataModule(
            budget.num_train, budget.num_test, budget.num_test, image_size=IMAGE_SIZE, batch_size=64, seed=seed
        ),
        "generation": pairs(budget.num_test, 16),
    }
    for module in data.values():
        module.setup("fit")
        module.setup("test")
    return data


def draw_films(data: dict[str, Any], pool: ProcessPoolExecutor) -> Tensor:
    """Draw all films; those that the tasks look at, uint8, shape ``(N, 1, H, W)``."""
    splits = [split.examples for split in data["pretraining"].datasets.values()]
    for examples in tqdm([data["cnn"].datasets["train"].examples, *splits], "drawing films"):
        examples.render_all(pool)
    return torch.cat([examples.images() for examples in splits])


def make_task(name: str, pretrained: PretrainingTask, data: dict[str, Any], seed: int) -> BaseTask:
    """One of the four tasks, on a copy of the pre-trained backbone; the films' features are shared."""
    backbone = copy.deepcopy(pretrained.backbone)
    shared: dict[str, Any] = {"warmup_steps": 50, "schedule": "linear", "seed": seed}
    if name == "classification":
        return ClassificationTask.from_backbone(backbone, use_report=False, lr=2e-3, **shared)
    if name == "retrieval":
        candidates = min(100, len(data[name].datasets["test"]))
        return RetrievalTask.from_backbone(backbone, num_candidates=candidates, lr=1e-3, **shared)
    if name == "vqa":
        answers = sorted(set(data[name].datasets["train"].examples.answers))
        return VQATask.from_backbone(backbone, answers=answers, lr=1.5e-3, **shared)
    return GenerationTask.from_backbone(backbone, objective="every_word", lr=3e-3, weight_decay=0.1, **shared)


# -- figures -------------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(task: PretrainingTask, data: SyntheticDataModule) -> Pretrained:
    """Score the test split: with its own films, with others' films, and by word frequencies alone."""
    unigram = _log_frequencies(data)
    sums: dict[str, float] = dict.fromkeys(("own", "other", "unigram", "right"), 0.0)
    matched, match_logits, targets = [], [], []
    for plain in data.test_dataloader():
        batch = task.masking(plain)
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
    return Pretrained(
        perplexity=float(np.exp(sums["own"] / len(words))),
        perplexity_of_other_film=float(np.exp(sums["other"] / len(words))),
        unigram_perplexity=float(np.exp(sums["unigram"] / len(words))),
        mlm_accuracy=sums["right"] / len(words),
        most_frequent_token=(words == unigram.argmax()).float().mean().item(),
        irm_accuracy=binary_accuracy(match.sigmoid(), is_match).item(),
        irm_auroc=binary_auroc(match.sigmoid(), is_match).item(),
        irm_loss=nn.functional.binary_cross_entropy_with_logits(match, is_match.float()).item(),
    )


def _log_frequencies(data: SyntheticDataModule) -> Tensor:
    """Logarithm of each word's share of the training texts, one added to each count."""
    ids = [index for report in data.tokenizer.encode(data.datasets["train"].examples.reports) for index in report]
    counts = torch.bincount(torch.tensor(ids), minlength=data.tokenizer.vocab_size) + 1.0
    return (counts / counts.sum()).log()


def compare_plain(model: PlainModel, data: dict[str, Any], results: dict[str, Results]) -> dict[str, dict[str, float]]:
    """What the plain ResNet-18 reaches in every task."""
    test: SyntheticExamples = data["classification"].datasets["test"].examples
    probability = model.probabilities(test.images())
    place = {name: index for index, name in enumerate(test.ids)}
    by_id = probability[[place[row["id"]] for row in results["classification"].rows]]
    pool = data["retrieval"].datasets["test"].examples
    questions = data["vqa"].datasets["test"].examples
    number = min(400, len(data["vqa"].datasets["train"].examples.examples.ids))
    asked = SyntheticQuestions(SyntheticExamples("train", number, IMAGE_SIZE))
    answers = dict(zip(questions.ids, model.vqa(asked, questions), strict=True))
    answered = [{**row, "prediction": answers[row["id"]]} for row in results["vqa"].rows]
    return {
        "classification": model.classification(results["classification"], by_id),
        "retrieval": model.retrieval(pool, probability[[place[name] for name in pool.ids]]),
        "vqa": Results(answered, {}, results["vqa"].score_fn).scores(),
        "generation": model.generation(data["generation"].datasets["train"].examples, test.reports, probability),
    }


def best_possible(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a writer would reach who sees every film perfectly and knows the grammar."""
    test: SyntheticExamples = data["generation"].datasets["test"].examples
    written = [write_report(study) for study in test.studies]
    num_tokens = int(data["generation"].datasets["test"].lengths.sum())
    again = [rewrite_report(study).text for study in test.studies]
    labeler = CheXpertLabeler()
    efficacy = clinical_efficacy(labeler(again), labeler(test.reports))
    generation = {"perplexity": perplexity_floor(written, num_tokens), **bleu(again, test.reports), **efficacy}
    return {"generation": generation}
