"""Results on disk: written, read, scored again and compared."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_ind

from medvill_pl.evaluation.results import Results, compare, importable_path
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


def searches() -> Results:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"e{n}", "direction": direction, "gallery": "candidates", "frequency_first_rank": None}
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


@pytest.mark.parametrize("make", [lambda: answers(0.7), findings, searches], ids=["answers", "findings", "searches"])
def test_what_is_read_is_what_was_written_and_gives_the_same_tables(make: Any, tmp_path: Path) -> None:
    results: Results = make()
    results.write(tmp_path / "run" / "test.parquet")
    read = Results.read(tmp_path / "run" / "test.parquet")
    assert same(list(read.rows), list(results.rows))
    assert same(read.context, results.context)
    assert (read.score_fn, read.config) == (results.score_fn, results.config)
    # Tables are made again without the model.
    assert read.scores() == results.scores()
    again, estimates = read.bootstrap(), results.bootstrap()
    assert again.keys() == estimates.keys()
    for metric, estimate in estimates.items():
        np.testing.assert_array_equal(again[metric].replicates, estimate.replicates)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    results = answers(0.7)
    results.write(tmp_path / "test.parquet")
    table = pq.read_table(tmp_path / "test.parquet")
    assert table.column_names == list(results.rows[0])
    assert table.num_rows == 40
    beside = json.loads((tmp_path / "test.json").read_text())
    assert beside == {"context": results.context, "score_fn": VQA, "config": results.config}


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


def test_results_without_scoring_function_have_no_scores() -> None:
    assert Results([{"id": "a"}], {}, "").scores() == {}


# -- scored by a function of the user ---------------------------------------------------------------

SCRIPT = """
from pathlib import Path
from medvill_pl.evaluation.results import Results, importable_path

def share(rows, context):
    return {"share": sum(row["is_right"] for row in rows) / len(rows)}

if __name__ == "__main__":
    path, warning = importable_path(f"{__name__}.share")
    print(path, "|", warning)
    results = Results([{"id": "a", "is_right": True}, {"id": "b", "is_right": False}], {}, f"{__name__}.share")
    print(results.scores())
    results.write(Path("test.parquet"))
"""


def share(rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> dict[str, float]:
    return {"share": sum(row["is_right"] for row in rows) / len(rows)}


def run_script(folder: Path, *command: str) -> list[str]:
    (folder / "own_task.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("spec", "file", "path"),
    [
        (None, "/anywhere/own_task.py", "own_task.py:share"),
        (None, None, "an interactive session:share"),
        (ModuleSpec("package.own_task", None), "/anywhere/package/own_task.py", "package.own_task.share"),
    ],
)
def test_path_of_a_function_of_the_program_itself(
    spec: ModuleSpec | None, file: str | None, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = spec
    if file:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    for module in ("__main__", "__mp_main__"):
        stored, warning = importable_path(f"{module}.share")
        assert stored == path
        assert (warning is None) == (spec is not None)
    assert importable_path(VQA) == (VQA, None)
    assert importable_path("") == ("", None)


@pytest.mark.slow
def test_results_of_a_script_say_what_scores_them_and_take_the_function(tmp_path: Path) -> None:
    name, scores = run_script(tmp_path, "own_task.py")
    path, _, warning = name.partition(" | ")
    assert path == "own_task.py:share"
    assert "pass it later, results.scores(score_fn=share)" in warning
    assert scores == "{'share': 0.5}"  # in the script itself the function is at hand
    results = Results.read(tmp_path / "test.parquet")
    with pytest.raises(
        ValueError, match=r"scored by share of own_task\.py, which cannot be imported: pass the function"
    ):
        results.scores()
    with pytest.raises(ValueError, match="pass the function"):
        results.bootstrap()
    assert results.scores(score_fn=share) == {"share": 0.5}
    assert results.bootstrap(score_fn=share)["share"].value == 0.5
    assert compare({"one": results}, score_fn=share)[0]["value"] == 0.5


@pytest.mark.slow
def test_results_of_a_module_that_was_run_are_scored_where_it_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(tmp_path, "-m", "own_task") == ["own_task.share | None", "{'share': 0.5}"]
    results = Results.read(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"scored by own_task\.share, which cannot be imported here \(No module named"):
        results.scores()
    monkeypatch.syspath_prepend(tmp_path)
    assert results.scores() == {"share": 0.5}


def test_a_function_that_its_module_lost_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"vqa\.lost, which cannot be imported here .* results\.scores\(score_fn=lost\)"
    ):
        Results([{"id": "a"}], {}, "medvill_pl.evaluation.vqa.lost").scores()


def test_another_programs_main_is_not_this_ones(tmp_path: Path) -> None:
    Results([{"id": "a"}], {}, VQA).write(tmp_path / "test.parquet")
    values = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps(values | {"score_fn": "__main__.main"}))
    with pytest.raises(ValueError, match="scored by main of a script, which cannot be imported: pass the function"):
        Results.read(tmp_path / "test.parquet").scores()


# -- of version 0.1 ------------------------------------------------------------------------------


def write_as_0_1(results: Results, path: Path, renamed: Mapping[str, str]) -> None:
    """Write what version 0.1 wrote: other names, in JSON and in the columns of retrieval."""
    results.write(path)
    text = path.with_suffix(".json").read_text()
    for new, old in {"score_fn": "metrics", "ms_per_example": "ms_an_example", **renamed}.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    path.with_suffix(".json").write_text(text)
    values = {"candidates": "trial", "full": "whole"}
    rows = [
        {("pool" if k == "gallery" else k): (values[v] if k == "gallery" else v) for k, v in row.items()}
        for row in results.rows
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_results_of_version_0_1_are_read_and_scored(tmp_path: Path) -> None:
    ranked = searches()
    ranked.config = {"ms_per_example": {"1": 2.0}}
    ranked.rows = [*ranked.rows, *({**row, "gallery": "full"} for row in ranked.rows)]
    for number, results in enumerate((ranked, answers(0.7))):
        path = tmp_path / f"{number}.parquet"
        write_as_0_1(results, path, {"most_frequent": "commonest"})
        assert '"metrics"' in path.with_suffix(".json").read_text()
        read = Results.read(path)
        assert read.scores() == results.scores()
        assert (read.score_fn, read.context, read.config) == (results.score_fn, results.context, results.config)
    assert "image_to_report/full_gallery/mrr" in ranked.scores()


# -- comparison ----------------------------------------------------------------------------------


def test_models_are_compared_with_the_first() -> None:
    results = {"MedViLL": answers(0.9), "plain": answers(0.5, seed=1), "same": answers(0.9)}
    table = compare(results, metrics=["accuracy"])
    assert [(row["metric"], row["model"]) for row in table] == [("accuracy", name) for name in results]
    first, plain, twin = table
    replicates = {name: result.bootstrap()["accuracy"] for name, result in results.items()}
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
