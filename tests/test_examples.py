"""Tests that every example runs, with a budget of seconds."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvill_pl import MedViLL
from medvill_pl.cli import main
from medvill_pl.evaluation.results import Results

ROOT = Path(__file__).parents[1]
MakePairs = Callable[..., Path]


def run_example(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run an example as a script and return what it printed."""
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in (ROOT / "examples").glob("*.py"))


def test_use_backbone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example("use_backbone.py", [], monkeypatch, capsys)
    assert "pooled (1, 32), visual (1, 64, 32)" in printed
    assert "of its attention in the last layer to the image" in printed


@pytest.mark.slow
def test_compare_masks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example("compare_masks.py", ["--pairs", "32", "--epochs", "1"], monkeypatch, capsys)
    for strategy in ("bidirectional", "seq2seq", "bar", "non_crossing", "bi_seq2seq"):
        assert f"{strategy} {{" in printed
    assert "val/mlm_loss_seq2seq" in printed


@pytest.mark.slow
def test_pretrain_pairs(
    make_pairs: MakePairs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(make_pairs(30)), "--patient-column", "patient", "--epochs", "1"]
    printed = run_example("pretrain_pairs.py", options, monkeypatch, capsys)
    assert "MLM validation loss" in printed
    assert next(Path("runs/pairs").rglob("best.ckpt")).is_file()


@pytest.mark.slow
def test_full_size_steps(
    make_pairs: MakePairs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(make_pairs(12)), "--patient-column", "patient", "--tokenizer", "synthetic", "--num-layers", "1"]
    printed = run_example("full_size_steps.py", [*options, "--steps", "1", "--batch-size", "2"], monkeypatch, capsys)
    assert "step 1: 2 pairs of" in printed
    assert "GiB" in printed


SMALL_RUN = ["--data.init_args.num_train=32", "--data.init_args.num_val=8", "--data.init_args.num_test=8"]
SMALL_RUN += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def test_own_module_trains_and_its_checkpoint_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run_example("own_module.py", ["--pairs", "32", "--epochs", "1"], monkeypatch, capsys)
    assert "AUROC of an enlarged heart: 0." in printed
    example = runpy.run_path(str(ROOT / "examples/own_module.py"))
    model = example["HeartModel"].load_from_checkpoint("runs/heart.ckpt")
    assert model.backbone.hparams["hidden_size"] == 32
    model.backbone.save_pretrained("backbone")
    options = ["--backbone", "backbone", "--pairs", "32", "--epochs", "1"]
    assert "AUROC" in run_example("own_module.py", options, monkeypatch, capsys)


@pytest.mark.slow
def test_own_task_by_import(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example("own_task.py", ["32"], monkeypatch, capsys)
    assert "test/mae" in printed
    assert len(Results.read(Path("runs/own-task/test.parquet")).rows) == 200


def test_own_task_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library knows nothing of the task, and yet fits, tests and predicts it, and makes its tables again."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # as if it were run from there
    words = ["-c", str(ROOT / "examples/own_task.yaml"), *SMALL_RUN]
    assert main(["fit", *words]) == 0
    checkpoint = f"--ckpt_path={next(tmp_path.rglob('best.ckpt'))}"
    assert main(["test", *words, checkpoint]) == 0
    results = Results.read(next(tmp_path.rglob("test.parquet")))
    errors = [abs(row["prediction"] - row["count"]) for row in results.rows]
    assert results.config["scores"]["test/mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert main(["predict", *words, checkpoint]) == 0
    assert next(tmp_path.rglob("predictions.csv")).read_text().startswith("id,count\n")


@pytest.mark.slow
def test_own_task_is_found_from_the_folder_it_lies_in(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": ""}
    command = [str(Path(sys.executable).parent / "medvill"), "fit", "-c", "examples/own_task.yaml", *SMALL_RUN]
    command += [f"--trainer.logger.init_args.save_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("best.ckpt"))


def test_own_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    message = r"32 pairs, MLM loss \d\.\d\d"
    first = re.findall(message, run_example("own_data.py", [], monkeypatch, capsys))
    assert len(first) == 1
    again = run_example("own_data.py", ["runs/text-files"], monkeypatch, capsys)  # reads what is there
    assert re.findall(message, again) == first


def test_attention_map(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    MedViLL(
        image_encoder="resnet_tiny",
        image_size=64,
        tokenizer="synthetic",
        hidden_size=32,
        num_layers=3,
        num_heads=2,
        intermediate_size=64,
    ).save_pretrained("backbone")
    Image.fromarray(np.full((80, 100), 90, dtype=np.uint8)).save("image.png")
    options = ["--backbone", "backbone", "--image", "image.png", "--text", "No pneumothorax."]
    printed = run_example("attention_map.py", options, monkeypatch, capsys)
    maps = np.load("attention.npy")
    assert maps.shape == (4, 3, 2, 4, 4)  # CLS and three words, layers, heads, rows, columns
    assert "attention.npy: (4, 3, 2, 4, 4)" in printed
    shares = maps.sum((-2, -1))
    assert ((shares > 0) & (shares < 1)).all()
    with Image.open("attention.png") as picture:
        assert np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=2).max() > 50  # it has colour
    with pytest.raises(SystemExit):
        run_example("attention_map.py", [*options[:4]], monkeypatch, capsys)


def test_compare_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    for name, noise in (("good", 0.6), ("bad", 3.0)):
        scores = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, noise, 80))))
        rows = [
            {"id": str(i), "probability": [p], "label": [float(y)]}
            for i, (p, y) in enumerate(zip(scores, labels, strict=True))
        ]
        config = {"task": "T", "data": {"name": "D"}, "device": "cpu", "ms_per_example": {"1": 2.0}}
        score_fn = "medvill_pl.evaluation.classification.classification_scores"
        Results(rows, {"findings": ["Edema"]}, score_fn, config).write(Path(name, "test.parquet"))
    options = ["good/test.parquet", "bad/test.parquet", "--metrics", "auroc_micro"]
    printed = run_example("compare_results.py", options, monkeypatch, capsys)
    first, second = [line.split() for line in printed.splitlines() if line.startswith("auroc_micro")]
    assert (first[1], second[1], len(first), len(second)) == ("good", "bad", 7, 9)  # no p-values for the first
    value, mean, deviation, low, high, p_t_test, p_paired = map(float, second[2:])
    assert float(first[2]) > value
    assert low < mean < high
    assert deviation > 0
    assert p_t_test < 0.05
    assert p_paired < 0.05
    assert "cpu: ms per example 2.0 at batch 1" in printed
