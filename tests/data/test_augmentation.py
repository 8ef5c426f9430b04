"""Small changes to training images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medvill_pl import PairsDataModule, SyntheticDataModule
from medvill_pl.data.augmentation import augment


@pytest.fixture(scope="module")
def radiograph() -> torch.Tensor:
    return SyntheticDataModule(num_train=4, num_val=4, num_test=4, image_size=96).examples("train").image(0)


def test_changes_follow_from_the_seed_alone(radiograph: torch.Tensor) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(radiograph, 7)
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(augment(radiograph, 7), first)
    assert (first.dtype, first.shape) == (torch.uint8, radiograph.shape)
    assert not torch.equal(augment(radiograph, 8), first)
    assert not torch.equal(first, radiograph)


def test_images_are_changed_a_little_and_never_mirrored(radiograph: torch.Tensor) -> None:
    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one.float() - other.float()).abs().mean())

    ramp = torch.arange(96).mul(2).to(torch.uint8).expand(1, 96, 96).contiguous()  # black to white from left to right
    inside = slice(24, 72)
    for seed in range(40):
        changed = augment(ramp, seed)[..., inside, inside]
        assert distance(changed, ramp[..., inside, inside]) < 35
        assert changed[..., -8:].float().mean() > changed[..., :8].float().mean() + 50  # still to the right
    assert len({augment(radiograph, seed).numpy().tobytes() for seed in range(40)}) == 40


def make_data(table: Path, **options: Any) -> PairsDataModule:
    data = PairsDataModule(
        str(table),
        patient_column="patient",
        val_fraction=0.3,
        tokenizer="synthetic",
        image_size=32,
        batch_size=4,
        num_workers=0,
        **options,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def test_training_images_change_from_epoch_to_epoch_and_are_the_same_again(make_pairs: Any) -> None:
    data, plain = (make_data(make_pairs(name=str(on)), augment=on) for on in (True, False))
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append(
            {name: image for batch in loader for name, image in zip(batch["id"], batch["image"], strict=True)}
        )
    assert epochs[0].keys() == epochs[2].keys()
    for name, image in epochs[0].items():
        torch.testing.assert_close(epochs[2][name], image)
        assert name not in epochs[1] or not torch.equal(epochs[1][name], image)
    for ours, theirs in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        torch.testing.assert_close(ours["image"], theirs["image"])


def test_switching_it_on_does_not_prepare_the_corpus_anew(make_pairs: Any) -> None:
    table = make_pairs()
    assert make_data(table, augment=True).corpus == make_data(table).corpus
    assert make_data(table, cut_margins=False).corpus != make_data(table).corpus


def test_the_embedded_corpus_can_be_augmented() -> None:
    arguments: dict[str, Any] = {"num_train": 8, "num_val": 4, "num_test": 4, "image_size": 32, "batch_size": 4}
    changed, plain = (SyntheticDataModule(**arguments, augment=on) for on in (True, False))
    for data in (changed, plain):
        data.setup("fit")
    first, other = (next(iter(data.train_dataloader())) for data in (changed, plain))
    assert first["id"] == other["id"]
    assert not torch.equal(first["image"], other["image"])
    first, other = (next(iter(data.val_dataloader())) for data in (changed, plain))
    torch.testing.assert_close(first["image"], other["image"])
