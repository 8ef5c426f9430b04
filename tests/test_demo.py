"""Tests of the demo, with a budget of seconds."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medvill_pl import MedViLL
from medvill_pl.cli import main
from medvill_pl.demo import DEFAULT, FULL, Budget, Clock, best_possible, make_data, run
from medvill_pl.demo.plain import log_likelihood
from medvill_pl.demo.training import FilmFeatures
from medvill_pl.evaluation.results import Results
from medvill_pl.models.image_encoder import ImageEncoder, make_cnn

TASKS = ("classification", "retrieval", "vqa", "generation")
SMALL = Budget(
    num_cnn=16,
    num_train=64,
    num_test=40,
    num_retrieved=20,
    image_encoder_steps=2,
    pretraining=1,
    classification=1,
    retrieval=1,
    vqa=1,
    generation=1,
)


@pytest.mark.slow
def test_demo_writes_a_page_the_results_and_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "demo", budget=SMALL)
    html = (tmp_path / "demo/report.html").read_text(encoding="utf-8")
    for told in (
        "plain ResNet-18",
        "at best",
        "label frequencies",
        "chance",
        "a black image",
        "the best constant report",
    ):
        assert told in html
    for heading in ("Pre-training", "Findings, from the image alone", "Retrieval", "Questions", "Reports"):
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<svg") == 2
    assert html.count('class="card"') == 4 + 3 + 2 + 4 + 4
    assert html.count('class="result ') == 2 * 2 * 4
    assert ">nan<" not in html
    numbers = re.findall(r"\d+\.\d{3}", capsys.readouterr().out[-1000:].split("findings, image only")[1])
    assert len(numbers) == 3 + 4 + 4 + 6
    for task in TASKS:
        results = Results.read(tmp_path / "demo" / task / "test.parquet")
        told_scores = results.config["scores"]
        for name, value in results.scores().items():
            assert told_scores[f"test/{name}"] == pytest.approx(value, rel=1e-5)  # logged in float32
    backbone = MedViLL.from_pretrained(tmp_path / "demo/backbone")
    assert backbone.trained_on == [{"name": "synthetic v1", "pairs": 64, "credentialed": False}]
    image = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    assert backbone.encode_image(image).shape == (1, 16, 96)


def test_demo_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file/demo")]) == 1
    assert capsys.readouterr().err == f"medvill demo: Not a directory: {tmp_path}/file/demo\n"


@pytest.mark.parametrize(("options", "budget"), [([], DEFAULT), (["--full"], FULL)])
def test_full_demo_gets_the_larger_budget(
    options: list[str], budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    monkeypatch.setattr("medvill_pl.demo.run", lambda *arguments: runs.append(arguments))
    assert main(["demo", "--output", str(tmp_path), "--seed", "3", *options]) == 0
    assert runs == [(tmp_path, 3, budget)]
    for size in ("num_cnn", "num_train", "num_retrieved", "image_encoder_steps"):
        assert getattr(FULL, size) > getattr(DEFAULT, size)
    for stage in ("pretraining", *TASKS):
        assert FULL.num_train * getattr(FULL, stage) > DEFAULT.num_train * getattr(DEFAULT, stage)


def test_best_possible_is_the_grammars_own() -> None:
    data = make_data(SMALL, seed=0)
    best = best_possible(data)["generation"]
    assert 1.2 < best["perplexity"] < 1.6
    assert best["clinical_f1"] > 0.85


def test_features_of_known_image_are_computed_once_and_shared_by_copies() -> None:
    torch.manual_seed(0)
    trunk = ImageEncoder(make_cnn("resnet_tiny")).eval()
    images = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = trunk(images)
    features = FilmFeatures(trunk, images[:2])
    calls = []
    trunk.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    known = copy.deepcopy(features)(images[[1, 0, 1]])
    assert calls == []
    torch.testing.assert_close(known, expected[[1, 0, 1]], rtol=0.05, atol=0.05)
    torch.testing.assert_close(features(images[[2, 1]]), expected[[2, 1]], rtol=0.05, atol=0.05)
    assert calls == [2]
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not nn.Sequential(features).train()[0].image_encoder.training


def test_likelihood_of_findings_takes_them_as_independent() -> None:
    probability = np.array([[0.9, 0.2]], dtype=np.float32)
    sets = np.array([[True, False], [False, True]])
    expected = np.log([[0.9 * 0.8, 0.1 * 0.2]])
    np.testing.assert_allclose(log_likelihood(probability, sets), expected, rtol=1e-5)


def test_clock_times_each_part() -> None:
    clock = Clock()
    clock.stop("one")
    clock.stop("two")
    assert list(clock.seconds) == ["one", "two"]
    assert all(seconds >= 0 for seconds in clock.seconds.values())
