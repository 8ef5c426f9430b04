"""Pictures of what a model does: where a word looks (MedViLL, Fig. 6)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_on_image(weights: Tensor, num_visual: int) -> Tensor:
    """Cut the attention of CLS and of every text token on the image out of a model's attention weights.

    Under ``non_crossing``, the first of the text tokens is the CLS before the words.

    Args:
        weights: what ``MedViLL.attention_weights`` gives, shape ``(B, layers, heads, S, S)``, over CLS, the
            visual tokens of the whole image, SEP_V and T text tokens.
        num_visual: visual tokens K.

    Returns:
        Shares of attention, shape ``(B, layers, heads, 1 + T, h, w)`` with ``h * w = K``: first CLS, then the
        text tokens; each map sums to the share that goes to the image.

    Example:
        >>> attention_on_image(torch.full((1, 2, 4, 9, 9), 1 / 9), num_visual=4).shape
        torch.Size([1, 2, 4, 4, 2, 2])
    """
    side = round(num_visual**0.5)
    of_text = torch.arange(num_visual + 2, weights.shape[-1], device=weights.device)
    queries = torch.cat([of_text.new_zeros(1), of_text])
    return weights[..., queries, 1 : 1 + num_visual].reshape(*weights.shape[:3], -1, side, side)


def join_pieces(tokens: Sequence[str], maps: Tensor) -> tuple[list[str], Tensor]:
    """Put word pieces together to words; a word's attention is the mean over its pieces.

    Args:
        tokens: word pieces; those that continue a word begin with ``##``.
        maps: attention of each piece, shape ``(number of pieces, ...)``.

    Returns:
        The words, and the attention of each, shape ``(number of words, ...)``.

    Example:
        >>> join_pieces(["pneumo", "##thorax", "."], torch.tensor([[0.2], [0.4], [0.1]]))
        (['pneumothorax', '.'], tensor([[0.3000],
                [0.1000]]))
    """
    starts = [place for place, token in enumerate(tokens) if place == 0 or not token.startswith("##")]
    spans = list(zip(starts, [*starts[1:], len(tokens)], strict=True))
    words = ["".join([tokens[start], *(token[2:] for token in tokens[start + 1 : end])]) for start, end in spans]
    return words, torch.stack([maps[start:end].mean(0) for start, end in spans])


def overlay(film: NDArray[np.uint8], attention: Tensor) -> NDArray[np.uint8]:
    """Lay attention over a film in colour.

    Args:
        film: grey pixels, uint8, shape ``(H, W)``.
        attention: one weight a place of the feature map, shape ``(h, w)``.

    Returns:
        Colour pixels, uint8, shape ``(H, W, 3)``.
    """
    from matplotlib import colormaps

    places = (attention / attention.max().clamp_min(1e-12)).float().cpu()[None, None]
    heat = nn.functional.interpolate(places, film.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    colour = colormaps["inferno"](heat)[..., :3] * 255
    share = 0.6 * heat[..., None]
    mixed: NDArray[np.uint8] = np.round((1 - share) * film[..., None] + share * colour).astype(np.uint8)
    return mixed


def attention_figure(film: NDArray[np.uint8], words: Sequence[str], maps: Tensor, columns: int = 4) -> "Figure":
    """Draw a film and, for each word, where it looks.

    Args:
        film: grey pixels, uint8, shape ``(H, W)``.
        words: a title for each map.
        maps: attention on the image, shape ``(number of words, h, w)``.
        columns: pictures in a row.
    """
    from matplotlib.figure import Figure

    pictures = [np.repeat(film[..., None], 3, axis=2), *(overlay(film, each) for each in maps)]
    titles = ["film", *(f"{word} ({each.sum():.0%} on the film)" for word, each in zip(words, maps, strict=True))]
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, title, pixels in zip(axes, titles, pictures, strict=False):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9)
    return figure
