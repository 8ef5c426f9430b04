"""Each task in two processes: it trains, and its test gives the figures of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medvill_pl.cli import main
from medvill_pl.evaluation.results import Results

ROOT = Path(__file__).parents[2]
# Two jobs, one after the other, in processes that torchrun starts.
SCRIPT = """
import json, sys
from medvill_pl.cli import main

fit, test = json.loads(sys.argv[1])
sys.exit(main(fit) or main(test))
"""
# An odd number of examples, cut into batches of 3 in each process.
OF_TASK = {
    "classification": (["num_test=7"], []),
    "retrieval": (["num_test=7"], ["num_candidates=5", "full_gallery=true"]),
    "vqa": (["num_test=5", "corpus_seed=1"], ["lr=0.1"]),  # five images, 41 questions
    "generation": (["num_test=7"], ["decoding={max_new_tokens: 5}"]),
}


def assert_close(one: Any, other: Any, place: str = "") -> None:
    """Compare nested values, numbers to 1e-5, or to what float32 holds where they are large."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_close(one[name], other[name], f"{place}/{name}")
    elif isinstance(one, float):
        assert other == pytest.approx(one, abs=1e-5, rel=1e-6, nan_ok=True), place
    elif isinstance(one, Sequence) and not isinstance(one, str):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, f"{place}/{number}")
    else:
        assert one == other, place


@pytest.mark.slow
@pytest.mark.parametrize("task", OF_TASK)
def test_two_processes_train_and_test_as_one_does(
    task: str,
    recipes: Path,
    tiny_model: list[str],
    tiny_data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_data, of_model = OF_TASK[task]
    sizes = ["num_train=12", "num_val=6", "batch_size=3", *of_data]
    words = ["-c", str(recipes / task / "synthetic.yaml"), *tiny_model, *tiny_data, "--trainer.accelerator=cpu"]
    words += [f"--data.init_args.{size}" for size in sizes] + [f"--model.init_args.{option}" for option in of_model]
    words += ["--trainer.callbacks+=medvill_pl.ResultTable", "--trainer.callbacks.init_args.time_inference=false"]
    words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    checkpoint = f"--ckpt_path=runs/{task}-synthetic/version_0/checkpoints/last.ckpt"
    jobs = [["fit", *words], ["test", *words, checkpoint]]
    (tmp_path / "jobs.py").write_text(SCRIPT)
    launch = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "jobs.py", json.dumps(jobs)],
        cwd=tmp_path,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    monkeypatch.chdir(tmp_path)
    assert main(["test", *words, checkpoint, "--trainer.devices=1"]) == 0
    folder = tmp_path / f"runs/{task}-synthetic/version_0"  # where the checkpoint lies
    of_two, of_one = (Results.read(folder / name) for name in ("test.parquet", "test-1.parquet"))
    assert len({row["id"] for row in of_one.rows}) % 2 == 1
    assert_close([dict(row) for row in of_one.rows], [dict(row) for row in of_two.rows])
    assert_close(of_one.context, of_two.context)
    assert_close(of_one.config["scores"], of_two.config["scores"])
    assert of_one.config["scores"]
