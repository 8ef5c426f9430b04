"""AtomicCheckpointIO: whatever goes wrong while a checkpoint is written, the earlier one stays whole."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medvill_pl import AtomicCheckpointIO

OLD = {"weights": torch.arange(6.0).view(2, 3), "step": 3, "names": ["a", "b"]}
LARGE = {"weights": torch.zeros(1 << 20)}  # 4 MiB

PREPARE = """
import io, os, resource, signal, sys
import torch
from medvill_pl import AtomicCheckpointIO

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def write_half_and_die(checkpoint, file):
    whole = io.BytesIO()
    save(checkpoint, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()

save, path, new = torch.save, sys.argv[1], {"weights": torch.zeros(1 << 20)}
"""
LIMIT_FILE_SIZE = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    AtomicCheckpointIO().save_checkpoint(new, path)
except OSError as error:
    sys.exit(str(error))
"""
SAVE = """
{function} = {deadly}
AtomicCheckpointIO().save_checkpoint(new, path)
"""


class Line(LightningModule):
    """The smallest module that a Trainer can fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Path of a checkpoint that lies in a folder of its own."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def assert_old_is_whole(path: Path, beside: int = 0) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded.keys() == OLD.keys()
    assert torch.equal(loaded["weights"], OLD["weights"])
    assert (loaded["step"], loaded["names"]) == (3, ["a", "b"])
    assert len(os.listdir(path.parent)) == 1 + beside


def assert_one_clear_line(message: str, path: Path) -> None:
    assert "\n" not in message
    assert f"the checkpoint {path} could not be written" in message


def run_program(source: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARE + source, str(path)], capture_output=True, text=True, timeout=120
    )


def fail_halfway(error: BaseException) -> Callable[[Any, io.BufferedWriter], None]:
    """A ``torch.save`` that writes half of the checkpoint and fails."""

    def save(checkpoint: Any, file: io.BufferedWriter) -> None:
        file.write(b"PK\x03\x04" + bytes(1000))
        file.flush()
        raise error

    return save


def test_checkpoint_comes_back_as_it_was_saved(old: Path) -> None:
    assert_old_is_whole(old)


def test_new_checkpoint_takes_the_place_of_the_old(old: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": 4}, old)
    assert AtomicCheckpointIO().load_checkpoint(old) == {"step": 4}
    assert os.listdir(old.parent) == [old.name]


def test_file_has_the_permissions_of_any_new_file(old: Path) -> None:
    plain = old.with_name("plain")
    plain.touch()
    assert old.stat().st_mode == plain.stat().st_mode


def test_removed_checkpoint_is_gone(old: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(old)
    assert os.listdir(old.parent) == []


def test_paths_with_a_protocol_go_to_the_store() -> None:
    path = "memory://medvill-checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    try:
        assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], OLD["weights"])
    finally:
        AtomicCheckpointIO().remove_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nException raised from valid"),
    ],
    ids=["of the system", "of torch, in two lines"],
)
def test_failing_write_is_one_line_and_leaves_the_old_checkpoint(
    error: Exception, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", fail_halfway(error))
    with pytest.raises(OSError, match="could not be written") as raised:
        AtomicCheckpointIO().save_checkpoint(LARGE, old)
    assert_one_clear_line(str(raised.value), old)
    assert str(error).split("\n")[0] in str(raised.value)
    assert_old_is_whole(old)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("cannot pickle 'generator' object")])
def test_other_errors_pass_unchanged_and_leave_the_old_checkpoint(
    error: BaseException, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", fail_halfway(error))
    with pytest.raises(type(error)) as raised:
        AtomicCheckpointIO().save_checkpoint(LARGE, old)
    assert raised.value is error
    assert_old_is_whole(old)


def test_what_cannot_be_pickled_leaves_the_old_checkpoint(old: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({**LARGE, "hook": lambda: None}, old)
    assert_old_is_whole(old)


def test_folder_that_cannot_be_made_is_one_line(old: Path) -> None:
    below_a_file = old / "last.ckpt"
    with pytest.raises(OSError, match="could not be written") as raised:
        AtomicCheckpointIO().save_checkpoint(LARGE, below_a_file)
    assert_one_clear_line(str(raised.value), below_a_file)
    assert_old_is_whole(old)


@pytest.mark.slow
def test_file_size_limit_is_one_line_and_leaves_the_old_checkpoint(old: Path) -> None:
    result = run_program(LIMIT_FILE_SIZE, old)
    assert result.returncode == 1
    message = result.stderr.strip()
    assert_one_clear_line(message, old)
    assert "File too large" in message
    assert_old_is_whole(old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mount -t tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_one_line_and_leaves_the_old_checkpoint(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    with pytest.raises(OSError, match="No space left on device") as raised:
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert_one_clear_line(str(raised.value), path)
    assert_old_is_whole(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "deadly"),
    [("torch.save", "write_half_and_die"), ("os.fsync", "die"), ("os.replace", "die")],
    ids=["half written", "before it is on the disk", "before it is renamed"],
)
def test_kill_while_saving_leaves_the_old_checkpoint(function: str, deadly: str, old: Path) -> None:
    result = run_program(SAVE.format(function=function, deadly=deadly), old)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert_old_is_whole(old, beside=1)
    # What the kill left behind is no obstacle, and nobody takes it for a checkpoint.
    assert list(old.parent.glob("*.ckpt")) == [old]
    AtomicCheckpointIO().save_checkpoint({"step": 4}, old)
    assert AtomicCheckpointIO().load_checkpoint(old) == {"step": 4}


def test_trainer_saves_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, folder = Line(), tmp_path / "checkpoints"
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_last=True)],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(module, DataLoader(torch.ones(4, 1), batch_size=2))
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step=4.ckpt"]
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["layer.weight"], module.layer.weight)

    monkeypatch.setattr(torch, "save", fail_halfway(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"last\.ckpt could not be written .*No space left"):
        trainer.save_checkpoint(folder / "last.ckpt")
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["layer.weight"], module.layer.weight)
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step=4.ckpt"]
