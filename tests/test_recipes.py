"""Tests that every recipe is parsed and runs for a step, on generated data."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medvill_pl import FINDINGS
from medvill_pl.cli import main
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.evaluation.results import Results

ROOT = Path(__file__).parents[1]
TRAINERS = sorted(path.name for path in (ROOT / "tasks/_trainer").glob("*.yaml"))
RECIPES = sorted(str(path.relative_to(ROOT / "tasks")) for path in (ROOT / "tasks").glob("[!_]*/*.yaml"))
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


def write_prepared(folder: Path, source: str, credentialed: bool = False) -> Path:
    """A prepared corpus of 14 rows, 4 of them for validation and 4 for test, that says where it comes from.

    Each row has a report and a question, an organ and one or two of the findings.
    """
    rng = np.random.default_rng(0)
    rows = []
    for number in range(14):
        image = folder / f"{source}-{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(image)
        row = Row(
            id=str(number),
            patient_id=f"p{number}",
            split="train" if number < 6 else "val" if number < 10 else "test",
            image=str(image),
            report=f"{'mild' if number % 2 else 'no'} edema . heart size is normal .",
            view="AP",
            labels=tuple(int(column in (0, number % 4)) for column in range(14)),
            question="is there edema?" if number % 3 else "which side is the edema on?",
            answer=("left", "yes", "no")[number % 3],
            answer_type="closed" if number % 3 else "open",
            question_type="presence",
            organ="chest" if number % 2 else "head",
        )
        rows.append(row)
    write_corpus(folder / source, rows, CorpusInfo(source, credentialed, 32, list(FINDINGS)))
    return folder / source


@pytest.fixture
def data_of(tmp_path: Path, make_pairs: Callable[..., Path]) -> Callable[[str], list[str]]:
    """The options that point a dataset's recipe at generated data."""

    def options(dataset: str) -> list[str]:
        if dataset == "synthetic":
            return [f"--data.init_args.num_{split}=8" for split in ("train", "val", "test")]
        if dataset == "pairs":
            table = f"--data.init_args.table={make_pairs(24)}"
            shares = [f"--data.init_args.{split}_fraction=0.25" for split in ("val", "test")]
            return [table, "--data.init_args.patient_column=patient", *shares]
        source = {"mimic_cxr": "mimic-cxr", "open_i": "open-i"}.get(dataset, "vqa-rad")
        return [f"--data.init_args.corpus={write_prepared(tmp_path, source, source == 'mimic-cxr')}"]

    return options


OF_TASK = {
    "retrieval": ["--model.init_args.num_candidates=2"],
    "generation": ["--model.init_args.decoding={method: beam, num_beams: 2, max_new_tokens: 3}"],
}
"""Options that fit a task to so little data."""
COLUMNS = {
    "pretraining": ["id", "match_probability"],
    "classification": ["id", *FINDINGS],
    "retrieval": ["id", "match_probability", "report"],
    "vqa": ["id", "question", "answer_1", "probability_1"],
    "generation": ["id", "reference", "prediction"],
}
"""What the table of predictions begins with."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_tests_and_predicts(
    recipe: str,
    data_of: Callable[[str], list[str]],
    tiny_model: list[str],
    tiny_data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medvill_pl.tasks.result_table.inference_time", lambda *args: {})
    task, dataset = Path(recipe).parent.name, Path(recipe).stem
    words = ["-c", str(ROOT / "tasks" / recipe), *tiny_model, *tiny_data, *data_of(dataset), *ON_CPU]
    words += OF_TASK.get(task, [])
    assert main(["fit", *words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    checkpoint = next(tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt"))
    assert main(["test", *words, f"--ckpt_path={checkpoint}"]) == 0
    results = Results.read(next(tmp_path.glob("runs/*/version_0/test.parquet")))
    assert all(math.isfinite(value) for value in results.config["scores"].values())
    assert main(["predict", *words, f"--ckpt_path={checkpoint}"]) == 0
    with open(next(tmp_path.glob("runs/*/version_0/predictions.csv")), newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {row["id"] for row in results.rows}
    assert list(rows[0])[: len(COLUMNS[task])] == COLUMNS[task]
    values = [float(value) for row in rows for name, value in row.items() if "probability" in name or name in FINDINGS]
    assert all(0 <= value <= 1 for value in values)
    assert values or task == "generation"


def test_every_recipe_says_how_it_is_run() -> None:
    for recipe in RECIPES:
        text = (ROOT / "tasks" / recipe).read_text(encoding="utf-8")
        assert f"medvill fit -c tasks/{recipe}" in text


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_recipe_runs_a_step(
    trainer: str, tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = [word for word in tiny_job if "log_every_n_steps" not in word]  # options win over recipes
    assert main(["fit", *job, "-c", str(ROOT / "tasks/_trainer" / trainer), *ON_CPU, "--trainer.max_steps=1"]) == 0
    resolved = yaml.safe_load(next(tmp_path.glob("runs/**/config.yaml")).read_text())
    written = yaml.safe_load((ROOT / "tasks/_trainer" / trainer).read_text())["trainer"]
    plain = {name: value for name, value in written.items() if name in ("precision", "log_every_n_steps")}
    assert plain.items() <= resolved["trainer"].items()


def test_8_gpu_recipe_says_what_its_name_says() -> None:
    trainer = yaml.safe_load((ROOT / "tasks/_trainer/ddp8_bf16.yaml").read_text())["trainer"]
    assert (trainer["accelerator"], trainer["devices"], trainer["strategy"]) == ("gpu", 8, "ddp")
    assert trainer["precision"] == "bf16-mixed"
