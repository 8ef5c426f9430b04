"""The sequence that decoding runs: the cached image, then text under the seq2seq mask, each part checked."""

import torch
from torch import Tensor

from medvill_pl.masks import IMAGE, TEXT, MaskStrategy
from medvill_pl.models.encoder import KeyValueCache
from medvill_pl.models.medvill import MedViLL


def take_visual_tokens(backbone: MedViLL, images: Tensor | None, visual_tokens: Tensor | None) -> Tensor:
    """Encode images, or check visual tokens, shape ``(B, K, d)``.

    Raises:
        ValueError: if not exactly one of both is given, or the shape is wrong.
    """
    if (images is None) == (visual_tokens is None):
        raise ValueError("give either images or visual_tokens")
    if visual_tokens is None:
        assert images is not None
        visual_tokens = backbone.encode_image(images)
    width = backbone.hparams["hidden_size"]
    if visual_tokens.ndim != 3 or visual_tokens.shape[2] != width:
        raise ValueError(f"visual_tokens must be of shape (B, K, {width}), not {tuple(visual_tokens.shape)}")
    return visual_tokens


def check_text(backbone: MedViLL, visual_tokens: Tensor, input_ids: Tensor, text_mask: Tensor) -> None:
    """Check the text that goes with visual tokens.

    Raises:
        ValueError: if a shape or dtype is wrong, or the text is empty or longer than the backbone's limit.
    """
    if text_mask.shape != input_ids.shape or text_mask.dtype != torch.bool:
        shapes = f"{text_mask.dtype} {tuple(text_mask.shape)} for input_ids {tuple(input_ids.shape)}"
        raise ValueError(f"text_mask must be bool and of the shape of input_ids, not {shapes}")
    if input_ids.ndim != 2 or len(input_ids) != len(visual_tokens):
        raise ValueError(f"input_ids must be of shape ({len(visual_tokens)}, T), not {tuple(input_ids.shape)}")
    longest = backbone.hparams["max_tokens"] + 1
    if not 1 <= input_ids.shape[1] <= longest:
        raise ValueError(f"a text must have 1 to {longest} tokens (with SEP), not {input_ids.shape[1]}")


def encode_prefix(backbone: MedViLL, visual_tokens: Tensor, num_text: int) -> KeyValueCache:
    """Cache CLS, visual tokens and SEP_V, with room for so many text tokens.

    Under seq2seq these see only each other, so what text comes after them changes nothing.
    """
    no_text = torch.empty(len(visual_tokens), 0, dtype=torch.long, device=visual_tokens.device)
    joint, _ = backbone.embed(visual_tokens, no_text, no_text.bool(), MaskStrategy.SEQ2SEQ)
    cache = KeyValueCache(len(backbone.encoder.layers), num_slots=joint.shape[1] + num_text)
    backbone.encoder(joint, None, cache)  # without text all see all: no mask is faster
    return cache


def embed_text(backbone: MedViLL, ids: Tensor, positions: Tensor) -> Tensor:
    """Embed tokens, shape ``(B, Q)``, at positions of the text, shape ``(Q,)``, ready for the encoder (Eq. 4)."""
    embedding = backbone.report_embedding
    embedded: Tensor = backbone.embedding_norm(embedding.word(ids) + embedding.position[positions] + embedding.semantic)
    return embedded


def kinds_and_positions(num_image: int, text_positions: Tensor) -> tuple[Tensor, Tensor]:
    """Kind and position, for :func:`~medvill_pl.masks.may_attend`, of CLS, image and SEP_V followed by text tokens.

    Example:
        >>> kinds_and_positions(num_image=3, text_positions=torch.tensor([0, 1, 1]))
        (tensor([0, 0, 0, 1, 1, 1]), tensor([0, 1, 2, 0, 1, 1]))
    """
    image = torch.arange(num_image, device=text_positions.device)
    kind = torch.cat([torch.full_like(image, IMAGE), torch.full_like(text_positions, TEXT)])
    return kind, torch.cat([image, text_positions])
