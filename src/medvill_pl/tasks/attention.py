"""Where a task's backbone looks on the image (MedViLL, Eq. 8)."""

from typing import NamedTuple

from torch import Tensor

from medvill_pl.evaluation.figures import attention_on_image
from medvill_pl.masks import MaskStrategy
from medvill_pl.models.medvill import MedViLL


class ImageAttention(NamedTuple):
    """Attention on the feature map of the image, ``h x w``; mean over the heads of the last layer.

    Attributes:
        cls: that of CLS, float32, shape ``(B, h, w)``.
        tokens: that of each text token, float32, shape ``(B, T, h, w)``, zero where a token does not count; None where
            the task predicts no tokens.
    """

    cls: Tensor
    tokens: Tensor | None = None


def last_layer_maps(
    backbone: MedViLL, images: Tensor, input_ids: Tensor, text_mask: Tensor, strategy: MaskStrategy
) -> Tensor:
    """Maps of CLS and of each text token, mean over the heads of the last layer, float32, shape ``(B, 1 + T, h, w)``.

    Args:
        backbone: any; its mode does not matter.
        images: as :meth:`MedViLL.encode_image` takes them.
        input_ids: int64, shape ``(B, T)``.
        text_mask: bool, shape ``(B, T)``.
        strategy: any but ``bi_seq2seq``.
    """
    weights = backbone.attention_weights(
        images=images, input_ids=input_ids, text_mask=text_mask, mask_strategy=strategy
    )
    return attention_on_image(weights, backbone.num_visual)[:, -1].mean(1)
