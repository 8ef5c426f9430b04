"""How many floating point operations a backbone needs for one pair."""

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from medvill_pl.models.image_encoder import ImageEncoder, make_cnn

if TYPE_CHECKING:
    from medvill_pl.models.medvill import MedViLL


def forward_flops(backbone: "MedViLL", num_sampled: int | None, num_text: int) -> int:
    """Floating point operations of one forward pass for one pair: image encoder, projection and transformer.

    Args:
        backbone: any; it is not run.
        num_sampled: visual tokens that go through the transformer; None for all K.
        num_text: text tokens, padding included.

    Example:
        >>> from medvill_pl import MedViLL
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... )
        >>> forward_flops(backbone, num_sampled=None, num_text=20)
        3128320
    """
    num_visual = min(num_sampled or backbone.num_visual, backbone.num_visual)
    num_tokens, hidden_size = num_visual + 2 + num_text, backbone.hparams["hidden_size"]
    matrices = sum(weight.numel() for weight in backbone.encoder.parameters() if weight.ndim == 2)
    attention = 2 * num_tokens * hidden_size * backbone.hparams["num_layers"]  # scores and weighted sum, per token
    projection = num_visual * backbone.image_encoder.channels * hidden_size
    transformer: int = num_tokens * (matrices + attention) + projection
    return 2 * transformer + _image_encoder_flops(backbone.hparams["image_encoder"], backbone.hparams["image_size"])


@cache
def _image_encoder_flops(name: str, image_size: int) -> int:
    with torch.device("meta"):  # shapes without the arithmetic
        image_encoder = ImageEncoder(make_cnn(name)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        image_encoder(torch.empty(1, 1, image_size, image_size, device="meta"))
    return int(counter.get_total_flops())
