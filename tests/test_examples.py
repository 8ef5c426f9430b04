"""Tests that every example runs, with a budget of seconds."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
