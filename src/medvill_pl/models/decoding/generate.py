"""Report generation by sequential mask-filling (MedViLL, Sec. IV-C.4).

Everything here runs the seq2seq mask, for every backbone. A MASK is put after the tokens written so far, its prediction
is kept as the next token, the next MASK is put after it, until SEP_L or a limit. CLS, visual tokens and SEP_V see only
each other, so their keys and values are computed once per image; a step runs the token kept last and the new MASK only.
"""

import torch
from torch import Tensor, nn

from medvill_pl.masks import TEXT, MaskStrategy, may_attend
from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.models.decoding.search import Generated, Search, allow, draw_numbers, forbidden_tokens, sample
from medvill_pl.models.decoding.sequence import embed_text, encode_prefix, kinds_and_positions, take_visual_tokens
from medvill_pl.models.encoder import KeyValueCache
from medvill_pl.models.medvill import MedViLL
from medvill_pl.models.modes import evaluating


@torch.no_grad()
def generate(
    backbone: MedViLL,
    config: DecodingConfig | None = None,
    *,
    images: Tensor | None = None,
    visual_tokens: Tensor | None = None,
    seeds: Tensor | None = None,
) -> list[Generated]:
    """Write a report for each image (MedViLL, Sec. IV-C.4).

    An image gives the same report in any batch, up to rounding. Special and unused tokens are never written. In beam
    search, a hypothesis that ends keeps its place among the ``num_beams`` till the search is over, when all have
    ended or are at the limit. Nothing is dropped out, and the mode of each module is left as it was.

    Args:
        backbone: any, whatever strategy it was pre-trained under.
        config: how reports are written; greedily, by default.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.
        seeds: for ``sample``, the seed of each image, from 0, int64, shape ``(B,)``: its report follows from the seed
            and the image alone.

    Returns:
        One report per image.

    Raises:
        ValueError: if not exactly one of ``images`` and ``visual_tokens`` is given, a shape is wrong, the limits
            do not fit the backbone, or seeds are missing or not used.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... )
        >>> config = DecodingConfig(method="beam", num_beams=3, min_new_tokens=5, max_new_tokens=5)
        >>> report, = generate(backbone, config, images=torch.zeros(1, 1, 64, 64))
        >>> len(report.ids), report.is_finished
        (5, False)
    """
    config = config or DecodingConfig()
    max_new_tokens = _check_limits(config, backbone)
    width = config.num_beams if config.method == "beam" else 1
    sep_id, num_classes = backbone.tokenizer.sep_id, backbone.tokenizer.vocab_size
    with evaluating(backbone):
        visual_tokens = take_visual_tokens(backbone, images, visual_tokens)
        numbers = _numbers(config, seeds, visual_tokens, max_new_tokens)
        cache = encode_prefix(backbone, visual_tokens, num_text=max_new_tokens * width)
        search = Search.start(len(visual_tokens), width, max_new_tokens, visual_tokens.device)
        forbidden = forbidden_tokens(backbone.tokenizer, visual_tokens.device)
        reports: dict[int, Generated] = {}
        for position in range(max_new_tokens):
            hidden = decode_step(backbone, cache, search, position, num_image=visual_tokens.shape[1] + 2)
            log_p = backbone.mlm_logits(hidden.flatten(0, 1)).float().log_softmax(dim=1).view(-1, width, num_classes)
            scores = allow(log_p, forbidden, search.tokens[:, :, :position], config, sep_id)
            if numbers is None:
                parents, tokens = search.best_extensions(scores)
            else:
                tokens = sample(scores, numbers[search.examples, position], config)
                parents = torch.zeros_like(tokens)
            search.extend(position, parents, tokens, scores, sep_id)
            is_over = search.is_over()
            # Examples that are over leave the batch, but not one by one: copying the cache costs more than a step.
            if 2 * int(is_over.sum()) >= len(is_over):  # the only time a step waits for the device
                reports |= search.select(is_over).reports(config.length_penalty)
                search, cache = search.select(~is_over), cache.select(~is_over)
            if len(search.examples) == 0:
                break
    reports |= search.reports(config.length_penalty)
    return [reports[example] for example in sorted(reports)]


def decode_step(backbone: MedViLL, cache: KeyValueCache, search: Search, position: int, num_image: int) -> Tensor:
    """Contextual embedding of the MASK at ``position`` of each hypothesis, shape ``(R, W, d)``.

    The cache has the image first, then W slots per position of the text, one per hypothesis:

        image | slots of position 0 | .. | slots of position - 1 | slots of position

    At a step, 2 W tokens run: at ``position - 1`` the token kept last, which takes the slot of the MASK that it was
    predicted from, and at ``position`` the new MASK. At the first step, W MASKs run alone.

    Args:
        backbone: in evaluation mode.
        cache: of the image, and of the tokens before ``position - 1``.
        search: the hypotheses so far.
        position: of the MASK, from 0.
        num_image: CLS, visual tokens and SEP_V.
    """
    width, device = search.tokens.shape[1], search.tokens.device
    first = max(position - 1, 0)
    ids = torch.full_like(search.tokens[:, :, first : position + 1], backbone.tokenizer.mask_id)
    ids[:, :, :-1] = search.tokens[:, :, first:position]
    positions = torch.arange(position + 1, device=device).repeat_interleave(width)  # of all text slots
    queries = positions[first * width :]  # of those that run
    embedded = embed_text(backbone, ids.transpose(1, 2).flatten(1), queries)

    keys = kinds_and_positions(num_image, positions)
    rule = may_attend(MaskStrategy.SEQ2SEQ, torch.full_like(queries, TEXT), queries, *keys)
    # Of the W slots of a position, a hypothesis sees the one that its own ancestor wrote.
    is_own = search.writer[:, :, : position + 1, None] == torch.arange(width, device=device)
    is_own = nn.functional.pad(is_own.flatten(2), (num_image, 0), value=True)
    mask = rule & is_own.repeat(1, len(queries) // width, 1)
    hidden: Tensor = backbone.encoder(embedded, mask[:, None], cache, num_image + first * width)
    return hidden[:, -width:]


def _check_limits(config: DecodingConfig, backbone: MedViLL) -> int:
    """The longest report to write, in tokens."""
    limit: int = backbone.hparams["max_tokens"]
    max_new_tokens = limit if config.max_new_tokens is None else config.max_new_tokens
    if max_new_tokens > limit:
        raise ValueError(f"max_new_tokens {max_new_tokens} is more than the {limit} of this backbone")
    if config.min_new_tokens > max_new_tokens:
        raise ValueError(f"min_new_tokens {config.min_new_tokens} is more than max_new_tokens {max_new_tokens}")
    return max_new_tokens


def _numbers(config: DecodingConfig, seeds: Tensor | None, visual_tokens: Tensor, max_new_tokens: int) -> Tensor | None:
    """What chooses the tokens, shape ``(B, max_new_tokens)``; None unless they are sampled."""
    if config.method != "sample":
        if seeds is not None:
            raise ValueError(f"seeds have no effect with method {config.method!r}: set method to 'sample'")
        return None
    batch_size = len(visual_tokens)
    if seeds is None or seeds.shape != (batch_size,) or bool((seeds < 0).any()):
        raise ValueError(f"method 'sample' needs seeds of shape ({batch_size},), each 0 or more")
    return draw_numbers(seeds, max_new_tokens, visual_tokens.device)
