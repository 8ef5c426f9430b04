"""Tests that kept features are those computed anew, bit by bit, and are used only where this is so."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medvill_pl import MedViLL
from medvill_pl.models.image_encoder import ImageEncoder, make_cnn
from medvill_pl.models.medvill import BackboneConfig


def draw_images(number: int = 10, size: int = 64) -> Tensor:
    shape = (number, 1, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image_encoder() -> ImageEncoder:
    """A frozen image encoder with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    encoder = ImageEncoder(make_cnn("resnet_tiny"))
    for _ in range(3):
        encoder(torch.rand(4, 1, 64, 64))
    return encoder.requires_grad_(False).eval()


class Runs:
    """Counts the images that go through the CNN."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.number = 0
        encoder.stages[0].register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.number += len(inputs[0])


@pytest.mark.parametrize(
    ("name", "is_channels_last"), [("resnet_tiny", False), ("resnet18", True), ("resnet18", False)]
)
def test_kept_features_are_those_computed_anew(name: str, is_channels_last: bool) -> None:
    torch.manual_seed(0)
    encoder, images = ImageEncoder(make_cnn(name)).requires_grad_(False).eval(), draw_images(8)
    if is_channels_last:
        encoder.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    anew = encoder(images)
    encoder.cache_features(images, batch_size=8)
    runs = Runs(encoder)
    actual = encoder(images)
    assert torch.equal(actual, anew)
    assert actual.stride() == anew.stride(), "what follows computes in the same order"
    assert torch.equal(encoder(images.flip(0)[:3]), anew.flip(0)[:3]), "in any batch"
    assert runs.number == 0
    assert not actual.requires_grad
    assert not actual.is_inference()


def test_images_are_added_and_computed_once(image_encoder: ImageEncoder) -> None:
    images = draw_images()
    anew = image_encoder(images)
    runs = Runs(image_encoder)
    image_encoder.cache_features(images[:6], batch_size=4)
    image_encoder.cache_features(images[3:])
    assert (runs.number, image_encoder.num_cached) == (10, 10)
    torch.testing.assert_close(image_encoder(images), anew)
    assert runs.number == 10
    image_encoder.clear_features()
    image_encoder(images)
    assert (runs.number, image_encoder.num_cached) == (20, 0)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one pixel": lambda images: images.index_fill(0, torch.tensor([2]), 7),
    "shifted": lambda images: images.roll(3, 3),
    "as floats": lambda images: images.float() / 255,
    "of another shape": lambda images: images.reshape(10, 1, 32, 128),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_pixels_are_computed_as_ever(image_encoder: ImageEncoder, change: str) -> None:
    changed = CHANGES[change](draw_images())
    expected = image_encoder(changed)
    image_encoder.cache_features(draw_images())
    runs = Runs(image_encoder)
    assert torch.equal(image_encoder(changed), expected)
    assert runs.number == 10


def test_a_trainable_encoder_is_refused(image_encoder: ImageEncoder) -> None:
    image_encoder.stages[3].requires_grad_(True)
    with pytest.raises(ValueError, match=r"trainable.*freeze") as caught:
        image_encoder.cache_features(draw_images())
    assert "\n" not in str(caught.value)


def unfreeze(encoder: ImageEncoder) -> None:
    next(encoder.stages[3].parameters()).requires_grad_(True)


def train_one_stage(encoder: ImageEncoder) -> None:
    encoder.stages[1].train()


@pytest.mark.parametrize("change", [unfreeze, train_one_stage])
def test_an_encoder_that_trains_again_computes_anew(
    image_encoder: ImageEncoder, change: Callable[[ImageEncoder], None]
) -> None:
    images = draw_images()
    image_encoder.cache_features(images)
    change(image_encoder)
    expected = copy.deepcopy(image_encoder)
    expected.clear_features()
    features = image_encoder(images)
    assert torch.equal(features, expected(images))
    assert features.requires_grad == (change is unfreeze)


def test_images_that_want_gradients_get_them(image_encoder: ImageEncoder) -> None:
    images = (draw_images() / 255).requires_grad_()
    image_encoder.cache_features(images.detach())
    image_encoder(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_another_precision_computes_anew_and_says_so(image_encoder: ImageEncoder) -> None:
    images = draw_images()
    with torch.autocast("cpu", torch.bfloat16):
        expected = image_encoder(images)
    image_encoder.cache_features(images)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match=r"cached in torch.float32 and are needed in torch.float32 under autocast to"),
    ):
        assert torch.equal(image_encoder(images), expected)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings(action="error"):
        image_encoder.cache_features(images)
        runs = Runs(image_encoder)
        assert torch.equal(image_encoder(images), expected)
        assert runs.number == 0


def test_other_weights_make_it_forget_and_the_same_do_not(image_encoder: ImageEncoder) -> None:
    images, state = draw_images(), {name: value.clone() for name, value in image_encoder.state_dict().items()}
    image_encoder.cache_features(images)
    holder = nn.ModuleDict({"image_encoder": image_encoder})
    holder.load_state_dict({f"image_encoder.{name}": value for name, value in state.items()})
    assert image_encoder.num_cached == 10
    state["stages.2.bn1.running_mean"] += 1
    expected = copy.deepcopy(image_encoder)
    expected.load_state_dict(state)
    assert (expected.num_cached, image_encoder.num_cached) == (0, 10), "the copy alone"
    holder.load_state_dict({f"image_encoder.{name}": value for name, value in state.items()})
    assert image_encoder.num_cached == 0
    assert torch.equal(image_encoder(images), expected(images))


def test_copies_share_features_and_pickle_keeps_each_once(image_encoder: ImageEncoder) -> None:
    images = draw_images()
    size = len(pickle.dumps(image_encoder))
    image_encoder.cache_features(images, batch_size=5)
    kept = image_encoder(images)
    bytes_of_features = kept.nbytes
    assert len(pickle.dumps(image_encoder)) < size + 1.5 * bytes_of_features + 5000
    for other in (copy.deepcopy(image_encoder), pickle.loads(pickle.dumps(image_encoder))):
        runs = Runs(other)
        assert torch.equal(other(images), kept)
        assert runs.number == 0
    assert copy.deepcopy(image_encoder)._cache is image_encoder._cache


def test_compiled_encoder_uses_them_too(image_encoder: ImageEncoder) -> None:
    images = draw_images()
    image_encoder.cache_features(images)
    compiled = torch.compile(image_encoder, backend="eager")
    runs = Runs(image_encoder)
    assert torch.equal(compiled(images), image_encoder(images))
    assert runs.number == 0


def test_backbone_gives_the_same_tokens_and_saves_the_same_folder(tiny: BackboneConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = MedViLL(**{**tiny, "freeze_image_encoder_stages": 4})
    images = draw_images()
    expected = backbone.encode_image(images)
    names = set(backbone.state_dict())
    backbone.cache_features(images, batch_size=10)
    runs = Runs(backbone.image_encoder)
    assert torch.equal(backbone.train().encode_image(images), expected), "frozen stages stay in evaluation mode"
    assert runs.number == 0
    assert set(backbone.state_dict()) == names
    backbone.save_pretrained(tmp_path)
    loaded = MedViLL.from_pretrained(tmp_path)
    assert loaded.image_encoder.num_cached == 0
    assert torch.equal(loaded.encode_image(images), expected)
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\), not \(10, 1, 32, 32\)"):
        backbone.cache_features(draw_images(size=32))
