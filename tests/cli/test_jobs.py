"""Tests of jobs under launchers: the bridge, real processes, two nodes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from medvill_pl import SyntheticDataModule
from medvill_pl.cli import main
from medvill_pl.cli.launch import Launch

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MakeTrainer = Callable[..., Trainer]

# A callback beside the job: notes what each process is and a digest of its weights.
WITNESS = """
import hashlib, json
from pathlib import Path
from lightning.pytorch import Callback

class Witness(Callback):
    def on_train_end(self, trainer, pl_module):
        weights = b"".join(w.detach().numpy().tobytes() for w in pl_module.parameters())
        seen = {"world_size": trainer.world_size, "nodes": trainer.num_nodes, "folder": trainer.log_dir,
                "precision": trainer.precision, "digest": hashlib.sha256(weights).hexdigest()}
        Path(f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def job(tiny_job: list[str], tmp_path: Path) -> list[str]:
    """Words of a tiny job whose processes leave a note each."""
    (tmp_path / "witness.py").write_text(WITNESS)
    return ["fit", *tiny_job, "--trainer.callbacks+=witness.Witness"]


def witnesses(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fabric_run(*options: str) -> list[str]:
    return [str(BIN / "fabric"), "run", "--accelerator", "cpu", "--main-port", str(free_port()), *options]


# -- the bridge ----------------------------------------------------------------------------------

TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}
TORCHRUN |= {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def read_launch(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> Launch | None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Launch.read(os.environ)


def test_no_launcher_decides_nothing() -> None:
    assert Launch.read(os.environ) is None


def test_torchrun_decides_devices_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = read_launch(monkeypatch, TORCHRUN)
    assert launch == Launch("torchrun", 4, {"devices": 2, "num_nodes": 2})


def test_fabric_run_decides_accelerator_strategy_and_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"LT_CLI_USED": "1", "LT_DEVICES": "2", "LT_NUM_NODES": "2", "LT_ACCELERATOR": "cuda"}
    launch = read_launch(monkeypatch, TORCHRUN | chosen | {"LT_STRATEGY": "ddp", "LT_PRECISION": "bf16-mixed"})
    assert launch is not None
    assert launch.launcher == "fabric run"
    trainer = {"devices": 2, "num_nodes": 2, "accelerator": "cuda", "strategy": "ddp", "precision": "bf16-mixed"}
    assert launch.trainer == trainer
    launch = read_launch(monkeypatch, {"LT_DEVICES": "2,3"})
    assert launch is not None
    assert launch.trainer["devices"] == "2,3"  # these GPUs, not the first two


def test_slurm_decides_devices_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3"}
    assert read_launch(monkeypatch, slurm) == Launch("SLURM", 16, {"devices": 8, "num_nodes": 2})


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch("torchrun", 2, {}), "torchrun started 2 processes, but trainer.devices .* make 1"),
        (Launch("fabric run", 1, {"precision": "bf16"}), "given precision bf16, but trainer.precision is 32-true"),
    ],
)
def test_trainer_that_ignores_the_launcher_is_refused(launch: Launch, message: str, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=message):
        launch.check(make_trainer(devices=1))


def test_trainer_that_agrees_is_taken(make_trainer: MakeTrainer) -> None:
    Launch("fabric run", 1, {"precision": "32"}).check(make_trainer(devices=1))


# -- configuration of a run ----------------------------------------------------------------------


def test_two_runs_have_two_folders(tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *tiny_job]) == 0
    assert main(["fit", *tiny_job, "--model.init_args.lr=0.5"]) == 0
    folders = [tmp_path / "runs/pretraining-synthetic" / f"version_{number}" for number in (0, 1)]
    rates = [yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["lr"] for folder in folders]
    assert rates == [0.002, 0.5]
    logged = yaml.safe_load((folders[0] / "hparams.yaml").read_text())
    assert logged["config"]["data"]["init_args"]["num_train"] == 8


def test_folder_that_has_a_run_is_not_taken_by_another(
    tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    same_folder = "--trainer.logger.init_args.version=same"
    assert main(["fit", *tiny_job, same_folder]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["fit", *tiny_job, same_folder]) == 1
    assert "runs/pretraining-synthetic/same has a run already" in capfd.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_command_ends_with_the_paths_that_it_wrote(
    tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medvill_pl.tasks.result_table.inference_time", lambda *args: {})
    assert main(["fit", *tiny_job]) == 0
    run = Path("runs/pretraining-synthetic/version_0")
    names = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "hparams.yaml", "metrics.csv"]
    assert written(capsys) == [str(run / name) for name in names]
    for verb, names in {
        "validate": ["validate.yaml"],
        "test": ["test.json", "test.parquet", "test.yaml"],
        "predict": ["predict.yaml", "predictions.csv", "predictions.jsonl"],
    }.items():
        assert main([verb, *tiny_job, f"--ckpt_path={run}/checkpoints/best.ckpt"]) == 0
        assert written(capsys) == [str(run / name) for name in names]
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The paths that the last command named."""
    block = capsys.readouterr().out.split("written:\n")[1]
    return [line.strip() for line in block.splitlines()]


def test_written_configuration_runs_again(tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *tiny_job]) == 0
    (first,) = tmp_path.rglob("config.yaml")
    assert main(["fit", "-c", str(first)]) == 0
    losses = [path.read_text().splitlines()[-1] for path in sorted(tmp_path.rglob("metrics.csv"))]
    assert len(losses) == 2


def test_checkpoint_of_another_configuration_is_refused(
    tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *tiny_job]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    wider = ["--model.init_args.backbone.hidden_size=16", f"--ckpt_path={checkpoint}"]
    assert main(["test", *tiny_job, *wider]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "medvill test: the checkpoint is of another configuration: hidden_size is 8 there and 16 here"


@pytest.fixture
def search_job(recipes: Path, tiny_model: list[str], tiny_data: list[str]) -> list[str]:
    """Words of a search through a few pairs."""
    pairs = ["--data.init_args.num_test=4", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    query = ["--model.init_args.query_text=Small left effusion."]
    return ["predict", "-c", str(recipes / "retrieval/synthetic.yaml"), *tiny_model, *tiny_data, *pairs, *query]


def test_search_writes_its_table_and_its_page_side_by_side(
    search_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(search_job) == 0
    (table,) = tmp_path.glob("runs/*/version_0/predictions.csv")
    assert table.read_text().splitlines()[0] == "rank,id,match_probability,report"
    assert "Small left effusion." in table.with_name("search.html").read_text()
    elsewhere = tmp_path / "found" / "ranked.csv"
    writer = ["--trainer.callbacks=medvill_pl.PredictionTable"]
    assert main([*search_job, *writer, f"--trainer.callbacks.init_args.path={elsewhere}"]) == 0
    assert sorted(path.name for path in elsewhere.parent.iterdir()) == ["ranked.csv", "ranked.jsonl", "search.html"]
    assert not list(tmp_path.glob("runs/*/version_1/search.html"))


@pytest.mark.parametrize(("task", "monitor"), [("classification", "auroc_micro"), ("pretraining", "loss")])
def test_progress_bar_shows_the_figure_that_picks_the_checkpoint(
    task: str, monitor: str, recipes: Path, tiny_model: list[str], tiny_data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[str] = set()
    get_metrics = ProgressBar.get_metrics

    def spy(self: ProgressBar, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = get_metrics(self, trainer, module)
        shown.update(metrics)
        return metrics

    monkeypatch.setattr(ProgressBar, "get_metrics", spy)
    pairs = [f"--data.init_args.num_{split}=8" for split in ("train", "val")]
    options = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", *pairs]
    assert main(["fit", "-c", str(recipes / task / "synthetic.yaml"), *tiny_model, *tiny_data, *options]) == 0
    assert {name for name in shown if name.startswith("val/")} == {"val/loss", f"val/{monitor}"}


# -- real processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_fabric_run_trains_one_model_with_two_processes(job: list[str], tmp_path: Path) -> None:
    command = fabric_run("--devices", "2", "--strategy", "ddp", str(ROOT / "tasks/run.py"), "--", *job)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, second = witnesses(tmp_path)
    assert first["world_size"] == second["world_size"] == 2
    assert first == second  # weights and run folder are the same
    assert len(list(tmp_path.glob("runs/*/version_*"))) == 1
    assert len(list(tmp_path.rglob("config.yaml"))) == 1


@pytest.mark.slow
def test_predictions_of_two_processes_are_one_table(tiny_job: list[str], tmp_path: Path) -> None:
    command = fabric_run("--devices", "2", "--strategy", "ddp", str(ROOT / "tasks/run.py"), "--", "predict", *tiny_job)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.rglob("predictions.csv")
    examples = SyntheticDataModule(num_test=4).examples("test")
    assert [row.split(",")[0] for row in table.read_text().splitlines()] == ["id", *sorted(examples.ids)]


@pytest.mark.slow
def test_search_of_two_processes_is_one_page(search_job: list[str], tmp_path: Path) -> None:
    words = [str(ROOT / "tasks/run.py"), "--", *search_job]
    command = fabric_run("--devices", "2", "--strategy", "ddp", *words)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.rglob("search.html")
    assert [f"<strong>{rank}. test" in page.read_text() for rank in (1, 2, 3, 4, 5)] == [True] * 4 + [False]


@pytest.mark.slow
def test_devices_that_disagree_with_fabric_run_fail_loudly(job: list[str], tmp_path: Path) -> None:
    command = fabric_run("--devices", "2", str(ROOT / "tasks/run.py"), "--", *job, "--trainer.devices=1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "fabric run started 2 processes, but trainer.devices and trainer.num_nodes make 1" in done.stderr
    assert witnesses(tmp_path) == []


@pytest.mark.slow
def test_two_nodes_meet_at_torchruns_rendezvous(job: list[str], tmp_path: Path) -> None:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test"]
    recipe = ["-c", str(ROOT / "tasks/_trainer/multi_node.yaml"), "--trainer.accelerator=cpu"]
    words = [str(ROOT / "tasks/run.py"), *job, *recipe, "--trainer.precision=32-true"]
    nodes = [
        subprocess.Popen(
            [
                str(BIN / "torchrun"),
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
                "--node-rank",
                str(rank),
                *meeting,
                *words,
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], output
    first, second = witnesses(tmp_path)
    assert (first["world_size"], first["nodes"]) == (2, 2)
    assert first == second
