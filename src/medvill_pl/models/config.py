"""The arguments of a backbone, for what builds one."""

from typing import TypedDict

from medvill_pl.models.image_encoder import ImageEncoderName


class BackboneConfig(TypedDict, total=False):
    """The arguments of :class:`MedViLL`, for tasks that build a backbone; what is left out keeps its default.

    Example:
        >>> from medvill_pl import MedViLL
        >>> small: BackboneConfig = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic",
        ...                          "hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> MedViLL(**small).num_visual
        16
    """

    image_encoder: ImageEncoderName
    image_size: int
    image_encoder_weights: str | None
    freeze_image_encoder_stages: int
    tokenizer: str
    max_tokens: int
    text_weights: str | None
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    dropout: float
    layer_norm_eps: float
    mlm_layer_norm_eps: float
    gradient_checkpointing: bool
    channels_last: bool
