"""Tests of the CNN trunks, the visual embedding and pixel sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms.functional import normalize

from medvill_pl.models.image_encoder import ImageEncoder, VisualEmbedding, make_cnn, sample_positions

CPU = torch.device("cpu")


def trunk_and_cnn(name: str) -> tuple[ImageEncoder, nn.Module]:
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
def test_stride_and_channels_of_a_trunk(name: str, stride: int, channels: int) -> None:
    with torch.device("meta"):  # shapes without the arithmetic
        trunk = ImageEncoder(make_cnn(name))
        features = trunk(torch.empty(3, 1, 128, 192))
    assert (trunk.stride, trunk.channels) == (stride, channels)
    assert features.shape == (3, channels, 128 // stride, 192 // stride)


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_resnet_features_are_torchvisions_before_its_pooling(name: str) -> None:
    trunk, cnn = trunk_and_cnn(name)
    images = grey_images()
    with torch.no_grad():
        expected = as_imagenet(images)
        for child in list(cnn.children())[:-2]:  # all but the pooling and the classifier
            expected = child(expected)
        torch.testing.assert_close(trunk(images), expected)


def test_densenet_features_are_torchvisions_before_its_pooling() -> None:
    trunk, cnn = trunk_and_cnn("densenet121")
    images = grey_images()
    with torch.no_grad():
        torch.testing.assert_close(trunk(images), cnn.features(as_imagenet(images)).relu())


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18"])
def test_bytes_and_unit_floats_are_the_same_picture(name: str) -> None:
    trunk, _ = trunk_and_cnn(name)
    images = grey_images()
    with torch.no_grad():
        assert torch.equal(trunk(images), trunk(images.float() / 255))


def test_a_place_of_the_map_lies_where_its_pixels_are() -> None:
    trunk, _ = trunk_and_cnn("resnet_tiny")
    image = torch.full((1, 1, 256, 256), 0.5)
    spot = image.clone()
    spot[..., 130:142, 66:78] = 1.0  # within place (8, 4) of the 16 x 16 map
    with torch.no_grad():
        difference = (trunk(spot) - trunk(image)).abs().sum(dim=1)[0]
    assert divmod(int(difference.argmax()), 16) == (8, 4)


def test_unknown_trunk_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown trunk 'vgg16'.*resnet50.*resnet_tiny"):
        make_cnn("vgg16")


@pytest.mark.parametrize("frozen", [-1, 5])
def test_more_frozen_stages_than_there_are_is_refused(frozen: int) -> None:
    with pytest.raises(ValueError, match=f"freeze_image_encoder_stages must be 0 to 4 for this trunk, not {frozen}"):
        ImageEncoder(make_cnn("resnet_tiny"), frozen)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_are_the_first_ones_from_the_stem_on(frozen: int) -> None:
    with torch.device("meta"):
        trunk = ImageEncoder(make_cnn("resnet18"), frozen).train()
    # torchvision's ResNet has 1 BatchNorm in its stem, 4 in its first stage, 5 in each of the others.
    layers = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    num_frozen = [0, 1, 5, 10, 15, 20][frozen]
    assert [layer.training for layer in layers] == [False] * num_frozen + [True] * (20 - num_frozen)
    assert [layer.weight.requires_grad for layer in layers] == [layer.training for layer in layers]
    assert all(parameter.requires_grad for parameter in trunk.parameters()) == (frozen == 0)
    assert any(parameter.requires_grad for parameter in trunk.parameters()) == (frozen < 5)


def visual_embedding(channels: int = 5, height: int = 3, width: int = 4, hidden: int = 7) -> VisualEmbedding:
    torch.manual_seed(0)
    embedding = VisualEmbedding(channels, height * width, hidden)
    for parameter in embedding.parameters():
        nn.init.normal_(parameter)
    return embedding


@pytest.mark.parametrize("places", [None, [[0, 5, 11], [2, 3, 9]]])
def test_visual_token_is_the_projection_of_feature_location_and_semantics(places: list[list[int]] | None) -> None:
    embedding = visual_embedding()
    weight, bias = embedding.projection.weight, embedding.projection.bias
    features = torch.randn(2, 5, 3, 4)
    tokens = embedding(features, None if places is None else torch.tensor(places))
    kept = places or [list(range(12))] * 2
    assert tokens.shape == (2, len(kept[0]), 7)
    for row in range(2):
        for index, place in enumerate(kept[row]):
            v = features[row, :, place // 4, place % 4]  # row by row of the map
            expected = weight @ (v + embedding.location[place] + embedding.semantic) + bias
            torch.testing.assert_close(tokens[row, index], expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5), st.integers(1, 40), st.data())
def test_sampled_places_are_distinct_ordered_and_on_the_map(
    batch_size: int, num_positions: int, data: st.DataObject
) -> None:
    num_sampled = data.draw(st.integers(1, num_positions))
    places = sample_positions(batch_size, num_positions, num_sampled, CPU)
    assert places.shape == (batch_size, num_sampled)
    assert places.dtype == torch.int64
    for row in places.tolist():
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < num_positions


def test_every_sample_has_a_draw_of_its_own_and_every_place_the_same_chance() -> None:
    torch.manual_seed(0)
    places = sample_positions(2000, 16, 12, CPU)
    assert len(set(map(tuple, places[:50].tolist()))) > 40  # of 1,820 subsets
    share = torch.bincount(places.flatten(), minlength=16) / 2000
    torch.testing.assert_close(share, torch.full((16,), 12 / 16), rtol=0, atol=0.04)  # 4 standard deviations


def test_places_follow_from_torchs_seed() -> None:
    torch.manual_seed(5)
    first, second = (sample_positions(4, 64, 20, CPU) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(sample_positions(4, 64, 20, CPU), first)
    assert not torch.equal(first, second)
