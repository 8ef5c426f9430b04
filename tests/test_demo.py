"""Tests of the demo, with a budget of seconds."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import medvill_pl
from medvill_pl import MedViLL, Results
from medvill_pl.cli import main
from medvill_pl.demo import DEFAULT, FULL, Budget, run
from medvill_pl.demo.figures import best_possible
from medvill_pl.demo.page import verdict
from medvill_pl.demo.page.tables import HEADLINES, Headline
from medvill_pl.demo.settings import make_data
from medvill_pl.demo.story import Clock
from medvill_pl.demo.workers import start_workers

TASKS = ("classification", "retrieval", "vqa", "generation")
SMALL = Budget(
    num_images=16,
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
    for name in (
        "image encoder&#x27;s own head",
        "at best",
        "label frequencies",
        "chance",
        "a black image",
        "the best constant report",
    ):
        assert name in html
    first = html.split("<p>")[1]
    assert "on the same 16 images in the same 2 steps" in first
    assert "is better in " in first
    for heading in ("Pre-training", "Findings, from the image alone", "Retrieval", "Questions", "Reports"):
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<svg") == 2
    assert html.count('class="card"') == 4 + 3 + 2 + 4 + 4
    assert html.count('class="result ') == 2 * 2 * 4
    assert ">nan<" not in html
    printed = capsys.readouterr().out
    for name in HEADLINES:
        line = re.search(rf"^{name} +(.*)$", printed, re.MULTILINE)
        assert line is not None
        assert len(re.findall(r"\d\.\d{3}", line[1])) == 3
    for task in TASKS:
        results = Results.read(tmp_path / "demo" / task / "test.parquet")
        logged = results.config["scores"]
        for name, value in results.scores().items():
            assert logged[f"test/{name}"] == pytest.approx(value, rel=1e-5)  # logged in float32
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
    for size in ("num_images", "num_train", "num_retrieved", "image_encoder_steps"):
        assert getattr(FULL, size) > getattr(DEFAULT, size)
    for stage in ("pretraining", *TASKS):
        assert FULL.num_train * getattr(FULL, stage) > DEFAULT.num_train * getattr(DEFAULT, stage)


def test_best_possible_is_the_grammars_own() -> None:
    data = make_data(SMALL, seed=0)
    best = best_possible(data)
    assert 1.2 < best["perplexity"] < 1.6
    assert best["clinical_f1"] > 0.85


def test_verdict_says_who_is_better_by_rounded_figures() -> None:
    both = [Headline("A", 0.5, 0.6, 0.1), Headline("B", 0.7, 0.6, 0.1), Headline("C", 0.80001, 0.80002, 0.1)]
    assert verdict(both) == "The rival is better in A (0.600 against 0.500), the model in B (0.700 against 0.600)."
    assert verdict(both[:1]) == "The rival is better in A (0.600 against 0.500)."
    assert verdict(both[1:]) == "The model is better in B (0.700 against 0.600)."
    assert verdict(both[2:]) == "Neither is better in any figure."


def test_clock_times_each_part() -> None:
    clock = Clock()
    clock.stop("one")
    clock.stop("two")
    assert list(clock.seconds) == ["one", "two"]
    assert all(seconds >= 0 for seconds in clock.seconds.values())


def test_demo_takes_only_public_names_and_starts_no_loop_of_its_own() -> None:
    for path in (Path(medvill_pl.__file__).parent / "demo").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"import .*\b_[a-z]|\.backward\(|optimizer\.step|medvill_pl\.cli", source), path


def fail_beside_a_running_job(workers: list[int]) -> None:
    with start_workers(2) as pool:
        workers.append(pool.submit(os.getpid).result())
        pool.submit(time.sleep, 600)
        raise RuntimeError("the demo failed")


@pytest.mark.slow
def test_workers_end_with_a_block_that_fails() -> None:
    workers: list[int] = []
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the demo failed"):
        fail_beside_a_running_job(workers)
    assert not Path(f"/proc/{workers[0]}").exists()
    assert time.monotonic() - start < 300


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from medvill_pl.demo.workers import start_workers\n"
        "if __name__ == '__main__':\n"
        "    with start_workers(1) as pool:\n"
        "        print(pool.submit(__import__('os').getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600).result()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
