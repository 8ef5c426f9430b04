"""Metrics of generated reports against values worked out by hand."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sacrebleu

from medvill_pl import FINDINGS
from medvill_pl.evaluation.generation import (
    FIVE_FINDINGS,
    best_constant_report,
    bleu,
    clinical_efficacy,
    generation_scores,
    split_words,
)
from medvill_pl.evaluation.results import Results

NAN = float("nan")
REPORTS = [
    "PA view of the chest. The heart is not enlarged. No pleural effusion.",
    "Small left-sided effusion; mild edema of the lungs.",
    "No acute cardiopulmonary abnormality.",
]


def test_words_are_split_alike_whatever_case_and_marks() -> None:
    assert split_words("The heart's 3.5 cm;  NO (pleural) effusion.\n") == [
        "the", "heart", "'", "s", "3", ".", "5", "cm", ";", "no", "(", "pleural", ")", "effusion", ".",
    ]  # fmt: skip
    assert split_words("  ") == []


# -- BLEU ----------------------------------------------------------------------------------------


def test_bleu_is_what_the_counts_give_by_hand() -> None:
    # Prediction: the the cat sat (4); reference: the cat sat down now (5). Clipped matches:
    # words 3 of 4, pairs "the cat", "cat sat" 2 of 3, triples 1 of 2, fours 0 of 1.
    scores = bleu(["The the cat sat"], ["the cat sat down now"])
    brevity = math.exp(1 - 5 / 4)
    assert scores["bleu_1"] == pytest.approx(brevity * 3 / 4)
    assert scores["bleu_2"] == pytest.approx(brevity * math.sqrt(3 / 4 * 2 / 3))
    assert scores["bleu_3"] == pytest.approx(brevity * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert scores["bleu_4"] == 0.0


def test_bleu_counts_over_the_corpus_not_over_reports() -> None:
    # Words: 2 of 2 and 1 of 4, so 3 of 6; lengths 6 and 6. The mean of reports would be 0.625.
    assert bleu(["no edema", "a b c edema"], ["no edema", "edema x y z"])["bleu_1"] == pytest.approx(0.5)


def test_bleu_agrees_with_sacrebleu_on_words_set_apart_by_its_own_tokenizer() -> None:
    predictions = [REPORTS[0].replace("not ", ""), REPORTS[1].replace("mild", "severe"), REPORTS[2]]
    expected = sacrebleu.corpus_bleu(predictions, [REPORTS], tokenize="13a", lowercase=True, smooth_method="none")
    # 13a keeps "left-sided" whole, which both texts have: one word for three.
    assert bleu(predictions, REPORTS)["bleu_4"] == pytest.approx(expected.score / 100, abs=0.02)
    plain = [text.replace("-", " ") for text in REPORTS]
    changed = [text.replace("-", " ") for text in predictions]
    for order in (1, 2, 3, 4):
        metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none", max_ngram_order=order)
        score = metric.corpus_score(changed, [plain]).score / 100
        assert 0.5 < score < 1
        assert bleu(changed, plain)[f"bleu_{order}"] == pytest.approx(score)


def test_equal_texts_have_full_bleu_and_empty_ones_none() -> None:
    assert list(bleu(REPORTS[:2], REPORTS[:2]).values()) == pytest.approx([1.0] * 4)
    for predictions, references in ((["", ""], REPORTS[:2]), (REPORTS[:2], ["", ""]), ([""], [""])):
        assert bleu(predictions, references) == {f"bleu_{order}": 0.0 for order in (1, 2, 3, 4)}


# -- clinical efficacy ---------------------------------------------------------------------------


def labels(*rows: dict[str, float]) -> np.ndarray:
    """Labels by finding; what is not named is NaN, not mentioned."""
    return np.array([[row.get(finding, NAN) for finding in FINDINGS] for row in rows])


def test_clinical_efficacy_is_what_the_counts_give_by_hand() -> None:
    predicted = labels(
        {"Edema": 1, "Fracture": 1, "Cardiomegaly": -1, "Pneumonia": 0},
        {"Edema": 1, "Cardiomegaly": 1},
        {"No Finding": 1},
    )
    reference = labels(
        {"Edema": 1, "Fracture": -1, "Cardiomegaly": 1},
        {"Edema": 0, "Cardiomegaly": 1, "Pneumonia": 1},
        {"No Finding": 1, "Edema": 0},
    )
    # Uncertain, negative and not mentioned all count as not positive. Positive in both: 3 (Edema in the first,
    # Cardiomegaly in the second, No Finding); predicted 5; true 5; of 42 cells, 4 differ.
    assert clinical_efficacy(predicted, reference) == {
        "clinical_accuracy": pytest.approx(38 / 42),
        "clinical_precision": pytest.approx(3 / 5),
        "clinical_recall": pytest.approx(3 / 5),
        "clinical_f1": pytest.approx(3 / 5),
        # Edema 2/3, Fracture 0, Cardiomegaly 2/3, Pneumonia 0, No Finding 1
        "clinical_f1_macro": pytest.approx((2 / 3 + 0 + 2 / 3 + 0 + 1) / 5),
        # Edema and Cardiomegaly alone: 2 of 3 predicted, 2 of 3 in the reference
        "clinical_f1_five": pytest.approx(2 / 3),
    }


def test_precision_and_recall_are_not_swapped() -> None:
    true = labels({"Edema": 1, "Fracture": 1, "Pneumonia": 1, "No Finding": 1})
    scores = clinical_efficacy(labels({"Edema": 1}), true)
    assert (scores["clinical_precision"], scores["clinical_recall"]) == (1.0, 0.25)
    assert scores["clinical_f1"] == pytest.approx(0.4)
    assert scores["clinical_f1_five"] == 1.0


def test_the_five_findings_are_those_of_the_subset() -> None:
    assert set(FIVE_FINDINGS) == {"Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"}
    for finding in FINDINGS:
        score = clinical_efficacy(labels({finding: 1}), labels({finding: 1}))["clinical_f1_five"]
        assert score == float(finding in FIVE_FINDINGS)


def test_without_any_positive_label_all_metrics_are_defined() -> None:
    scores = clinical_efficacy(labels({}, {"Edema": -1}), labels({"Edema": 0}, {}))
    assert scores.pop("clinical_accuracy") == 1.0
    assert set(scores.values()) == {0.0}


# -- rows ----------------------------------------------------------------------------------------


def make_row(
    number: int, prediction: str | None, predicted: dict[str, float], true: dict[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": str(number),
        "reference": REPORTS[number],
        "log_likelihood": (-4.0, -30.0, -2.0)[number],
        "num_tokens": (2, 5, 4)[number],
        "reference_labels": labels(true)[0].tolist(),
    }
    if prediction is not None:
        row |= {"prediction": prediction, "prediction_labels": labels(predicted)[0].tolist()}
    return row


def rows(*predictions: str | None) -> list[dict[str, Any]]:
    true = ({"Cardiomegaly": 0, "Pleural Effusion": 0}, {"Pleural Effusion": 1, "Edema": 1}, {"No Finding": 1})
    return [make_row(n, text, {"Edema": 1.0} if text else {}, true[n]) for n, text in enumerate(predictions)]


def test_perplexity_of_the_corpus_and_of_reports() -> None:
    scores = generation_scores(rows(None, None, None), {"constant": None})
    assert scores == {
        "perplexity": pytest.approx(math.exp(36 / 11)),
        "perplexity_of_reports": pytest.approx((math.exp(2) + math.exp(6) + math.exp(0.5)) / 3),
    }


def test_scores_of_written_reports() -> None:
    predictions = ["No edema.", "No edema.", "Mild edema"]
    scores = generation_scores(rows(*predictions), {"constant": None})
    assert scores["distinct"] == pytest.approx(2 / 3)
    assert scores["length_ratio"] == pytest.approx((3 + 3 + 2) / (16 + 12 + 5))
    assert scores["empty"] == 0.0
    assert scores["bleu_1"] == bleu(predictions, REPORTS)["bleu_1"] > 0
    # Predicted: Edema three times, once right; true: Edema, Pleural Effusion, No Finding.
    assert scores["clinical_precision"] == scores["clinical_recall"] == pytest.approx(1 / 3)
    assert scores["perplexity"] == pytest.approx(math.exp(36 / 11))
    assert not [name for name in scores if name.startswith("constant")]


def test_baseline_of_one_report_for_all() -> None:
    context = {"constant": REPORTS[2], "constant_labels": labels({"No Finding": 1})[0].tolist()}
    scores = generation_scores(rows("a", "b", "c"), context)
    assert scores["constant_bleu_4"] == bleu([REPORTS[2]] * 3, REPORTS)["bleu_4"]
    assert scores["constant_bleu_1"] > scores["bleu_1"]
    # One of three is right, of three that are true.
    assert scores["constant_clinical_precision"] == scores["constant_clinical_recall"] == pytest.approx(1 / 3)
    assert {name.removeprefix("constant_") for name in scores if name.startswith("constant_")} <= scores.keys()


@pytest.mark.parametrize("predictions", [("", "", ""), ("No edema.", "", " \n")])
def test_empty_reports_keep_all_metrics_defined(predictions: tuple[str, ...]) -> None:
    context = {"constant": REPORTS[2], "constant_labels": labels({"No Finding": 1})[0].tolist()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = generation_scores(rows(*predictions), context)
        empty = generation_scores(rows("x", "y", "z"), context)
    assert scores.keys() == empty.keys()
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["empty"] == pytest.approx(sum(not text.strip() for text in predictions) / 3)
    if not any(predictions):
        assert scores["bleu_1"] == scores["clinical_f1"] == scores["length_ratio"] == 0.0
        assert scores["distinct"] == pytest.approx(1 / 3)


def test_scores_are_made_again_from_what_is_on_disk(tmp_path: Any) -> None:
    context = {"constant": REPORTS[2], "constant_labels": labels({"No Finding": 1})[0].tolist()}
    path = "medvill_pl.evaluation.generation.generation_scores"
    results = Results(rows("No edema.", "Mild edema", ""), context, path, {})
    results.write(tmp_path / "test.parquet")
    again = Results.read(tmp_path / "test.parquet")
    assert again.scores() == results.scores()
    spread = again.bootstrap(num_replicates=5)
    assert spread["perplexity"].value == results.scores()["perplexity"]
    assert spread["perplexity"].deviation > 0


# -- the constant report -------------------------------------------------------------------------


def test_best_constant_report_is_the_one_of_best_bleu() -> None:
    reports = ["the lungs are clear today .", "the lungs are clear and wide", "the lungs are clear", "xx", "xx", "xx"]
    tried = {text: bleu([text] * 6, reports)["bleu_4"] for text in set(reports)}
    best = best_constant_report(reports)
    assert best != "xx"  # the most_frequent is not the best
    assert tried[best] == max(tried.values()) > 0


def test_commonest_texts_are_tried_against_reports_spread_over_the_split() -> None:
    often, seldom = "no acute disease of the chest", "a b c d e f g"
    reports = [often] * 2 + [seldom] * 30
    assert best_constant_report(reports) == seldom
    assert best_constant_report([*reports, *[often] * 40], num_tried=1) == often
    # Every third is scored, and these are all alike.
    assert best_constant_report([often, seldom, seldom] * 10, num_scored=10) == often


def test_constant_report_of_empty_reports() -> None:
    assert best_constant_report(["", "", "clear"]) == ""
