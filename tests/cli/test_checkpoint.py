"""Tests of ``--ckpt_path best``, ``last`` and ``last-or-new``: jobs that go on, and what is tested."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medvill_pl.cli import main
from medvill_pl.evaluation.results import Results

RUN = Path("runs/pretraining-synthetic/version_0")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medvill_pl.tasks.result_table.inference_time", lambda *args: {})


def epochs(run: Path = RUN) -> list[int]:
    """The epochs that were validated, as the run's figures tell."""
    with open(run / "metrics.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"]]


def runs() -> list[str]:
    return sorted(path.name for path in RUN.parent.iterdir())


@pytest.mark.parametrize("word", ["best", "last"])
def test_trained_weights_are_tested_beside_their_checkpoint(
    word: str, tiny_job: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny_job]) == 0
    assert main(["test", *tiny_job, f"--ckpt_path={word}"]) == 0
    assert f"--ckpt_path {word}: {RUN}/checkpoints/{word}.ckpt" in capfd.readouterr().out
    assert Results.read(RUN / "test.parquet").config["checkpoint"] == f"{RUN}/checkpoints/{word}.ckpt"
    assert runs() == ["version_0"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize("word", ["best", "last", "last-or-new"])
def test_nothing_is_tested_where_nothing_was_trained(
    verb: str, word: str, tiny_job: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *tiny_job, f"--ckpt_path={word}"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    expected = "is for fit" if word == "last-or-new" else f"no run in runs/pretraining-synthetic has a {word}.ckpt"
    assert expected in last
    assert not list(tmp_path.iterdir())


def test_run_goes_on_in_its_folder(tiny_job: list[str]) -> None:
    assert main(["fit", *tiny_job]) == 0
    assert main(["fit", *tiny_job, "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
    assert runs() == ["version_0"]
    assert epochs() == [0, 1, 2]
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    names = sorted(path.name for path in RUN.iterdir())
    assert names == ["checkpoints", "config-1.yaml", "config.yaml", "hparams.yaml", "metrics.csv"]
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_run_from_a_file_has_a_folder_of_its_own(tiny_job: list[str]) -> None:
    assert main(["fit", *tiny_job]) == 0
    before = (RUN / "checkpoints/last.ckpt").read_bytes()
    assert main(["fit", *tiny_job, f"--ckpt_path={RUN}/checkpoints/last.ckpt", "--trainer.max_epochs=2"]) == 0
    assert runs() == ["version_0", "version_1"]
    assert epochs(RUN.with_name("version_1")) == [1]
    assert (RUN / "checkpoints/last.ckpt").read_bytes() == before


def test_same_command_starts_goes_on_and_ends(tiny_job: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    job = ["fit", *tiny_job, "--ckpt_path=last-or-new", "--trainer.logger.init_args.version=job-17"]
    run = RUN.with_name("job-17")
    run.mkdir(parents=True)  # an earlier start was killed before it saved anything
    (run / "config.yaml").touch()
    assert main(job) == 0
    assert "no run in runs/pretraining-synthetic to go on with: a new one starts" in capfd.readouterr().out
    for _ in range(2):
        assert main([*job, "--trainer.max_epochs=2"]) == 0  # the second time there is nothing left to do
    assert runs() == ["job-17"]
    assert epochs(run) == [0, 1]


def test_checkpoint_that_does_not_fit_leaves_the_run_as_it_was(
    tiny_job: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny_job]) == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file() and path.name != "hparams.yaml"}
    wider = "--model.init_args.backbone.hidden_size=16"
    for verb in ("fit", "test", "predict"):
        assert main([verb, *tiny_job, wider, "--ckpt_path=last"]) == 1
        assert "hidden_size is 8 there and 16 here" in capfd.readouterr().err.splitlines()[-1]
    after = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file() and path.name != "hparams.yaml"}
    assert after == before
    assert runs() == ["version_0"]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_job_that_is_stopped_and_restarted_with_the_same_command_goes_on(
    sign: signal.Signals, tiny_job: list[str], tmp_path: Path
) -> None:
    steps = ["--trainer.max_epochs=400", "--trainer.limit_val_batches=0", "--data.init_args.num_train=64"]
    words = ["fit", *tiny_job, *steps, "--ckpt_path=last-or-new"]
    words += ["--trainer.callbacks.init_args.last_every_n_steps=1"]
    command = [sys.executable, "-c", "import sys; from medvill_pl.cli import main; sys.exit(main())", *words]
    last = RUN / "checkpoints/last.ckpt"
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not last.exists():
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sign)
    code = process.wait(timeout=60)
    assert code == (128 + sign if sign == signal.SIGTERM else -sign), (tmp_path / "log.txt").read_text()
    saved = torch.load(last, weights_only=True)
    done = subprocess.run(
        [*command, "--trainer.max_epochs", str(saved["epoch"] + 1)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert f"--ckpt_path last: {last}" in done.stdout.replace("last-or-new", "last")
    assert runs() == ["version_0"]
    assert torch.load(last, weights_only=True)["global_step"] == (saved["epoch"] + 1) * 16 > saved["global_step"] > 0


def test_table_lands_elsewhere_where_the_run_cannot_be_written_to(
    tiny_job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *tiny_job]) == 0
    monkeypatch.setattr("medvill_pl.runs._is_writable", lambda folder: False)
    assert main(["predict", *tiny_job, "--ckpt_path=last", "--trainer.default_root_dir=here"]) == 0
    assert Path("here/predictions.csv").is_file()
