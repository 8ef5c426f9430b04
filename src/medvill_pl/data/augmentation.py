"""Small changes to training films: where they lie and how they are exposed."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from medvill_pl.batch import derive_seed

_CHANGES = v2.Compose(
    [
        v2.RandomAffine(5, translate=(0.05, 0.05), scale=(0.95, 1.05), interpolation=v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1, contrast=0.1),
    ]
)


def augment(image: Tensor, seed: int) -> Tensor:
    """Turn a film by up to 5 degrees, move it by 5 % of its side, scale it and change brightness and contrast.

    Films are never mirrored: reports name sides, and the heart has one. What is moved in from outside is black.

    Args:
        image: uint8, shape ``(1, H, W)``.
        seed: what the changes follow from; torch's own random state is left as it was.

    Returns:
        uint8, shape ``(1, H, W)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "augment"))
        changed: Tensor = _CHANGES(image)
    return changed
