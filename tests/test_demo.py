"""Tests of the demo, with a budget of seconds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medvill_pl import MedViLL
from medvill_pl.cli import main
from medvill_pl.demo import Budget, overlay, run


@pytest.mark.slow
def test_demo_writes_a_page_and_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "demo", budget=Budget(num_train=96, num_test=32, trunk_steps=4, epochs=2))
    html = (tmp_path / "demo/report.html").read_text(encoding="utf-8")
    for told in (
        "MLM: perplexity of hidden words",
        "IRM: accuracy",
        "chance",
        "word frequencies alone",
        "Hidden words",
    ):
        assert told in html
    assert html.count("<svg") == 1
    assert html.count('class="card"') >= 4
    assert not math.isnan(float(capsys.readouterr().out.split("MLM perplexity ")[1].split()[0]))
    backbone = MedViLL.from_pretrained(tmp_path / "demo/backbone")
    assert backbone.trained_on == [{"name": "synthetic v1", "pairs": 96, "credentialed": False}]


def test_demo_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file/demo")]) == 1
    assert capsys.readouterr().err == f"medvill demo: Not a directory: {tmp_path}/file/demo\n"


def test_overlay_is_brightest_where_attention_is() -> None:
    film = np.full((64, 64), 100, dtype=np.uint8)
    attention = torch.zeros(16)
    attention[5] = 0.3  # second row, second column
    colour = overlay(film, attention)
    assert colour.shape == (64, 64, 3)
    changed = np.abs(colour.astype(int) - 100).sum(axis=2)
    assert np.unravel_index(changed.argmax(), changed.shape) == pytest.approx((24, 24), abs=6)
    assert changed[48:, 48:].max() == 0
