"""Tests of run folders: one per run, however many start at once, and found again."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from medvill_pl import RunLogger
from medvill_pl.runs import folder_of_run


def take(folder: Path) -> str:
    return RunLogger(folder, "wide").log_dir


def write_checkpoint(folder: Path, age: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_runs_that_start_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        folders = list(pool.map(take, [tmp_path] * 24))
    assert len(set(folders)) == 24
    assert sorted(path.name for path in (tmp_path / "wide").iterdir()) == sorted(f"version_{n}" for n in range(24))


def test_number_is_taken_once(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "wide")
    assert (logger.version, logger.version) == (0, 0)
    assert not list(tmp_path.rglob("version_1"))


def test_other_processes_take_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert RunLogger(tmp_path, "wide").version == 0
    assert not list(tmp_path.iterdir())


def test_refused_run_gives_its_number_back(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "runs", "wide")
    logger.log_hyperparams({"lr": 1})
    logger.finalize("failed")
    logger.release()
    assert not list(tmp_path.iterdir())
    assert RunLogger(tmp_path / "runs", "wide").version == 0


def test_run_that_wrote_something_keeps_its_folder(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "wide")
    Path(logger.log_dir, "config.yaml").touch()
    logger.release()
    assert Path(logger.log_dir, "config.yaml").exists()


def test_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wide/mine").mkdir(parents=True)
    assert RunLogger(tmp_path, "wide", "mine").log_dir == str(tmp_path / "wide/mine")  # empty
    (tmp_path / "wide/mine/config.yaml").touch()
    with pytest.raises(FileExistsError, match="wide/mine has a run already"):
        _ = RunLogger(tmp_path, "wide", "mine").log_dir


def test_checkpoint_of_the_newest_run_is_found(tmp_path: Path) -> None:
    assert RunLogger(tmp_path, "wide").find_checkpoint("last") is None
    write_checkpoint(tmp_path / "wide/version_2", age=300)
    newest = write_checkpoint(tmp_path / "wide/version_10", age=100)
    named = write_checkpoint(tmp_path / "wide/mine", age=200)
    write_checkpoint(tmp_path / "narrow/version_0", age=0)
    (tmp_path / "wide/version_11").mkdir()  # started, and nothing saved yet
    assert RunLogger(tmp_path, "wide").find_checkpoint("last") == newest
    assert RunLogger(tmp_path, "wide", "mine").find_checkpoint("last") == named
    assert RunLogger(tmp_path, "wide", 11).find_checkpoint("last") is None
    assert RunLogger(tmp_path, "wide").find_checkpoint("best") is None


def test_run_that_goes_on_keeps_its_earlier_figures(tmp_path: Path) -> None:
    first = RunLogger(tmp_path, "wide")
    first.log_metrics({"loss": 2.0, "auroc": 0.5}, step=1)
    first.save()
    second = RunLogger(tmp_path, "wide")
    second.go_on(Path(first.log_dir))
    second.log_metrics({"loss": 1.0, "f1": 0.25}, step=2)
    second.save()
    second.log_metrics({"loss": 0.5}, step=3)
    second.save()
    lines = (Path(first.log_dir) / "metrics.csv").read_text().splitlines()
    assert lines == ["auroc,f1,loss,step", "0.5,,2.0,1", ",0.25,1.0,2", ",,0.5,3"]
    second.release()
    assert Path(first.log_dir).is_dir()  # it has a run, whatever becomes of its second part


def test_folder_of_a_checkpoint() -> None:
    assert folder_of_run(Path("runs/a/version_3/checkpoints/last.ckpt")) == Path("runs/a/version_3")
    assert folder_of_run("a.ckpt") == Path(".")
