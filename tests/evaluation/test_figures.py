"""Tests of attention maps: arrays, overlays, figures (MedViLL, Fig. 6)."""

import numpy as np
import pytest
import torch

from medvill_pl import MedViLL
from medvill_pl.evaluation.figures import attention_figure, attention_on_image, join_tokens, overlay


def encode(backbone: MedViLL, text: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[*backbone.tokenizer.encode([text])[0], backbone.tokenizer.sep_id]])
    images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "input_ids": ids, "text_mask": torch.ones_like(ids, dtype=torch.bool)}


def test_attention_is_taken_from_the_right_rows_and_columns() -> None:
    # CLS, 4 visual tokens, SEP_V, 3 text tokens; each weight tells its query and its key.
    size = 9
    query, key = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    layer, head = torch.arange(2)[:, None, None, None], torch.arange(3)[:, None, None]
    weights = (10_000 * layer + 1000 * head + 100 * query + key)[None]
    maps = attention_on_image(weights, num_visual=4)
    assert maps.shape == (1, 2, 3, 4, 2, 2)
    for layer_, head_ in ((0, 0), (1, 2)):
        base = 10_000 * layer_ + 1000 * head_
        for index, query_ in enumerate((0, 6, 7, 8)):  # CLS and the text, row by row of the feature map
            expected = [[base + 100 * query_ + 1, base + 100 * query_ + 2]]
            expected += [[base + 100 * query_ + 3, base + 100 * query_ + 4]]
            assert maps[0, layer_, head_, index].tolist() == expected


@pytest.mark.parametrize("strategy", ["bidirectional", "seq2seq", "bar", "non_crossing"])
def test_every_word_and_cls_attend_to_the_image_as_the_mask_allows(backbone: MedViLL, strategy: str) -> None:
    inputs = encode(backbone, "No pneumothorax is seen.")
    maps = attention_on_image(backbone.attention_weights(**inputs, mask_strategy=strategy), backbone.num_visual)
    num_text = inputs["input_ids"].shape[1] + (strategy == "non_crossing")
    assert maps.shape == (1, 2, 2, 1 + num_text, 4, 4)
    shares = maps.sum((-2, -1))
    assert (shares[..., 0] > 0).all()
    assert (shares < 1 + 1e-5).all()
    if strategy == "non_crossing":
        assert (shares[..., 1:] == 0).all()  # its words do not see the image
    else:
        assert (shares[..., 1:] > 0).all()


def test_attention_of_cls_is_the_softmax_of_its_scores(backbone: MedViLL) -> None:
    inputs = encode(backbone, "No pneumothorax is seen.")
    maps = attention_on_image(backbone.attention_weights(**inputs), backbone.num_visual)
    layer = backbone.encoder.layers[0]
    with torch.no_grad():
        joint, _ = backbone.embed(
            backbone.encode_image(inputs["images"]), inputs["input_ids"], inputs["text_mask"], "bidirectional"
        )
        query, key = layer.query(joint)[0, 0, :16], layer.key(joint)[0, :, :16]  # the first of two heads, 16 wide
        expected = torch.softmax(key @ query / 4, dim=0)[1 : 1 + backbone.num_visual]
    torch.testing.assert_close(maps[0, 0, 0, 0].flatten(), expected)


def test_words_are_joined_from_their_tokens() -> None:
    maps = torch.tensor([[1.0, 0.0], [0.2, 0.4], [0.4, 0.0], [0.6, 0.2], [0.5, 0.5]])
    words, joined = join_tokens(["no", "pneu", "##mo", "##thorax", "[SEP]"], maps)
    assert words == ["no", "pneumothorax", "[SEP]"]
    torch.testing.assert_close(joined, torch.tensor([[1.0, 0.0], [0.4, 0.2], [0.5, 0.5]]))


def test_overlay_colours_where_attention_is_and_leaves_the_rest() -> None:
    image = np.full((64, 32), 100, dtype=np.uint8)
    attention = torch.zeros(4, 2)
    attention[3, 1] = 0.02  # however small: the strongest position takes the full colour
    pixels = overlay(image, attention)
    assert pixels.shape == (64, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:16] == 100).all()
    corner = pixels[-1, -1].astype(int)
    assert corner[0] > 150
    assert corner[0] - corner[2] > 50  # warm, not grey
    assert (overlay(image, torch.zeros(4, 2)) == 100).all()


def test_figure_has_the_image_and_a_titled_map_per_word() -> None:
    image = np.zeros((32, 32), dtype=np.uint8)
    maps = torch.full((4, 2, 2), 0.1)
    figure = attention_figure(image, ["CLS", "no", "acute", "disease"], maps, columns=3)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == [
        "image",
        *(f"{word} (40% on the image)" for word in ("CLS", "no", "acute", "disease")),
    ]
    assert len(figure.axes) == 6
