"""All that the demo does, and what came of it."""

import copy
import time
from concurrent.futures import Executor, Future, as_completed
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from medvill_pl import BaseTask, MedViLL, Results
from medvill_pl.demo.figures import Pretrained, Scores, best_possible, evaluate, score_rival
from medvill_pl.demo.settings import TASKS, Budget, Data, make_data, make_task
from medvill_pl.demo.training import (
    FineTuned,
    History,
    fine_tune,
    pretrain,
    start_backbone,
    train_image_encoder,
)
from medvill_pl.demo.workers import start_workers
from medvill_pl.synthetic.datamodule import SyntheticExamples


class Story(NamedTuple):
    """Everything that the page tells.

    Attributes:
        budget: how much was done.
        history: losses of pre-training.
        pretrained: figures of pre-training.
        tasks: the pre-trained task and the four fine-tuned ones, by name.
        results: the results of the four tests, by name.
        data: the data module of each.
        rival: figures of the image encoder's own head, by task and metric.
        best: the best figures of reports that this corpus allows.
        seconds: how long each part took.
    """

    budget: Budget
    history: History
    pretrained: Pretrained
    tasks: dict[str, BaseTask]
    results: dict[str, Results]
    data: Data
    rival: dict[str, Scores]
    best: Scores
    seconds: dict[str, float]


class Clock:
    """Times the parts of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, part: str) -> None:
        """Note how long a part took, and begin the next one."""
        now = time.perf_counter()
        self.seconds[part], self._start = now - self._start, now


def tell(output: Path, seed: int, budget: Budget) -> Story:
    """Do all that the page tells of."""
    clock = Clock()
    data = make_data(budget, seed)
    with start_workers(len(TASKS)) as pool:
        images = draw_images(data, pool)
        clock.stop("drawing the images")
        classifier = train_image_encoder(data, budget, output / "image_encoder", seed)
        clock.stop("the image encoder")
        backbone = start_backbone(classifier, images)
        clock.stop("features of the images")
        pretrained, history = pretrain(backbone, data, budget.pretraining, output, seed)
        backbone.save_pretrained(output / "backbone")
        clock.stop("pre-training")
        jobs, tasks = start_tasks(backbone, data, budget, output, seed, pool)
        figures = evaluate(pretrained, data.pretraining)
        results = finish_tasks(jobs, tasks)
    classifier.image_encoder = backbone.image_encoder  # the same weights, which have the features of all images by now
    rival = score_rival(classifier, data, results)
    clock.stop("the four tasks")
    all_tasks: dict[str, BaseTask] = {**tasks, "pretraining": pretrained}
    return Story(budget, history, figures, all_tasks, results, data, rival, best_possible(data), clock.seconds)


def draw_images(data: Data, pool: Executor) -> Tensor:
    """Draw all images; those that the tasks look at, uint8, shape ``(N, 1, H, W)``."""
    splits = [cast(SyntheticExamples, split.examples) for split in data.pretraining.datasets.values()]
    others = cast(SyntheticExamples, data.image_encoder.datasets["train"].examples)
    for examples in tqdm([others, *splits], "drawing the images"):
        examples.render_all(pool)
    return torch.cat([examples.images() for examples in splits])


def start_tasks(
    backbone: MedViLL, data: Data, budget: Budget, output: Path, seed: int, pool: Executor
) -> tuple[dict[str, Future[FineTuned]], dict[str, BaseTask]]:
    """Begin to fine-tune and test the four tasks, as many at a time as there are processes; the longest first.

    Each goes on from a copy of the backbone; the features of the images are shared.
    """
    print(f"fine-tuning {', '.join(TASKS)}, as many at a time as there are cores", flush=True)
    tasks = {name: make_task(name, copy.deepcopy(backbone), data, seed) for name in TASKS}
    jobs = {
        name: pool.submit(fine_tune, task, data.of(name), getattr(budget, name), output / name, seed)
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
