"""What all tests share: no network, no caches of the machine, tiny models, generated data."""

import atexit
import csv
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CACHE = tempfile.mkdtemp(prefix="medvill-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{_CACHE}/hf",
    "HF_DATASETS_CACHE": f"{_CACHE}/datasets",
    "TORCH_HOME": f"{_CACHE}/torch",
    "MPLCONFIGDIR": f"{_CACHE}/matplotlib",
    "WANDB_MODE": "offline",
    "WANDB_CACHE_DIR": f"{_CACHE}/wandb",
    "WANDB_CONFIG_DIR": f"{_CACHE}/wandb",
    "WANDB_SILENT": "true",
    "OMP_NUM_THREADS": "1",
}
for _name in ("MEDVILL_TRACEBACK", "WORLD_SIZE", "LOCAL_RANK", "RANK"):
    os.environ.pop(_name, None)

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from medvill_pl import MedViLL
from medvill_pl.models.medvill import BackboneConfig

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sockets connect to this machine only."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests must not use the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def shared_data() -> Path:
    """Folder with real data, which the project does not carry."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def tiny() -> BackboneConfig:
    """Arguments of a backbone that a test can afford: 16 visual tokens, 32 wide."""
    return {
        "image_encoder": "resnet_tiny",
        "image_size": 64,
        "tokenizer": "synthetic",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "max_tokens": 120,
    }


@pytest.fixture
def backbone(tiny: BackboneConfig) -> MedViLL:
    """A tiny backbone in evaluation mode, with weights that follow from a seed."""
    torch.manual_seed(0)
    return MedViLL(**tiny).eval()


@pytest.fixture
def recipes() -> Path:
    """Folder of the recipes."""
    return ROOT / "tasks"


@pytest.fixture
def tiny_model() -> list[str]:
    """Options that shrink the backbone of any recipe to what a test can afford."""
    sizes = {
        "image_encoder": "resnet_tiny",
        "image_encoder_weights": "none",
        "image_size": "32",
        "tokenizer": "synthetic",
        "max_tokens": "40",
        "hidden_size": "8",
        "num_layers": "1",
        "num_heads": "1",
        "intermediate_size": "8",
        "channels_last": "false",
    }
    return [f"--model.init_args.backbone.{name}={value}" for name, value in sizes.items()]


@pytest.fixture
def tiny_data() -> list[str]:
    """Options that fit the data of any recipe to :func:`tiny_model`."""
    values = {"batch_size": "4", "num_workers": "0"}
    return [f"--data.init_args.{name}={value}" for name, value in values.items()]


@pytest.fixture
def tiny_job(recipes: Path, tiny_model: list[str], tiny_data: list[str]) -> list[str]:
    """The embedded corpus' recipe with a few pairs, for one epoch of two steps."""
    pairs = ["--data.init_args.num_train=8", "--data.init_args.num_val=4", "--data.init_args.num_test=4"]
    trainer = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    return ["-c", str(recipes / "pretraining/synthetic.yaml"), *tiny_model, *tiny_data, *pairs, *trainer]


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Make a silent trainer for one batch; arguments change it."""

    def make(**arguments: Any) -> Trainer:
        defaults = {
            "accelerator": "cpu",
            "max_steps": 1,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(defaults | arguments))

    return make


MakePairs = Callable[..., Path]


@pytest.fixture
def make_pairs(tmp_path: Path) -> MakePairs:
    """Write a table of image-report pairs with small images and return its path.

    ``make_pairs(12)`` gives 12 good rows with columns image, report, patient and two findings;
    ``rows`` adds further ones, as mappings.
    """

    def make(num_rows: int = 12, rows: tuple[dict[str, str], ...] = (), name: str = "pairs") -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        rng = np.random.default_rng(0)
        table = []
        for number in range(num_rows):
            pixels = rng.integers(0, 256, (40 + number, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            has_edema = number % 2
            report = (
                f"{'Mild' if has_edema else 'No'} pulmonary edema. {'The heart is enlarged. ' * (number % 3)}".strip()
            )
            table.append(
                {
                    "image": f"images/{number}.png",
                    "report": report,
                    "patient": f"p{number // 2}",
                    "Edema": str(has_edema),
                    "Cardiomegaly": "1" if number % 3 else "",
                }
            )
        path = folder / "pairs.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["image", "report", "patient", "Edema", "Cardiomegaly"])
            writer.writeheader()
            writer.writerows([*table, *rows])
        return path

    return make
