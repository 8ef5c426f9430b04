"""A killed run, resumed from its last checkpoint, ends bitwise where a run that was never interrupted ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytestmark = pytest.mark.slow

# Runs as a program of its own, once a rank: Lightning's launcher starts it again for rank 1.
SCRIPT = '''
import json, os, signal, sys
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from medvill_pl import AtomicCheckpointIO, PretrainingTask, SyntheticDataModule

torch.set_num_threads(1)
options = json.loads(sys.argv[1])
BACKBONE = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
            "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_tokens": 120, "dropout": 0.1}


class Diary(Callback):
    """Notes which pairs each batch had, and kills its process where it is told to."""

    def __init__(self):
        self.batches = []

    def visit(self, hook, trainer):
        if [hook, trainer.global_step] == options["kill"] and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.visit("train_batch_start", trainer)
        self.batches.append([trainer.current_epoch, batch_idx, *batch["id"]])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.visit("train_batch_end", trainer)  # before the checkpoint of this step is written

    def on_validation_start(self, trainer, module):
        self.visit("validation_start", trainer)


diary = Diary()
torch.manual_seed(options["initial_seed"])
task = PretrainingTask(backbone=BACKBONE, num_visual_samples=9, lr=1e-2, warmup_steps=3, **options["task"])
data = SyntheticDataModule(image_size=64, num_val=4, batch_size=4, num_workers=0, negatives="labels", **options["data"])
trainer = Trainer(
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=options["folder"],
    callbacks=[diary, ModelCheckpoint(options["folder"], save_last=True, **options["checkpoint"])],
    plugins=[AtomicCheckpointIO()],
    **options["trainer"],
)
trainer.fit(task, datamodule=data, ckpt_path=options["ckpt_path"])
end = {
    "weights": task.state_dict(),
    "parameters": [name for name, _ in task.named_parameters()],
    "optimizer": trainer.optimizers[0].state_dict(),
    "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
    "step": trainer.global_step,
    "batches": diary.batches,
    "metrics": {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
}
torch.save(end, os.path.join(options["folder"], f"end-{trainer.global_rank}.pt"))
'''

ONE_PROCESS = {"devices": 1, "max_epochs": 2}
TWO_PROCESSES = {"devices": 2, "strategy": "ddp", "max_epochs": 2}


class Setup(NamedTuple):
    """A run of about eight optimizer steps."""

    task: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]


SETUPS = {
    "plain": Setup({"mask_strategy": "bar"}, {"num_train": 16}, ONE_PROCESS),
    # Five batches an epoch: the last optimizer step of an epoch has one batch only.
    "accumulating": Setup(
        {"mask_strategy": "bi_seq2seq"},
        {"num_train": 20, "bucket_batches": 2},
        ONE_PROCESS | {"max_epochs": 3, "accumulate_grad_batches": 2},
    ),
    "validating within epochs": Setup(
        {"mask_strategy": "non_crossing"}, {"num_train": 16}, ONE_PROCESS | {"val_check_interval": 2}
    ),
    "two processes": Setup({"mask_strategy": "bar"}, {"num_train": 32}, TWO_PROCESSES),
    "two processes accumulating": Setup(
        {"mask_strategy": "bi_seq2seq"},
        {"num_train": 40},
        TWO_PROCESSES | {"max_epochs": 3, "accumulate_grad_batches": 2},
    ),
}
EVERY_STEP = {"every_n_train_steps": 1}
EVERY_THIRD_STEP = {"every_n_train_steps": 3}
EVERY_EPOCH = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
AFTER_VALIDATION = {"every_n_epochs": 1, "save_on_train_epoch_end": False}


def run_script(
    setup: Setup,
    folder: Path,
    checkpoint: dict[str, Any] | None = None,
    kill: tuple[str, int] | None = None,
    ckpt_path: Path | None = None,
) -> int:
    """Run a setup in processes of its own, kill what is left of them, and return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    options = {
        **setup._asdict(),
        "folder": str(folder),
        "checkpoint": checkpoint or EVERY_EPOCH,
        "kill": kill,
        "ckpt_path": ckpt_path and str(ckpt_path),
        "initial_seed": 0 if ckpt_path is None else 1,  # all that matters must come from the checkpoint
    }
    with open(folder / "output.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            start_new_session=True,
        )
        try:
            return process.wait(timeout=240)
        finally:
            # A killed rank 0 can leave rank 1 behind, waiting for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ends(setup: Setup, folder: Path) -> list[dict[str, Any]]:
    """What each rank ended with."""
    return [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in range(setup.trainer["devices"])]


def run_to_end(setup: Setup, folder: Path, ckpt_path: Path | None = None) -> list[dict[str, Any]]:
    status = run_script(setup, folder, ckpt_path=ckpt_path)
    assert status == 0, (folder / "output.txt").read_text()
    return ends(setup, folder)


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Compare nested values, tensors bit by bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{number}")
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """What each rank of a setup ends with if nothing happens; each setup is run once."""
    known: dict[str, list[dict[str, Any]]] = {}

    def get(name: str) -> list[dict[str, Any]]:
        if name not in known:
            known[name] = run_to_end(SETUPS[name], tmp_path_factory.mktemp("uninterrupted"))
        return known[name]

    return get


@pytest.mark.parametrize(
    ("name", "checkpoint", "kill", "saved_step"),
    [
        pytest.param("plain", EVERY_STEP, ("train_batch_start", 3), 3, id="mid-epoch"),
        pytest.param("plain", EVERY_STEP, ("validation_start", 4), 4, id="in the validation at an epoch's end"),
        pytest.param("plain", EVERY_THIRD_STEP, ("train_batch_end", 6), 3, id="three steps are lost"),
        pytest.param("plain", EVERY_EPOCH, ("train_batch_end", 6), 4, id="checkpoint of an epoch's end"),
        pytest.param("accumulating", EVERY_STEP, ("train_batch_end", 6), 5, id="accumulating, odd batch of an epoch"),
        pytest.param(
            "validating within epochs", AFTER_VALIDATION, ("train_batch_end", 3), 2, id="checkpoint of a validation"
        ),
        pytest.param("two processes", EVERY_STEP, ("train_batch_start", 3), 3, id="two processes, mid-epoch"),
        pytest.param("two processes", EVERY_STEP, ("train_batch_start", 4), 4, id="two processes, end of an epoch"),
        pytest.param(
            "two processes accumulating",
            EVERY_THIRD_STEP,
            ("train_batch_start", 5),
            3,
            id="two processes, accumulating",
        ),
    ],
)
def test_killed_and_resumed_run_ends_bitwise_like_one_never_interrupted(
    name: str,
    checkpoint: dict[str, Any],
    kill: tuple[str, int],
    saved_step: int,
    uninterrupted: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    setup = SETUPS[name]
    status = run_script(setup, tmp_path, checkpoint, kill)
    assert status == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved_step

    resumed = run_to_end(setup, tmp_path / "resumed", ckpt_path=last)

    for rank, (end, expected) in enumerate(zip(resumed, uninterrupted(name), strict=True)):
        # It goes on where it was killed: no batch is seen twice, none is left out.
        seen, planned = end.pop("batches"), list(expected["batches"])
        assert 0 < len(seen) < len(planned)
        assert seen == planned[len(planned) - len(seen) :]
        assert_same(end, {key: value for key, value in expected.items() if key != "batches"}, f"rank {rank}")


@pytest.mark.parametrize("name", ["two processes", "two processes accumulating"])
def test_two_processes_end_with_the_same_weights_and_log_the_same_metrics(
    name: str, uninterrupted: Callable[[str], list[dict[str, Any]]]
) -> None:
    first, second = uninterrupted(name)
    assert first["batches"] != second["batches"]
    for parameter in first["parameters"]:  # BatchNorm's statistics are each rank's own between two steps
        assert_same(first["weights"][parameter], second["weights"][parameter], parameter)
    assert_same(first["optimizer"], second["optimizer"])
    assert first["metrics"]
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("name", ["plain", "accumulating"])
def test_uninterrupted_run_takes_the_planned_steps_and_moves_all_weights(
    name: str, uninterrupted: Callable[[str], list[dict[str, Any]]]
) -> None:
    (end,) = uninterrupted(name)
    assert end["step"] == {"plain": 2 * 4, "accumulating": 3 * 3}[name]
    assert all(moments["exp_avg"].abs().sum() > 0 for moments in end["optimizer"]["state"].values())
