"""From a radiograph to visual tokens: CNN, location and semantic embedding (MedViLL, Sec. III-B.1)."""

import warnings
from itertools import pairwise
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from medvill_pl.models.feature_cache import FeatureCache, Precision
from medvill_pl.models.modes import evaluating

ImageEncoderName = Literal["resnet50", "resnet101", "densenet121", "resnet18", "resnet_small", "resnet_tiny"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SMALL_CHANNELS = {"resnet_small": (16, 32, 48, 96, 192), "resnet_tiny": (4, 8, 12, 16)}


def make_cnn(name: ImageEncoderName | str) -> nn.Module:
    """Build a CNN with its classifier's names as torchvision has them, with random weights.

    ``resnet_small`` (for images of 128 x 128 pixels) and ``resnet_tiny`` (for tests) are residual networks
    of stride 32 and 16; the others are torchvision's, of stride 32.

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> make_cnn("resnet18").fc.in_features
        512
    """
    if name not in get_args(ImageEncoderName):
        raise ValueError(f"unknown image encoder {name!r}: choose one of {', '.join(get_args(ImageEncoderName))}")
    if name in _SMALL_CHANNELS:
        return SmallResNet(_SMALL_CHANNELS[name])
    cnn: nn.Module = models.get_model(name, weights=None)
    return cnn


class SmallResNet(nn.Module):
    """A residual network: a strided stem and strided stages of one basic block.

    Args:
        channels: width of the stem and of each stage.

    Example:
        >>> len(SmallResNet((4, 8, 12)).blocks)
        2
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
    """Divide a CNN before its pooling into a stem and the stages that follow."""
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

    A stage none of whose parameters requires a gradient is frozen, whoever froze it: its BatchNorm layers stay in
    evaluation mode when :meth:`train` is called.

    Args:
        cnn: what :func:`make_cnn` built, with or without pre-trained weights.
        frozen_stages: how many stages, the stem first, are not trained.

    Attributes:
        channels: width c of the last feature map.
        stride: pixels per side of the image for each position of the feature map.

    Raises:
        ValueError: if there are fewer stages than ``frozen_stages``.

    Example:
        >>> image_encoder = ImageEncoder(make_cnn("resnet_tiny"), frozen_stages=1)
        >>> image_encoder(torch.zeros(2, 1, 64, 96, dtype=torch.uint8)).shape
        torch.Size([2, 16, 4, 6])
        >>> [stage.training for stage in image_encoder.train().stages]
        [False, True, True, True]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cnn: nn.Module, frozen_stages: int = 0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stages_of(cnn))
        if not 0 <= frozen_stages <= len(self.stages):
            raise ValueError(
                f"freeze_image_encoder_stages must be 0 to {len(self.stages)} for this image encoder, "
                f"not {frozen_stages}"
            )
        for stage in self.stages[:frozen_stages]:
            stage.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD)[:, None, None], persistent=False)
        self._cache: FeatureCache | None = None
        self.register_load_state_dict_pre_hook(_forget_features_of_others)  # type: ignore[no-untyped-call]
        self.channels, self.stride = self._measure()
        self.train()

    @torch.no_grad()
    def _measure(self) -> tuple[int, int]:
        size = 64
        with evaluating(self):
            features = self(torch.zeros(1, 1, size, size))
        return features.shape[1], size // features.shape[2]

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but for frozen stages, which stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages:
            if not _is_trained(stage):
                stage.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute the last feature map, or take it from what :meth:`cache_features` kept.

        Args:
            images: grey pixels, uint8 in 0..255 or floating point in 0..1, shape ``(B, 1, H, W)``. The range of
                floating point is checked on the CPU only, so that no device has to be waited for.

        Returns:
            Features, shape ``(B, channels, H / stride, W / stride)``.

        Raises:
            ValueError: if the pixels are of another dtype, or (on the CPU) outside 0..1.
        """
        _check_pixels(images)
        if self._cache is not None:
            features: Tensor | None = self._cached_features(images)
            if features is not None:
                return features
        return self._compute(images)

    def _compute(self, images: Tensor) -> Tensor:
        white = 255 if images.dtype == torch.uint8 else 1
        # One grey channel becomes the three that the CNN expects.
        features = (images.to(self.mean.dtype) / white - self.mean) / self.std
        for stage in self.stages:
            features = stage(features)
        result: Tensor = features
        return result

    def cache_features(self, images: Tensor, batch_size: int = 64) -> None:
        """Compute the features of images once and keep them: :meth:`forward` gives them from then on.

        It gives what it would compute anew, bit by bit where the CNN gives an image the same features in any batch.
        Images are known by their pixels: others, augmented ones among them, are computed as ever, and so is a batch
        with any of them. So is everything while the encoder is trainable, some stage is in training mode, the images
        want gradients, or in another precision than now (under another autocast), of which a warning tells.
        Weights that are loaded later and differ make it forget the features; a change by hand it does not notice.

        Features lie where the encoder lies now, take ``channels * H * W / stride ** 2`` numbers per image (2 MiB in
        float32 with the paper's sizes, 12 KiB with ``resnet_small`` at 128 pixels), and are shared by deep copies.
        They are in no state dict and in no saved folder. To look an image up costs a digest of its pixels (some
        20 us for 128 x 128) and, where the images lie on a GPU, a wait for it.

        Args:
            images: as :meth:`forward` takes them; those of earlier calls are kept too.
            batch_size: how many go through the CNN at a time.

        Raises:
            ValueError: if the encoder is trainable, or the images are no batch.

        Example:
            >>> image_encoder = ImageEncoder(make_cnn("resnet_tiny")).requires_grad_(False).eval()
            >>> images = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
            >>> anew = image_encoder(images)
            >>> image_encoder.cache_features(images)
            >>> torch.equal(image_encoder(images), anew)
            True
        """
        if _is_trained(self):
            raise ValueError(
                "the image encoder is trainable, so its features change with every step: freeze all its stages first "
                "(freeze_image_encoder_stages, or requires_grad_(False))"
            )
        if images.ndim != 4:
            raise ValueError(f"images must be of shape (B, 1, H, W), not {tuple(images.shape)}")
        _check_pixels(images)
        weight = next(self.parameters())
        precision = Precision.now(weight)
        if self._cache is None or self._cache.precision != precision:
            self._cache = FeatureCache(precision)
        with evaluating(self), torch.inference_mode(False), torch.no_grad():  # else no gradient could pass by them
            for part in torch.split(images, batch_size):
                missing = part[self._cache.is_missing(part).to(part.device)]
                if len(missing):
                    self._cache.add(missing, self._compute(missing.to(weight.device)))

    @property
    def num_cached(self) -> int:
        """How many images have their features kept."""
        return 0 if self._cache is None else len(self._cache)

    def clear_features(self) -> None:
        """Forget the features that :meth:`cache_features` kept."""
        self._cache = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _cached_features(self, images: Tensor) -> Tensor | None:
        assert self._cache is not None
        if images.requires_grad or _is_trained(self) or any(stage.training for stage in self.stages):
            return None
        precision = Precision.now(next(self.parameters()))
        if precision != self._cache.precision:
            warnings.warn(
                f"image features were cached in {self._cache.precision} and are needed in {precision}, so they are "
                "computed anew: call cache_features under the same autocast",
                stacklevel=2,
            )
            return None
        return self._cache.look_up(images)


def lay_out(images: Tensor, size: int, is_channels_last: bool) -> Tensor:
    """Lay images out in memory as an image encoder wants them.

    Args:
        images: shape ``(B, 1, size, size)``.
        size: side of the images, in pixels.
        is_channels_last: whether the encoder runs in the channels-last memory format.

    Raises:
        ValueError: if the images have another shape.

    Example:
        >>> lay_out(torch.zeros(1, 3, 64, 64), size=64, is_channels_last=False)
        Traceback (most recent call last):
        ValueError: images must be of shape (B, 1, 64, 64), not (1, 3, 64, 64)
    """
    if images.ndim != 4 or images.shape[1:] != (1, size, size):
        raise ValueError(f"images must be of shape (B, 1, {size}, {size}), not {tuple(images.shape)}")
    return images.contiguous(memory_format=torch.channels_last) if is_channels_last else images


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _check_pixels(images: Tensor) -> None:
    """Refuse pixels of unknown range, where this needs no wait for a device."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or floating point in 0..1, not {images.dtype}")
    if images.dtype == torch.uint8 or images.device.type != "cpu" or torch.compiler.is_compiling() or not len(images):
        return
    darkest, brightest = images.detach().aminmax()
    if not (darkest >= 0 and brightest <= 1):  # so that NaN is refused too
        raise ValueError(
            f"images of floating point must be in 0..1, not {darkest.item():.4g}..{brightest.item():.4g}: divide by "
            "their white, or give uint8 in 0..255"
        )


def _forget_features_of_others(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before weights are loaded, forget the features that were computed from others."""
    assert isinstance(module, ImageEncoder)
    if module.num_cached == 0:
        return
    own = module.state_dict()
    given = {name: state.get(prefix + name, tensor) for name, tensor in own.items()}
    if not all(torch.equal(given[name].to(tensor), tensor) for name, tensor in own.items()):
        module.clear_features()


class VisualEmbedding(nn.Module):
    """Add location and semantics to CNN features and project them (MedViLL, Eq. 1-3).

    Args:
        channels: width c of the features.
        num_positions: positions K of the full feature map.
        hidden_size: width d of the visual tokens.

    Example:
        >>> embedding = VisualEmbedding(channels=16, num_positions=12, hidden_size=8)
        >>> features = torch.randn(2, 16, 3, 4)
        >>> embedding(features).shape, embedding(features, torch.tensor([[0, 5], [3, 11]])).shape
        (torch.Size([2, 12, 8]), torch.Size([2, 2, 8]))
    """

    def __init__(self, channels: int, num_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.empty(num_positions, channels))
        self.semantic = nn.Parameter(torch.empty(channels))
        self.projection = nn.Linear(channels, hidden_size)

    def forward(self, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed all positions of the feature map, or the sampled ones.

        Args:
            features: last feature map of the image encoder, shape ``(B, c, h, w)`` with ``h * w = K``.
            positions: those to keep, int64, shape ``(B, k)``; None keeps all.

        Returns:
            Visual tokens, shape ``(B, k, d)`` or ``(B, K, d)``.
        """
        features = features.flatten(2).transpose(1, 2)
        location: Tensor = self.location
        if positions is not None:
            features = features.gather(1, positions[:, :, None].expand(-1, -1, features.shape[2]))
            location = location[positions]
        tokens: Tensor = self.projection(features + location + self.semantic)
        return tokens


def sample_positions(batch_size: int, num_positions: int, num_sampled: int, device: torch.device) -> Tensor:
    """Draw the positions of the feature map that one training step sees (MedViLL, Sec. III-B.1).

    Each sample has a draw of its own, without replacement, in the order of the map.

    Returns:
        Positions, int64, shape ``(batch_size, num_sampled)``.

    Example:
        >>> positions = sample_positions(2, num_positions=16, num_sampled=5, device=torch.device("cpu"))
        >>> positions.shape, bool((positions.diff(dim=1) > 0).all())
        (torch.Size([2, 5]), True)
    """
    order = torch.rand(batch_size, num_positions, device=device).argsort(dim=1)
    return order[:, :num_sampled].sort(dim=1).values
