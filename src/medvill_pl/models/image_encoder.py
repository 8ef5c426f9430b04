"""From a radiograph to visual tokens: CNN trunk, location and semantic embedding (MedViLL, Sec. III-B.1)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

ImageEncoderName = Literal["resnet50", "resnet101", "densenet121", "resnet18", "resnet_small", "resnet_tiny"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SMALL_CHANNELS = {"resnet_small": (16, 32, 48, 96, 192), "resnet_tiny": (4, 8, 12, 16)}


def make_cnn(name: ImageEncoderName | str) -> nn.Module:
    """Build a CNN with its classifier's names as torchvision has them, with random weights.

    ``resnet_small`` (for films of 128 pixels) and ``resnet_tiny`` (for tests) are residual networks
    of stride 32 and 16; the others are torchvision's, of stride 32.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in get_args(ImageEncoderName):
        raise ValueError(f"unknown trunk {name!r}: choose one of {', '.join(get_args(ImageEncoderName))}")
    if name in _SMALL_CHANNELS:
        return SmallResNet(_SMALL_CHANNELS[name])
    cnn: nn.Module = models.get_model(name, weights=None)
    return cnn


class SmallResNet(nn.Module):
    """A residual network: a strided stem and strided stages of one basic block.

    Args:
        channels: width of the stem and of each stage.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        stem = nn.Conv2d(3, channels[0], kernel_size=5, stride=2, padding=2, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(_strided_block(*pair) for pair in pairwise(channels))
        self.norm = nn.BatchNorm2d(channels[-1])  # centred features, so that tokens differ from the first step on


def _strided_block(channels_in: int, channels_out: int) -> BasicBlock:
    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(channels_out)
    )
    return BasicBlock(channels_in, channels_out, stride=2, downsample=shortcut)


def _stages_of(cnn: nn.Module) -> list[nn.Module]:
    """Cut a CNN before its pooling into a stem and the stages that follow."""
    if isinstance(cnn, models.ResNet):
        return [
            nn.Sequential(cnn.conv1, cnn.bn1, cnn.relu, cnn.maxpool),
            cnn.layer1,
            cnn.layer2,
            cnn.layer3,
            cnn.layer4,
        ]
    if isinstance(cnn, SmallResNet):
        return [cnn.stem, *cnn.blocks[:-1], nn.Sequential(cnn.blocks[-1], cnn.norm)]
    assert isinstance(cnn, models.DenseNet)
    f = cnn.features
    return [
        nn.Sequential(f.conv0, f.norm0, f.relu0, f.pool0),
        nn.Sequential(f.denseblock1, f.transition1),
        nn.Sequential(f.denseblock2, f.transition2),
        nn.Sequential(f.denseblock3, f.transition3),
        nn.Sequential(f.denseblock4, f.norm5, nn.ReLU(inplace=True)),
    ]


class ImageEncoder(nn.Module):
    """A CNN up to its last feature map, over grey images.

    Args:
        cnn: what :func:`make_cnn` built, with or without pre-trained weights.
        frozen_stages: how many stages, the stem first, are not trained. Their BatchNorm layers
            stay in evaluation mode.

    Attributes:
        channels: width c of the last feature map.
        stride: pixels a side of the image for each place of the feature map.

    Raises:
        ValueError: if there are fewer stages than ``frozen_stages``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cnn: nn.Module, frozen_stages: int = 0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stages_of(cnn))
        if not 0 <= frozen_stages <= len(self.stages):
            raise ValueError(
                f"freeze_image_encoder_stages must be 0 to {len(self.stages)} for this trunk, not {frozen_stages}"
            )
        self.frozen_stages = frozen_stages
        for stage in self._frozen():
            stage.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD)[:, None, None], persistent=False)
        self.channels, self.stride = self._measure()

    def _frozen(self) -> Iterator[nn.Module]:
        return iter(list(self.stages)[: self.frozen_stages])

    @torch.no_grad()
    def _measure(self) -> tuple[int, int]:
        is_training, size = self.training, 64
        features = self.eval()(torch.zeros(1, 1, size, size))
        self.train(is_training)
        return features.shape[1], size // features.shape[2]

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but for the frozen stages."""
        super().train(mode)
        for stage in self._frozen():
            stage.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute the last feature map.

        Args:
            images: grey pixels, uint8 in 0..255 or floating point in 0..1, shape ``(B, 1, H, W)``.

        Returns:
            Features, shape ``(B, channels, H / stride, W / stride)``.
        """
        white = 255 if images.dtype == torch.uint8 else 1
        # One grey channel becomes the three that the CNN expects.
        features = (images.to(self.mean.dtype) / white - self.mean) / self.std
        for stage in self.stages:
            features = stage(features)
        return features


class VisualEmbedding(nn.Module):
    """Add location and semantics to CNN features and project them (MedViLL, Eq. 1-3).

    Args:
        channels: width c of the features.
        num_positions: places K of the full feature map.
        hidden_size: width d of the visual tokens.
    """

    def __init__(self, channels: int, num_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.empty(num_positions, channels))
        self.semantic = nn.Parameter(torch.empty(channels))
        self.projection = nn.Linear(channels, hidden_size)

    def forward(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Embed all places of the feature map, or the sampled ones.

        Args:
            features: last feature map of the trunk, shape ``(B, c, h, w)`` with ``h * w = K``.
            places: the places to keep, int64, shape ``(B, k)``; None keeps all.

        Returns:
            Visual tokens, shape ``(B, k, d)`` or ``(B, K, d)``.
        """
        features = features.flatten(2).transpose(1, 2)
        location: Tensor = self.location
        if places is not None:
            features = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[2]))
            location = location[places]
        tokens: Tensor = self.projection(features + location + self.semantic)
        return tokens


def sample_positions(batch_size: int, num_positions: int, num_sampled: int, device: torch.device) -> Tensor:
    """Draw the places of the feature map that one training step sees (MedViLL, Sec. III-B.1).

    Each sample has a draw of its own, without replacement, in the order of the map.

    Returns:
        Places, int64, shape ``(batch_size, num_sampled)``.
    """
    order = torch.rand(batch_size, num_positions, device=device).argsort(dim=1)
    return order[:, :num_sampled].sort(dim=1).values
