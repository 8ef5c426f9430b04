"""The likelihood of given reports in one pass, and where each of their tokens looks (MedViLL, Sec. IV-C.4).

The model is asked for a token by a MASK at the token's position, which sees the image, the tokens before and itself. To
ask for all tokens in one pass, the report runs together with one MASK per token, its *mask query*:

    CLS v1 .. vK SEP_V  w1 w2 w3  MASK1 MASK2 MASK3 MASK4

Query i stands at the position of token i and sees the image, w1 .. w(i-1) and itself; nobody sees a query but itself.
So every query gets what it would get in a pass of its own, and the tokens what they get without queries.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medvill_pl.masks import TEXT, MaskStrategy, may_attend
from medvill_pl.models.decoding.sequence import (
    check_text,
    embed_text,
    encode_prefix,
    kinds_and_positions,
    take_visual_tokens,
)
from medvill_pl.models.encoder import KeyValueCache, attention_probabilities
from medvill_pl.models.medvill import MedViLL
from medvill_pl.models.modes import evaluating

_CHUNK = 1024  # positions whose vocabulary logits are in memory at once


@torch.no_grad()
def log_likelihood(
    backbone: MedViLL,
    *,
    input_ids: Tensor,
    text_mask: Tensor,
    images: Tensor | None = None,
    visual_tokens: Tensor | None = None,
    has_end: Tensor | None = None,
) -> Tensor:
    """Log-probability of each token and SEP_L of given reports, given the image and the tokens before, in one pass.

    The perplexity of a corpus is ``exp(-torch.cat([value.flatten() for value in values]).nanmean())``.

    Args:
        backbone: any; its mode does not matter.
        input_ids: tokens and SEP_L, then padding, int64, shape ``(B, T)``, T at least 1.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.
        has_end: False where a report was truncated, so that its SEP_L is not its own and does not count, bool,
            shape ``(B,)``; None if none was truncated.

    Returns:
        Natural logarithms, float32, shape ``(B, T)``; NaN at padding and at a SEP_L that does not count.

    Raises:
        ValueError: if not exactly one of ``images`` and ``visual_tokens`` is given, or a shape is wrong.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... )
        >>> ids = torch.tensor([[*backbone.tokenizer.encode(["No edema."])[0], backbone.tokenizer.sep_id]])
        >>> values = log_likelihood(
        ...     backbone, images=torch.zeros(1, 1, 64, 64), input_ids=ids, text_mask=torch.ones_like(ids).bool()
        ... )
        >>> values.shape, bool((values < 0).all())
        (torch.Size([1, 4]), True)
    """
    with evaluating(backbone):
        visual_tokens = take_visual_tokens(backbone, images, visual_tokens)
        check_text(backbone, visual_tokens, input_ids, text_mask)
        is_counted = text_mask if has_end is None else _without_false_end(text_mask, has_end)
        queries = _MaskQueries.make(backbone, visual_tokens, input_ids)
        hidden = backbone.encoder(queries.hidden, queries.mask, queries.cache, queries.start)
        hidden = hidden[:, -input_ids.shape[1] :]
        result = torch.full(input_ids.shape, torch.nan, device=input_ids.device)
        chunks, targets = (torch.split(values[is_counted], _CHUNK) for values in (hidden, input_ids))
        losses = [
            nn.functional.cross_entropy(backbone.mlm_logits(chunk).float(), target, reduction="none")
            for chunk, target in zip(chunks, targets, strict=True)
        ]
        result[is_counted] = -torch.cat(losses)
    return result


def _without_false_end(text_mask: Tensor, has_end: Tensor) -> Tensor:
    """The mask without the last token of truncated reports."""
    if has_end.shape != text_mask.shape[:1] or has_end.dtype != torch.bool:
        raise ValueError(f"has_end must be bool of shape (B,), not {has_end.dtype} {tuple(has_end.shape)}")
    is_last = torch.arange(text_mask.shape[1], device=text_mask.device) == text_mask.sum(1, keepdim=True) - 1
    return text_mask & (has_end[:, None] | ~is_last)


def mask_query_hidden(backbone: MedViLL, visual_tokens: Tensor, input_ids: Tensor) -> Tensor:
    """Contextual embeddings of the mask queries of :func:`log_likelihood`, with gradients and dropout, to train by.

    Args:
        backbone: any.
        visual_tokens: what :meth:`MedViLL.encode_image` returned, shape ``(B, K, d)``.
        input_ids: tokens and SEP_L, then padding, int64, shape ``(B, T)``, T at least 1.

    Returns:
        For ``backbone.mlm_logits``: what stands at each position, given the image and the tokens before; shape
        ``(B, T, d)``. At padding it means nothing.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... )
        >>> ids = torch.tensor([[*backbone.tokenizer.encode(["No edema."])[0], backbone.tokenizer.sep_id]])
        >>> hidden = mask_query_hidden(backbone, backbone.encode_image(torch.zeros(1, 1, 64, 64)), ids)
        >>> loss = nn.functional.cross_entropy(backbone.mlm_logits(hidden[0]), ids[0])
    """
    # The image is not cached but runs with the text, since gradients flow through it.
    no_text = input_ids[:, :0]
    image, _ = backbone.embed(visual_tokens, no_text, no_text.bool(), MaskStrategy.SEQ2SEQ)
    masks = torch.full_like(input_ids, backbone.tokenizer.mask_id)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    text = embed_text(backbone, torch.cat([input_ids[:, :-1], masks], dim=1), torch.cat([position[:-1], position]))
    text_sees = _mask_query_mask(image.shape[1], position)
    image_sees = text_sees.new_zeros(image.shape[1], text_sees.shape[1])
    image_sees[:, : image.shape[1]] = True
    joint = torch.cat([image, backbone.embedding_dropout(text)], dim=1)
    hidden: Tensor = backbone.encoder(joint, torch.cat([image_sees, text_sees])[None, None])
    return hidden[:, -input_ids.shape[1] :]


@torch.no_grad()
def token_attention(
    backbone: MedViLL,
    *,
    input_ids: Tensor,
    text_mask: Tensor,
    images: Tensor | None = None,
    visual_tokens: Tensor | None = None,
) -> Tensor:
    """Attention on the image of the MASK that each token of given reports was, or would be, predicted from (Eq. 8).

    Args:
        backbone: any; its mode does not matter.
        input_ids: tokens (and SEP_L), then padding, int64, shape ``(B, T)``, T at least 1.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.

    Returns:
        Probabilities, float32, shape ``(B, layers, heads, T, K)``, visual tokens row by row of the feature map; NaN
        at padding. They sum to at most 1 over the image: the rest is on CLS, SEP_V, earlier tokens and the MASK
        itself. ``[:, -1].mean(dim=1)`` is the last layer's mean over heads, shape ``(B, T, K)``. With the paper's
        sizes, a token takes 144 KiB.

    Raises:
        ValueError: if not exactly one of ``images`` and ``visual_tokens`` is given, or a shape is wrong.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... )
        >>> ids = torch.tensor(backbone.tokenizer.encode(["No edema."]))
        >>> images, text_mask = torch.zeros(1, 1, 64, 64), torch.ones_like(ids).bool()
        >>> token_attention(backbone, images=images, input_ids=ids, text_mask=text_mask).shape
        torch.Size([1, 2, 2, 3, 16])
    """
    layers: list[Tensor] = []
    with evaluating(backbone):
        visual_tokens = take_visual_tokens(backbone, images, visual_tokens)
        check_text(backbone, visual_tokens, input_ids, text_mask)
        num_visual, num_text = visual_tokens.shape[1], input_ids.shape[1]
        queries = _MaskQueries.make(backbone, visual_tokens, input_ids)

        def keep(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
            assert mask is not None
            # Of the mask queries only, and then of the image only: a whole matrix per layer would not fit.
            weights = attention_probabilities(query[:, :, -num_text:], key, mask[:, :, -num_text:])
            layers.append(weights[..., 1 : num_visual + 1])

        backbone.encoder(queries.hidden, queries.mask, queries.cache, queries.start, on_attention=keep)
    return torch.stack(layers, dim=1).masked_fill(~text_mask[:, None, None, :, None], torch.nan)


class _MaskQueries(NamedTuple):
    """Tokens of given reports and a mask query for each, about to run against the cached image.

    Attributes:
        hidden: T - 1 tokens (the last is before nobody), then T MASKs, embedded, shape ``(B, 2 * T - 1, d)``.
        mask: who sees whom, bool, shape ``(1, 1, 2 * T - 1, start + 2 * T - 1)``.
        cache: of the images.
        start: first slot of the text.
    """

    hidden: Tensor
    mask: Tensor
    cache: KeyValueCache
    start: int

    @classmethod
    def make(cls, backbone: MedViLL, visual_tokens: Tensor, input_ids: Tensor) -> "_MaskQueries":
        tokens, masks = input_ids[:, :-1], torch.full_like(input_ids, backbone.tokenizer.mask_id)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = embed_text(backbone, torch.cat([tokens, masks], dim=1), torch.cat([position[:-1], position]))
        num_image = visual_tokens.shape[1] + 2
        cache = encode_prefix(backbone, visual_tokens, num_text=hidden.shape[1])
        return cls(hidden, _mask_query_mask(num_image, position)[None, None], cache, num_image)


def _mask_query_mask(num_image: int, position: Tensor) -> Tensor:
    """Who sees whom: rows are tokens, then queries; columns are the image, tokens, then queries."""
    token = position[:-1]
    keys = kinds_and_positions(num_image, token)
    kind = torch.full_like(position, TEXT)
    tokens_see = may_attend(MaskStrategy.SEQ2SEQ, kind[:-1], token, *keys)
    # A query sees what the token before it sees, hence position - 1: the token at its own position is what it must
    # predict. The first one, at -1, sees the image alone.
    queries_see = may_attend(MaskStrategy.SEQ2SEQ, kind, position - 1, *keys)
    itself = torch.eye(len(position), dtype=torch.bool, device=position.device)
    no_query = itself.new_zeros(len(token), len(position))
    return torch.cat([torch.cat([tokens_see, no_query], dim=1), torch.cat([queries_see, itself], dim=1)])
