"""Tests of the CNN image encoders, the visual embedding and pixel sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms.functional import normalize

from medvill_pl.models.image_encoder import ImageEncoder, VisualEmbedding, make_cnn, sample_positions

CPU = torch.device("cpu")


def encoder_and_cnn(name: str) -> tuple[ImageEncoder, nn.Module]:
    torch.manual_seed(0)
    cnn = make_cnn(name)
    return ImageEncoder(cnn).eval(), cnn.eval()


def grey_images(size: int = 64) -> Tensor:
    return torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_imagenet(images: Tensor) -> Tensor:
    """What torchvision's own weights expect: three channels, normalised as their transforms say."""
    published = ResNet50_Weights.IMAGENET1K_V2.transforms()
    return normalize(images.repeat(1, 3, 1, 1) / 255, published.mean, published.std)


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("resnet50", 32, 2048),
        ("resnet101", 32, 2048),
        ("densenet121", 32, 1024),
        ("resnet18", 32, 512),
        ("resnet_small", 32, 192),
        ("resnet_tiny", 16, 16),
    ],
)
def test_stride_and_channels_of_an_image_encoder(name: str, stride: int, channels: int) -> None:
    with torch.device("meta"):  # shapes without the arithmetic
        encoder = ImageEncoder(make_cnn(name))
        features = encoder(torch.empty(3, 1, 128, 192))
    assert (encoder.stride, encoder.channels) == (stride, channels)
    assert features.shape == (3, channels, 128 // stride, 192 // stride)


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_resnet_features_are_torchvisions_before_its_pooling(name: str) -> None:
    encoder, cnn = encoder_and_cnn(name)
    images = grey_images()
    with torch.no_grad():
        expected = as_imagenet(images)
        for child in list(cnn.children())[:-2]:  # all but the pooling and the classifier
            expected = child(expected)
        torch.testing.assert_close(encoder(images), expected)


def test_densenet_features_are_torchvisions_before_its_pooling() -> None:
    encoder, cnn = encoder_and_cnn("densenet121")
    images = grey_images()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), cnn.features(as_imagenet(images)).relu())


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18"])
def test_bytes_and_unit_floats_are_the_same_picture(name: str) -> None:
    encoder, _ = encoder_and_cnn(name)
    images = grey_images()
    with torch.no_grad():
        assert torch.equal(encoder(images), encoder(images.float() / 255))


def test_a_position_of_the_map_lies_where_its_pixels_are() -> None:
    encoder, _ = encoder_and_cnn("resnet_tiny")
    image = torch.full((1, 1, 256, 256), 0.5)
    spot = image.clone()
    spot[..., 130:142, 66:78] = 1.0  # within position (8, 4) of the 16 x 16 map
    with torch.no_grad():
        difference = (encoder(spot) - encoder(image)).abs().sum(dim=1)[0]
    assert divmod(int(difference.argmax()), 16) == (8, 4)


def test_unknown_image_encoder_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown image encoder 'vgg16'.*resnet50.*resnet_tiny"):
        make_cnn("vgg16")


@pytest.mark.parametrize("frozen", [-1, 5])
def test_more_frozen_stages_than_there_are_is_refused(frozen: int) -> None:
    with pytest.raises(ValueError, match=f"must be 0 to 4 for this image encoder, not {frozen}"):
        ImageEncoder(make_cnn("resnet_tiny"), frozen)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_are_the_first_ones_from_the_stem_on(frozen: int) -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(make_cnn("resnet18"), frozen).train()
    # torchvision's ResNet has 1 BatchNorm in its stem, 4 in its first stage, 5 in each of the others.
    layers = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    num_frozen = [0, 1, 5, 10, 15, 20][frozen]
    assert [layer.training for layer in layers] == [False] * num_frozen + [True] * (20 - num_frozen)
    assert [layer.weight.requires_grad for layer in layers] == [layer.training for layer in layers]
    assert all(parameter.requires_grad for parameter in encoder.parameters()) == (frozen == 0)
    assert any(parameter.requires_grad for parameter in encoder.parameters()) == (frozen < 5)


def visual_embedding(channels: int = 5, height: int = 3, width: int = 4, hidden: int = 7) -> VisualEmbedding:
    torch.manual_seed(0)
    embedding = VisualEmbedding(channels, height * width, hidden)
    for parameter in embedding.parameters():
        nn.init.normal_(parameter)
    return embedding


@pytest.mark.parametrize("positions", [None, [[0, 5, 11], [2, 3, 9]]])
def test_visual_token_is_the_projection_of_feature_location_and_semantics(positions: list[list[int]] | None) -> None:
    embedding = visual_embedding()
    weight, bias = embedding.projection.weight, embedding.projection.bias
    features = torch.randn(2, 5, 3, 4)
    tokens = embedding(features, None if positions is None else torch.tensor(positions))
    kept = positions or [list(range(12))] * 2
    assert tokens.shape == (2, len(kept[0]), 7)
    for row in range(2):
        for index, position in enumerate(kept[row]):
            v = features[row, :, position // 4, position % 4]  # row by row of the map
            expected = weight @ (v + embedding.location[position] + embedding.semantic) + bias
            torch.testing.assert_close(tokens[row, index], expected)


def norms_in_training(encoder: ImageEncoder) -> list[bool]:
    return [any(part.training for part in stage.modules()) for stage in encoder.stages]


def test_a_stage_that_anyone_froze_keeps_its_statistics() -> None:
    encoder = ImageEncoder(make_cnn("resnet_tiny"), frozen_stages=1)
    assert norms_in_training(encoder) == [False, True, True, True]
    encoder.stages[2].requires_grad_(False)
    before = encoder.stages[2].bn1.running_mean.clone()
    encoder.train()(torch.rand(2, 1, 64, 64))
    assert norms_in_training(encoder) == [False, True, False, True]
    assert torch.equal(encoder.stages[2].bn1.running_mean, before)
    encoder.requires_grad_(False).train()
    assert norms_in_training(encoder) == [False] * 4
    encoder.stages[0].requires_grad_(True)
    assert norms_in_training(encoder.train()) == [True, False, False, False], "and trains again"
    encoder.stages[3][0].conv1.requires_grad_(True)
    assert norms_in_training(encoder.train()) == [True, False, False, True], "partly frozen is not frozen"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 32, 32), 255.0), "must be in 0..1, not 255..255"),
        (torch.rand(2, 1, 32, 32) - 0.5, "must be in 0..1, not -0"),
        (torch.full((1, 1, 32, 32), torch.nan), "must be in 0..1, not nan"),
        (
            torch.full((1, 1, 32, 32), 255, dtype=torch.int64),
            r"uint8 in 0..255 or floating point in 0..1, not torch.int64",
        ),
    ],
)
def test_pixels_of_another_range_are_refused(images: Tensor, message: str) -> None:
    encoder = ImageEncoder(make_cnn("resnet_tiny"))
    with pytest.raises(ValueError, match=message) as caught:
        encoder(images)
    assert "\n" not in str(caught.value)


def test_the_range_is_checked_on_the_cpu_only() -> None:
    with torch.device("meta"):  # stands for a GPU, whose values a check would wait for
        assert ImageEncoder(make_cnn("resnet_tiny"))(torch.empty(1, 1, 32, 32)).shape == (1, 16, 2, 2)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5), st.integers(1, 40), st.data())
def test_sampled_positions_are_distinct_ordered_and_on_the_map(
    batch_size: int, num_positions: int, data: st.DataObject
) -> None:
    num_sampled = data.draw(st.integers(1, num_positions))
    positions = sample_positions(batch_size, num_positions, num_sampled, CPU)
    assert positions.shape == (batch_size, num_sampled)
    assert positions.dtype == torch.int64
    for row in positions.tolist():
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < num_positions


def test_every_sample_has_a_draw_of_its_own_and_every_position_the_same_chance() -> None:
    torch.manual_seed(0)
    positions = sample_positions(2000, 16, 12, CPU)
    assert len(set(map(tuple, positions[:50].tolist()))) > 40  # of 1,820 subsets
    share = torch.bincount(positions.flatten(), minlength=16) / 2000
    torch.testing.assert_close(share, torch.full((16,), 12 / 16), rtol=0, atol=0.04)  # 4 standard deviations


def test_positions_follow_from_torchs_seed() -> None:
    torch.manual_seed(5)
    first, second = (sample_positions(4, 64, 20, CPU) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(sample_positions(4, 64, 20, CPU), first)
    assert not torch.equal(first, second)
