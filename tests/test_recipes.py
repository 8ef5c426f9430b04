"""Tests that every recipe is parsed and runs for a step, on generated data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medvill_pl.cli import main
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus

ROOT = Path(__file__).parents[1]
TRAINERS = sorted(path.name for path in (ROOT / "tasks/_trainer").glob("*.yaml"))
RECIPES = sorted(str(path.relative_to(ROOT / "tasks")) for path in (ROOT / "tasks").glob("[!_]*/*.yaml"))
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


@pytest.fixture
def mimic_corpus(tmp_path: Path) -> Path:
    """A prepared corpus that says it is MIMIC-CXR."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        image = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(image)
        labels = tuple(int(place == number % 3) for place in range(14))
        split = ("train", "val", "test")[number % 3 if number > 8 else 0]
        rows.append(Row(str(number), f"p{number}", split, str(image), f"report {number}", "AP", labels))  # type: ignore[arg-type]
    # Each split needs two label sets for non-matching pairs.
    rows += [
        Row(f"{split}-b", f"q{split}", split, rows[0].image, "no edema", "AP", (1,) * 14)  # type: ignore[arg-type]
        for split in ("val", "test")
    ]
    write_corpus(tmp_path / "mimic", rows, CorpusInfo("mimic-cxr", True, 32, []))
    return tmp_path / "mimic"


@pytest.fixture
def data_of(mimic_corpus: Path, make_pairs: Callable[..., Path]) -> dict[str, list[str]]:
    """The options that point each recipe of a dataset at generated data."""
    return {
        "synthetic": [f"--data.init_args.num_{split}=8" for split in ("train", "val", "test")],
        "pairs": [f"--data.init_args.table={make_pairs(24)}", "--data.init_args.patient_column=patient"],
        "mimic_cxr": [f"--data.init_args.corpus={mimic_corpus}"],
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_tests_and_predicts(
    recipe: str,
    data_of: dict[str, list[str]],
    tiny_model: list[str],
    tiny_data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-c", str(ROOT / "tasks" / recipe), *tiny_model, *tiny_data, *data_of[Path(recipe).stem], *ON_CPU]
    assert main(["fit", *words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    checkpoint = next(tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt"))
    assert main(["test", *words, f"--ckpt_path={checkpoint}"]) == 0
    assert main(["predict", *words, f"--ckpt_path={checkpoint}"]) == 0
    header, *rows = next(tmp_path.glob("runs/*/*/predictions.csv")).read_text().splitlines()
    assert header == "id,match_probability"
    assert rows
    assert all(0 <= float(row.split(",")[1]) <= 1 for row in rows)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_recipe_runs_a_step(
    trainer: str, tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *tiny_job, "-c", str(ROOT / "tasks/_trainer" / trainer), *ON_CPU, "--trainer.max_steps=1"]) == 0
    resolved = yaml.safe_load(next(tmp_path.glob("runs/**/config.yaml")).read_text())
    written = yaml.safe_load((ROOT / "tasks/_trainer" / trainer).read_text())["trainer"]
    plain = {name: value for name, value in written.items() if name in ("precision", "log_every_n_steps")}
    assert plain.items() <= resolved["trainer"].items()


def test_8_gpu_recipe_says_what_its_name_says() -> None:
    trainer = yaml.safe_load((ROOT / "tasks/_trainer/ddp8_bf16.yaml").read_text())["trainer"]
    assert (trainer["accelerator"], trainer["devices"], trainer["strategy"]) == ("gpu", 8, "ddp")
    assert trainer["precision"] == "bf16-mixed"
