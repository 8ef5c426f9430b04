"""What the same seconds give a plain ResNet-18: the demo's comparison in every task."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet18

from medvill_pl.batch import FINDINGS, derive_seed, label_set_keys
from medvill_pl.data.examples import Examples
from medvill_pl.demo.training import IS_BF16_FASTER, step_on_targets
from medvill_pl.evaluation.classification import classification_scores
from medvill_pl.evaluation.generation import bleu, clinical_efficacy
from medvill_pl.evaluation.results import Results
from medvill_pl.evaluation.retrieval import (
    DIRECTIONS,
    draw_candidate_sets,
    rank_candidates,
    retrieval_scores,
)
from medvill_pl.labeler.chexpert import CheXpertLabeler
from medvill_pl.synthetic.datamodule import SyntheticQuestions

MAX_LR = 2e-3
"""Learning rate of the first step."""


class PlainModel:
    """A ResNet-18 that learns the findings of films from nothing, for so many seconds, at a rate that falls to 0.

    Args:
        films: uint8, shape ``(N, 1, H, W)``.
        labels: their positive findings, 0 or 1, float32, shape ``(N, 14)``.
        seconds: how long to train.
    """

    def __init__(self, films: Tensor, labels: Tensor, seconds: float) -> None:
        torch.manual_seed(0)
        self._cnn = resnet18(num_classes=len(FINDINGS)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(self._cnn.parameters(), fused=True)
        start = time.perf_counter()
        while (left := 1 - (time.perf_counter() - start) / seconds) > 0:
            optimizer.param_groups[0]["lr"] = MAX_LR * left
            step_on_targets(self._logits, films, labels, optimizer)
        self._cnn.eval()

    def _logits(self, films: Tensor) -> Tensor:
        white = films.expand(-1, 3, -1, -1).float() / 127.5 - 1
        logits: Tensor = self._cnn(white)
        return logits

    @torch.inference_mode()
    def probabilities(self, films: Tensor) -> Tensor:
        """How likely each finding is on films, uint8, shape ``(N, 1, H, W)``; float32, shape ``(N, 14)``."""
        parts = []
        for part in torch.split(films, 64):
            with torch.autocast("cpu", torch.bfloat16, enabled=IS_BF16_FASTER):
                logits = self._logits(part.contiguous(memory_format=torch.channels_last))
            parts.append(logits.float().sigmoid())
        return torch.cat(parts)

    # -- the four tasks --------------------------------------------------------------------------

    def classification(self, results: Results, probability: Tensor) -> dict[str, float]:
        """Metrics of the test films' probabilities, with the labels of another model's results."""
        rows = [{**row, "probability": p} for row, p in zip(results.rows, probability.tolist(), strict=True)]
        return classification_scores(rows, {**results.context, "threshold": None})

    def retrieval(self, pool: Examples, probability: Tensor) -> dict[str, float]:
        """Metrics of trials that rank by how likely the report's findings are on the film."""
        order = np.argsort(np.array(pool.ids))
        labels, likely = pool.labels[order], probability.numpy()[order]
        sets, scores = label_set_keys(labels), log_likelihood(likely, labels == 1)
        rows: list[dict[str, Any]] = []
        for direction in DIRECTIONS:
            trials = draw_candidate_sets(len(sets), min(100, len(sets)), derive_seed(0, direction))
            for query, chosen in enumerate(trials):
                of_query = scores[query, chosen] if direction == "image_to_report" else scores[chosen, query]
                ranking = rank_candidates(of_query, sets[chosen] == sets[query])
                row = {"direction": direction, "gallery": "candidates", "frequency_first_rank": None}
                rows.append(ranking._asdict() | row)
        return retrieval_scores(rows)

    def generation(self, examples: Examples, references: Sequence[str], probability: Tensor) -> dict[str, float]:
        """Metrics of writing, for each film, the most_frequent training report of the likeliest set of findings."""
        by_set: dict[bytes, Counter[str]] = {}
        for report, label in zip(examples.reports, examples.labels == 1, strict=True):
            by_set.setdefault(label.tobytes(), Counter())[report] += 1
        sets = np.array([np.frombuffer(each, dtype=bool) for each in by_set])
        prior = np.log([sum(counts.values()) for counts in by_set.values()])
        most_frequent = [counts.most_common(1)[0][0] for counts in by_set.values()]
        best = (log_likelihood(probability.numpy(), sets) + prior).argmax(axis=1)
        written = [most_frequent[index] for index in best]
        labeler = CheXpertLabeler()
        return bleu(written, references) | clinical_efficacy(labeler(written), labeler(list(references)))

    def vqa(self, train: SyntheticQuestions, test: SyntheticQuestions, steps: int = 100) -> list[str]:
        """Answers to the test questions, by a logistic regression for each wording over the film's findings."""
        wordings = {wording: index for index, wording in enumerate(sorted(set(train.questions)))}
        answers = sorted(set(train.answers))
        weight = torch.zeros(len(wordings), len(FINDINGS) + 1, len(answers), requires_grad=True)

        def encode(asked: SyntheticQuestions) -> tuple[Tensor, Tensor]:
            probability = self.probabilities(asked.examples.images())[asked.image_indices]
            known = torch.tensor([wordings.get(question, 0) for question in asked.questions])
            return known, nn.functional.pad(probability, (0, 1), value=1.0)

        def score(asked: Tensor, seen: Tensor) -> Tensor:
            return torch.einsum("nf,nfa->na", seen, weight[asked])

        optimizer = torch.optim.Adam([weight], lr=0.1)
        asked, seen = encode(train)
        target = torch.tensor([answers.index(answer) for answer in train.answers])
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(score(asked, seen), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return [answers[index] for index in score(*encode(test)).argmax(1).tolist()]


def log_likelihood(probability: NDArray[np.float32], is_positive: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How likely each set of findings is on each film, the findings taken as independent.

    Args:
        probability: of each finding on each film, shape ``(N, 14)``.
        is_positive: sets of findings, shape ``(M, 14)``.

    Returns:
        Logarithms, shape ``(N, M)``.
    """
    certain = np.clip(probability, 1e-6, 1 - 1e-6)
    there, absent = np.log(certain), np.log(1 - certain)
    result: NDArray[np.float32] = there @ is_positive.T + absent @ (~is_positive).T
    return result
