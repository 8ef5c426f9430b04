"""Small changes to training images: their pose and their exposure."""

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
    """Rotate an image by up to 5 degrees, shift it by up to 5 % of its side, scale it, change brightness and contrast.

    Images are never mirrored: reports name sides, and the heart has one. What moves in from outside is black.

    Args:
        image: uint8, shape ``(1, H, W)``.
        seed: what the changes follow from; torch's own random state is left as it was.

    Returns:
        uint8, shape ``(1, H, W)``.

    Example:
        >>> image = torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8)
        >>> torch.equal(augment(image, seed=1), augment(image, seed=1))
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "augment"))
        changed: Tensor = _CHANGES(image)
    return changed
