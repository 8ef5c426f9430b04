"""Features of images that are kept, so that a frozen image encoder computes those of each image once."""

import hashlib
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Precision(NamedTuple):
    """What features are computed in: the dtype of the weights and, under autocast, its own.

    Attributes:
        weights: dtype of the weights.
        autocast: dtype of autocast; None where it is off.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     str(Precision.now(torch.zeros(1)))
        'torch.float32 under autocast to torch.bfloat16'
    """

    weights: torch.dtype
    autocast: torch.dtype | None

    @classmethod
    def now(cls, weight: Tensor) -> "Precision":
        """The precision in which a module with this weight would compute."""
        kind = weight.device.type
        return cls(weight.dtype, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)

    def __str__(self) -> str:
        return str(self.weights) + (f" under autocast to {self.autocast}" if self.autocast else "")


class FeatureCache:
    """Feature maps by a digest of the pixels that they were computed from.

    Copies share the features, since a deep copy of the cache is the cache itself; pickle writes each feature once.

    Args:
        precision: what the features are computed in.

    Example:
        >>> cache = FeatureCache(Precision.now(torch.zeros(1)))
        >>> images = torch.tensor([[[[0, 1]]], [[[2, 3]]]], dtype=torch.uint8)
        >>> cache.add(images, features=torch.tensor([[[[0.5]]], [[[2.5]]]]))
        >>> cache.look_up(images[1:])
        tensor([[[[2.5000]]]])
        >>> cache.look_up(images.flip(3)) is None
        True
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self._batches: list[Tensor] = []
        self._positions: dict[bytes, tuple[int, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self._positions)

    def add(self, images: Tensor, features: Tensor) -> None:
        """Keep the features, shape ``(B, c, h, w)``, of images, shape ``(B, 1, H, W)``."""
        self._positions |= {digest: (len(self._batches), row) for row, digest in enumerate(_digests(images))}
        self._batches.append(features)

    def is_missing(self, images: Tensor) -> Tensor:
        """True for each image whose features are not kept, bool, shape ``(B,)``, on the CPU."""
        return torch.tensor([digest not in self._positions for digest in _digests(images)], dtype=torch.bool)

    def look_up(self, images: Tensor) -> Tensor | None:
        """Features of images, on their device, shape ``(B, c, h, w)``; None unless those of all are kept."""
        positions = [self._positions.get(digest) for digest in _digests(images)]
        known = [position for position in positions if position is not None]
        if len(known) < len(positions) or not known:
            return None
        features = torch.stack([self._batches[batch][row] for batch, row in known])
        # In the memory format of the convolutions, so that what is computed from them is equal bit by bit too.
        if self._batches[0].is_contiguous(memory_format=torch.channels_last):
            features = features.contiguous(memory_format=torch.channels_last)
        return features.to(images.device)


def _digests(images: Tensor) -> list[bytes]:
    """Digests of the pixels, dtype and shape of each image."""
    kind = f"{images.dtype} {tuple(images.shape[1:])}".encode()
    pixels = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [hashlib.blake2b(kind + image.tobytes(), digest_size=16).digest() for image in pixels]
