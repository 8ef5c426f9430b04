"""Predicting on a folder of images, some of which are broken."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from medvill_pl import FINDINGS, ClassificationTask, FolderDataModule, SyntheticDataModule
from medvill_pl.cli import main

MakeTrainer = Callable[..., Trainer]


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """Three images, one of them in a subfolder, three that are broken, and a text."""
    folder = tmp_path / "radiographs"
    (folder / "ward").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.JPG", "ward/c.png")):
        Image.fromarray(pixels_of(number)).save(folder / name, format="JPEG" if name == "a.JPG" else "PNG")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is no image")
    (folder / "ward/cut.png").write_bytes((folder / "ward/c.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image by its name")
    return folder


def make_data(radiographs: Path, text: str = "", batch_size: int = 2) -> FolderDataModule:
    return FolderDataModule(str(radiographs), text, "synthetic", image_size=32, batch_size=batch_size, num_workers=0)


def test_good_images_are_batched_and_broken_ones_listed(radiographs: Path) -> None:
    data = make_data(radiographs)
    with pytest.warns(UserWarning, match="3 of 6 images cannot be read; the others are predicted on"):
        data.setup("predict")
    batches = list(data.predict_dataloader())
    images = {name: image for batch in batches for name, image in zip(batch["id"], batch["image"], strict=True)}
    assert sorted(images) == ["a.JPG", "b.png", "ward/c.png"]
    assert {row["id"] for row in data.rejected} == {"empty.png", "text.png", "ward/cut.png"}
    for row in data.rejected:
        assert row["image"] == str(radiographs / row["id"])
        assert "not a readable image" in row["reason"]
    expected = np.asarray(Image.fromarray(pixels_of(0)).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=3.0))
    assert torch.equal(images["b.png"][0], torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("text", ["", "is there edema?"])
def test_the_same_text_goes_with_every_image(text: str, radiographs: Path) -> None:
    data = make_data(radiographs, text, batch_size=8)
    assert data.has_questions == bool(text)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["report"] == [text] * 3
    assert (batch["input_ids"] == batch["input_ids"][0]).all()
    assert batch["labels"].isnan().all()


def test_one_image_is_enough(radiographs: Path) -> None:
    data = make_data(radiographs / "b.png")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["id"] == ["b.png"]


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no images \(\.png, \.jpg"):
        make_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder or image"):
        make_data(tmp_path / "missing")


def test_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        make_data(tmp_path).setup("predict")


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_folder_is_to_predict_on(stage: str, radiographs: Path) -> None:
    with pytest.raises(ValueError, match="a folder of images is to predict on"):
        make_data(radiographs).setup(stage)


def test_predict_lists_broken_images_and_does_the_rest(
    radiographs: Path,
    tiny_model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_trainer: MakeTrainer,
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = dict(option.removeprefix("--model.init_args.backbone.").split("=") for option in tiny_model)
    kinds = {name: int(value) if value.isdigit() else value for name, value in backbone.items()}
    task, trainer = ClassificationTask(kinds | {"channels_last": False}, use_report=False), make_trainer()
    trainer.fit(task, datamodule=SyntheticDataModule(4, 4, 4, image_size=32, max_tokens=40, batch_size=4))
    trainer.save_checkpoint(tmp_path / "task.ckpt")

    words = ["predict", "--model=medvill_pl.ClassificationTask", "--model.init_args.use_report=false", *tiny_model]
    words += [
        "--data=medvill_pl.FolderDataModule",
        f"--data.init_args.images={radiographs}",
        "--trainer.accelerator=cpu",
    ]
    words += [f"--data.init_args.{option}" for option in ("tokenizer=synthetic", "image_size=32", "num_workers=0")]
    words += ["--data.init_args.max_tokens=40", f"--ckpt_path={tmp_path / 'task.ckpt'}"]
    words += ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.init_args.save_dir=runs"]
    assert main(words) == 0

    (table,) = tmp_path.rglob("predictions.csv")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a.JPG", "b.png", "ward/c.png"]
    assert list(rows[0]) == ["id", *FINDINGS]
    examples = make_data(radiographs).examples("test")
    task.eval()
    for row in rows:
        image = examples.image(examples.ids.index(row["id"]))[None]
        nothing = torch.zeros(1, 0, dtype=torch.long)
        with torch.no_grad():
            output = task.backbone(images=image, input_ids=nothing, text_mask=nothing.bool())
            expected = task.head(output.pooled).sigmoid()[0].tolist()
        assert [float(row[finding]) for finding in FINDINGS] == pytest.approx(expected, abs=1e-5)
    lines = [json.loads(line) for line in table.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    with open(table.with_name("rejected.csv"), newline="") as file:
        rejected = list(csv.DictReader(file))
    assert {row["id"] for row in rejected} == {"empty.png", "text.png", "ward/cut.png"}
    assert all(row["reason"] for row in rejected)
