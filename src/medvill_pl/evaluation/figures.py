"""Pictures of what a model does: where a word attends to (MedViLL, Fig. 6)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_on_image(weights: Tensor, num_visual: int) -> Tensor:
    """Take the attention of CLS and of every text token on the image from a model's attention weights.

    Under ``non_crossing``, the first of the text tokens is the CLS before the text.

    Args:
        weights: what ``MedViLL.attention_weights`` gives, floating point, shape
            ``(B, layers, heads, S, S)``, over CLS, the
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
    text_positions = torch.arange(num_visual + 2, weights.shape[-1], device=weights.device)
    queries = torch.cat([text_positions.new_zeros(1), text_positions])
    return weights[..., queries, 1 : 1 + num_visual].reshape(*weights.shape[:3], -1, side, side)


def join_tokens(tokens: Sequence[str], maps: Tensor) -> tuple[list[str], Tensor]:
    """Join tokens to words; a word's attention is the mean over its tokens.

    Args:
        tokens: texts of WordPiece tokens; those that continue a word begin with ``##``.
        maps: attention of each token, floating point, shape ``(number of tokens, ...)``.

    Returns:
        The words, and the attention of each, shape ``(number of words, ...)``.

    Example:
        >>> join_tokens(["pneumo", "##thorax", "."], torch.tensor([[0.2], [0.4], [0.1]]))
        (['pneumothorax', '.'], tensor([[0.3000],
                [0.1000]]))
    """
    starts = [position for position, token in enumerate(tokens) if position == 0 or not token.startswith("##")]
    spans = list(zip(starts, [*starts[1:], len(tokens)], strict=True))
    words = ["".join([tokens[start], *(token[2:] for token in tokens[start + 1 : end])]) for start, end in spans]
    return words, torch.stack([maps[start:end].mean(0) for start, end in spans])


def overlay(image: NDArray[np.uint8], attention: Tensor) -> NDArray[np.uint8]:
    """Lay attention over an image in colour; the largest weight takes the full colour.

    Args:
        image: grey pixels, uint8, shape ``(H, W)``.
        attention: one weight per position of the feature map, floating point, 0 or more, shape ``(h, w)``.

    Returns:
        Colour pixels, uint8, shape ``(H, W, 3)``.

    Example:
        >>> overlay(np.full((8, 8), 100, dtype=np.uint8), torch.tensor([[0.0, 0.0], [0.0, 0.2]])).shape
        (8, 8, 3)
    """
    from matplotlib import colormaps

    weights = (attention / attention.max().clamp_min(1e-12)).float().cpu()[None, None]
    heat = nn.functional.interpolate(weights, image.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    colour = colormaps["inferno"](heat)[..., :3] * 255
    share = 0.6 * heat[..., None]
    mixed: NDArray[np.uint8] = np.round((1 - share) * image[..., None] + share * colour).astype(np.uint8)
    return mixed


def attention_figure(image: NDArray[np.uint8], words: Sequence[str], maps: Tensor, columns: int = 4) -> "Figure":
    """Draw an image and, for each word, where it attends to (MedViLL, Fig. 6).

    Args:
        image: grey pixels, uint8, shape ``(H, W)``.
        words: a title for each map.
        maps: attention on the image, floating point, shape ``(number of words, h, w)``.
        columns: pictures per row.

    Returns:
        A figure that ``savefig`` writes. The titles tell which share of its attention each word gives to the image.

    Example:
        >>> figure = attention_figure(np.zeros((8, 8), dtype=np.uint8), ["effusion"], torch.full((1, 2, 2), 0.1))
        >>> [axis.get_title() for axis in figure.axes if axis.get_title()]
        ['image', 'effusion (40% on the image)']
    """
    from matplotlib.figure import Figure

    pictures = [np.repeat(image[..., None], 3, axis=2), *(overlay(image, each) for each in maps)]
    titles = ["image", *(f"{word} ({each.sum():.0%} on the image)" for word, each in zip(words, maps, strict=True))]
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, title, pixels in zip(axes, titles, pictures, strict=False):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9)
    return figure
