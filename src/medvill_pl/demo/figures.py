"""The figures of the demo: of pre-training, of the rival, and the best that the corpus allows."""

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from medvill_pl import Batch, CheXpertLabeler, ImageClassifier, PretrainingTask, Results, SyntheticDataModule
from medvill_pl.baselines.findings_rival import (
    FindingsAnswers,
    answer_results,
    search_by_findings,
    write_by_findings,
)
from medvill_pl.demo.settings import STRATEGY, Data
from medvill_pl.evaluation.generation import bleu, clinical_efficacy
from medvill_pl.synthetic.datamodule import SyntheticExamples, SyntheticQuestions
from medvill_pl.synthetic.grammar import perplexity_floor, rewrite_report, write_report

Scores = dict[str, float]


class Pretrained(NamedTuple):
    """What the pre-trained model makes of the test split, and what it would give without learning."""

    perplexity: float
    perplexity_of_other_image: float
    unigram_perplexity: float
    mlm_accuracy: float
    most_frequent_token: float
    irm_accuracy: float
    irm_auroc: float
    irm_loss: float


@torch.inference_mode()
def evaluate(task: PretrainingTask, data: SyntheticDataModule) -> Pretrained:
    """Score the test split: with its own images, with others' images, and by token frequencies alone."""
    unigram = _log_frequencies(data)
    sums: dict[str, float] = dict.fromkeys(("own", "other", "unigram", "right"), 0.0)
    matched, match_logits, targets = [], [], []
    for unmasked in data.test_dataloader():
        batch = task.masking(unmasked)
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
    is_match, match, tokens = torch.cat(matched), torch.cat(match_logits), torch.cat(targets)
    return Pretrained(
        perplexity=float(np.exp(sums["own"] / len(tokens))),
        perplexity_of_other_image=float(np.exp(sums["other"] / len(tokens))),
        unigram_perplexity=float(np.exp(sums["unigram"] / len(tokens))),
        mlm_accuracy=sums["right"] / len(tokens),
        most_frequent_token=(tokens == unigram.argmax()).float().mean().item(),
        irm_accuracy=binary_accuracy(match.sigmoid(), is_match).item(),
        irm_auroc=binary_auroc(match.sigmoid(), is_match).item(),
        irm_loss=nn.functional.binary_cross_entropy_with_logits(match, is_match.float()).item(),
    )


def _log_frequencies(data: SyntheticDataModule) -> Tensor:
    """Logarithm of each token's share of the training texts, one added to each count."""
    ids = [index for report in data.tokenizer.encode(data.datasets["train"].examples.reports) for index in report]
    counts = torch.bincount(torch.tensor(ids), minlength=data.tokenizer.vocab_size) + 1.0
    return (counts / counts.sum()).log()


def score_rival(classifier: ImageClassifier, data: Data, results: dict[str, Results]) -> dict[str, Scores]:
    """What the image encoder's own findings give in each task.

    Args:
        classifier: tested on the images of classification.
        data: of the four tasks.
        results: of the four tasks, which the rival shares the rows with.
    """
    train = data.generation.datasets["train"].examples
    test = cast(SyntheticExamples, data.generation.datasets["test"].examples)
    gallery = cast(SyntheticExamples, data.retrieval.datasets["test"].examples)
    probability = _probability(classifier, test)
    written = write_by_findings(train.reports, train.labels, probability)
    labeler = CheXpertLabeler()
    num_candidates = min(100, len(gallery.ids))
    searched = search_by_findings(gallery.ids, gallery.labels, _probability(classifier, gallery), num_candidates)
    return {
        "classification": classifier.results.scores(),
        "retrieval": searched.scores(),
        "vqa": _answer(classifier, data, results["vqa"]).scores(),
        "generation": bleu(written, test.reports) | clinical_efficacy(labeler(written), labeler(test.reports)),
    }


def _probability(classifier: ImageClassifier, examples: SyntheticExamples) -> NDArray[np.float32]:
    probability: NDArray[np.float32] = classifier.predict_images(examples.images()).numpy()
    return probability


def _answer(classifier: ImageClassifier, data: Data, tested: Results) -> Results:
    """Answer the test questions by a model of all training questions."""
    train, test = (cast(SyntheticQuestions, data.vqa.datasets[split].examples) for split in ("train", "test"))
    known, asked = (_probability(classifier, part.examples)[part.image_indices] for part in (train, test))
    answers = FindingsAnswers(train.questions, train.answers, known).answer(test.questions, asked)
    return answer_results(tested, dict(zip(test.ids, answers, strict=True)))


def best_possible(data: Data) -> Scores:
    """What a writer of reports would reach who sees every image perfectly and knows the grammar."""
    test = cast(SyntheticExamples, data.generation.datasets["test"].examples)
    written = [write_report(study) for study in test.studies]
    num_tokens = int(data.generation.datasets["test"].lengths.sum())
    again = [rewrite_report(study).text for study in test.studies]
    labeler = CheXpertLabeler()
    efficacy = clinical_efficacy(labeler(again), labeler(test.reports))
    return {"perplexity": perplexity_floor(written, num_tokens), **bleu(again, test.reports), **efficacy}
