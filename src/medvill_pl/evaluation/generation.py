"""Report generation: perplexity, BLEU, clinical efficacy, diversity (MedViLL, Sec. IV-C.4)."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS
from medvill_pl.evaluation.statistics import Rows

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

FIVE_FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings that CheXpert's authors compare labelers on, and clinical efficacy is often given for."""
_WORDS = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Split a text as all text metrics here do: lower case; words and punctuation marks apart.

    Args:
        text: any text.

    Example:
        >>> split_words("No focal-airspace disease.")
        ['no', 'focal', '-', 'airspace', 'disease', '.']
    """
    return _WORDS.findall(text.lower())


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-1 to BLEU-4, through sacrebleu, without smoothing, 0 to 1.

    Texts are split by :func:`split_words`; sacrebleu's own tokenizer is off.

    Args:
        predictions: generated texts.
        references: one reference per prediction.

    Returns:
        ``bleu_1`` to ``bleu_4``.

    Example:
        >>> {name: round(value, 3) for name, value in bleu(["No acute disease."], ["No focal disease."]).items()}
        {'bleu_1': 0.75, 'bleu_2': 0.5, 'bleu_3': 0.0, 'bleu_4': 0.0}
    """
    from sacrebleu.metrics.bleu import BLEU

    score = _bleu_against(references).corpus_score(_split(predictions), None)
    return {
        f"bleu_{order}": BLEU.compute_bleu(
            score.counts[:order],
            score.totals[:order],
            score.sys_len,
            score.ref_len,
            smooth_method="none",
            max_ngram_order=order,
        ).score
        / 100
        for order in (1, 2, 3, 4)
    }


def _bleu_against(references: Sequence[str]) -> "BLEU":
    """BLEU-4 against these references, which are counted once."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", force=True, smooth_method="none", references=[_split(references)])


def _split(texts: Sequence[str]) -> list[str]:
    return [" ".join(split_words(text)) for text in texts]


def clinical_efficacy(predicted: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Compare the findings of generated and reference reports.

    Args:
        predicted: labels of the generated reports by a labeler: 1, 0, -1 or NaN, shape ``(N, 14)``.
        reference: labels of the reference reports, likewise.

    Returns:
        Over positive labels: ``clinical_accuracy`` (share of equal cells), ``clinical_precision``,
        ``clinical_recall`` and ``clinical_f1``, micro over all cells; ``clinical_f1_macro``, the mean over the findings
        that occur in either; and ``clinical_f1_five``, micro over the five common findings.

    Example:
        >>> reference, predicted = np.zeros((1, 14)), np.zeros((1, 14))
        >>> reference[0, [1, 2]] = predicted[0, [2, 3]] = 1  # one finding of two
        >>> efficacy = clinical_efficacy(predicted, reference)
        >>> efficacy["clinical_precision"], efficacy["clinical_recall"]
        (0.5, 0.5)
    """
    preds, target = np.asarray(predicted) == 1, np.asarray(reference) == 1
    five = [FINDINGS.index(finding) for finding in FIVE_FINDINGS]
    occurs = (preds | target).any(axis=0)
    columns = [_f1(preds[:, column], target[:, column])[2] for column in np.flatnonzero(occurs)]
    precision, recall, f1 = _f1(preds, target)
    return {
        "clinical_accuracy": float((preds == target).mean()),
        "clinical_precision": precision,
        "clinical_recall": recall,
        "clinical_f1": f1,
        "clinical_f1_macro": float(np.mean(columns)) if columns else 0.0,
        "clinical_f1_five": _f1(preds[:, five], target[:, five])[2],
    }


def _f1(preds: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where there is nothing to divide by."""
    both = int((preds & target).sum())
    precision, recall = both / max(1, int(preds.sum())), both / max(1, int(target.sum()))
    return precision, recall, 2 * both / max(1, int(preds.sum() + target.sum()))


def generation_scores(rows: Rows, context: Mapping[str, Any]) -> dict[str, float]:
    """Score generated reports; of rows without ``prediction`` (validation), the perplexity alone.

    Args:
        rows: ``reference`` and ``prediction``, texts; ``log_likelihood``, the sum over the reference's tokens in nats
            with the closing SEP, and ``num_tokens``, their number; ``reference_labels`` and
            ``prediction_labels``, 14 each by the labeler.
        context: ``constant``: the report that a baseline always writes, and ``constant_labels``; or None.

    Returns:
        ``perplexity`` over the corpus and ``perplexity_of_reports``, the mean of each report's own; BLEU;
        clinical efficacy; ``distinct``, the share of different texts among the predictions; ``length_ratio``, words
        of the predictions to those of the references; ``empty``, the share of empty predictions; and BLEU and clinical
        efficacy of the constant report as ``constant_{metric}``.

    Example:
        >>> row = {"log_likelihood": -3 * math.log(2), "num_tokens": 3}
        >>> {name: round(value, 6) for name, value in generation_scores([row], {}).items()}
        {'perplexity': 2.0, 'perplexity_of_reports': 2.0}
    """
    likelihood, number = (np.array([row[name] for row in rows]) for name in ("log_likelihood", "num_tokens"))
    perplexity = {
        "perplexity": math.exp(-likelihood.sum() / number.sum()),
        "perplexity_of_reports": float(np.exp(-likelihood / number).mean()),
    }
    if "prediction" not in rows[0]:
        return perplexity
    references, predictions = [row["reference"] for row in rows], [row["prediction"] for row in rows]
    target = np.array([row["reference_labels"] for row in rows], dtype=np.float64)
    preds = np.array([row["prediction_labels"] for row in rows], dtype=np.float64)
    num_words = [sum(len(split_words(text)) for text in texts) for texts in (predictions, references)]
    scores = {
        **perplexity,
        **bleu(predictions, references),
        **clinical_efficacy(preds, target),
        "distinct": len(set(predictions)) / len(rows),
        "length_ratio": num_words[0] / max(1, num_words[1]),
        "empty": sum(not text.strip() for text in predictions) / len(rows),
    }
    if context.get("constant") is not None:
        constant = np.tile(np.array(context["constant_labels"], dtype=np.float64), (len(rows), 1))
        baseline = bleu([context["constant"]] * len(rows), references) | clinical_efficacy(constant, target)
        scores |= {f"constant_{name}": value for name, value in baseline.items()}
    return scores


def best_constant_report(reports: Sequence[str], num_tried: int = 100, num_scored: int = 400) -> str:
    """Choose the training report that, written for every image, has the best BLEU-4 against training reports.

    Args:
        reports: texts of the training split.
        num_tried: how many of the most frequent texts are tried.
        num_scored: how many reports they are scored against, spread evenly over the split.

    Example:
        >>> best_constant_report(["No acute disease.", "No acute disease.", "Large effusion."])
        'No acute disease.'
    """
    candidates = [text for text, _ in Counter(reports).most_common(num_tried)]
    references = reports[:: max(1, len(reports) // num_scored)]
    metric = _bleu_against(references)
    return max(candidates, key=lambda text: metric.corpus_score(_split([text]) * len(references), None).score)
