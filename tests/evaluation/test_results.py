"""Results on disk: written, read, scored again and compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_ind

from medvill_pl.evaluation.results import Results, compare
from medvill_pl.evaluation.retrieval import rank_candidates

NAN = float("nan")
VQA = "medvill_pl.evaluation.vqa.vqa_scores"


def answers(share_right: float, num: int = 40, seed: int = 0, prefix: str = "q") -> Results:
    """What a test of question answering keeps, of a model that is right in a share of the questions."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "id": f"{prefix}{number:03d}",
            "answer": "yes" if number % 2 else "left",
            "answer_type": "closed" if number % 2 else "open",
            "question_type": "presence",
            "organ": "chest",
            "is_known": True,
            "prediction": ("yes" if number % 2 else "left") if rng.random() < share_right else "wrong",
        }
        for number in range(num)
    ]
    return Results(
        rows, {"most_frequent": {"closed": "yes", "open": "right"}}, VQA, {"task": "a task", "data": {"n": 1}}
    )


def findings() -> Results:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"e{n}", "probability": rng.random(2).tolist(), "label": [float(n % 2), NAN if n % 3 else 1.0]}
        for n in range(12)
    ]
    context = {"findings": ["Edema", "Fracture"], "threshold": [0.25, 0.5], "frequency": None}
    return Results(rows, context, "medvill_pl.evaluation.classification.classification_scores")


def trials() -> Results:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"e{n}", "direction": direction, "pool": "trial", "frequency_first_rank": None}
        | rank_candidates(rng.random(8), rng.random(8) < 0.3)._asdict()
        for n in range(10)
        for direction in ("image_to_report", "report_to_image")
    ]
    return Results(rows, {}, "medvill_pl.evaluation.retrieval.retrieval_scores")


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, NaN being equal to itself."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


# -- on disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: answers(0.7), findings, trials], ids=["answers", "findings", "trials"])
def test_what_is_read_is_what_was_written_and_gives_the_same_tables(make: Any, tmp_path: Path) -> None:
    results: Results = make()
    results.write(tmp_path / "run" / "test.parquet")
    read = Results.read(tmp_path / "run" / "test.parquet")
    assert same(list(read.rows), list(results.rows))
    assert same(read.context, results.context)
    assert (read.metrics, read.config) == (results.metrics, results.config)
    # Tables are made again without the model.
    assert read.scores() == results.scores()
    of_read, of_written = read.bootstrap(), results.bootstrap()
    assert of_read.keys() == of_written.keys()
    for metric, estimate in of_written.items():
        np.testing.assert_array_equal(of_read[metric].replicates, estimate.replicates)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    results = answers(0.7)
    results.write(tmp_path / "test.parquet")
    table = pq.read_table(tmp_path / "test.parquet")
    assert table.column_names == list(results.rows[0])
    assert table.num_rows == 40
    beside = json.loads((tmp_path / "test.json").read_text())
    assert beside == {"context": results.context, "metrics": VQA, "config": results.config}


@pytest.mark.parametrize("missing", ["test.parquet", "test.json"])
def test_missing_part_is_named(missing: str, tmp_path: Path) -> None:
    answers(0.7).write(tmp_path / "test.parquet")
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no results: {tmp_path / missing} is missing"):
        Results.read(tmp_path / "test.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [("test.parquet", b"PAR1 no"), ("test.json", b"{"), ("test.json", b'{"unknown": 1}')],
)
def test_broken_results_are_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    answers(0.7).write(tmp_path / "test.parquet")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds no results of a test run"):
        Results.read(tmp_path / "test.parquet")


def test_results_without_metrics_have_no_scores() -> None:
    assert Results([{"id": "a"}], {}, "").scores() == {}


# -- comparison ----------------------------------------------------------------------------------


def test_models_are_compared_with_the_first() -> None:
    results = {"MedViLL": answers(0.9), "plain": answers(0.5, seed=1), "same": answers(0.9)}
    table = compare(results, metrics=["accuracy"])
    assert [(row["metric"], row["model"]) for row in table] == [("accuracy", name) for name in results]
    first, plain, twin = table
    replicates = {name: of.bootstrap()["accuracy"] for name, of in results.items()}
    for row in table:
        estimate = replicates[row["model"]]
        assert (row["value"], row["mean"], row["deviation"], row["low"], row["high"]) == estimate[:5]
    assert (first["p_t_test"], first["p_paired"]) == (None, None)
    expected = ttest_ind(replicates["MedViLL"].replicates, replicates["plain"].replicates).pvalue
    assert plain["p_t_test"] == pytest.approx(expected)
    assert plain["p_t_test"] < 0.05
    assert plain["p_paired"] == pytest.approx(2 / 201)  # never the other way in 200 replicates
    assert (twin["p_t_test"], twin["p_paired"]) == (pytest.approx(1), 1)


def test_all_metrics_that_the_results_share_are_compared() -> None:
    one, other = answers(0.9), answers(0.8, seed=1)
    other.context = {}
    metrics = {row["metric"] for row in compare({"one": one, "other": other}, num_paired=5)}
    assert metrics == set(other.scores()) < set(one.scores())


def test_one_model_alone_has_no_p_values() -> None:
    (row,) = compare({"one": answers(0.9)}, metrics=["accuracy_open"])
    assert (row["p_t_test"], row["p_paired"]) == (None, None)


@pytest.mark.parametrize("other", [answers(0.9, num=39), answers(0.9, prefix="other")])
def test_results_of_other_examples_are_not_compared(other: Results) -> None:
    with pytest.raises(ValueError, match="two was tested on other examples than one: only the same can be compared"):
        compare({"one": answers(0.9), "two": other})


def test_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric 'bleu': choose of accuracy, ceiling, "):
        compare({"one": answers(0.9)}, metrics=["bleu"])
