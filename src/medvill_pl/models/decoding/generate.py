"""Report generation by sequential mask-filling, and the likelihood of given reports (MedViLL, Sec. IV-C.4).

Everything here runs the seq2seq mask, for every backbone. A MASK is put after the words written so far, its prediction
is kept as the next word, the next MASK is put after it, until SEP_L or a limit. CLS, visual tokens and SEP_V see only
each other, so their keys and values are computed once an image; a step runs the word kept last and the new MASK only.
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medvill_pl.masks import IMAGE, TEXT, MaskStrategy, may_attend
from medvill_pl.models.encoder import KeyValueCache, attention_probabilities
from medvill_pl.models.medvill import MedViLL
from medvill_pl.models.modes import evaluating

DecodingMethod = Literal["greedy", "beam", "sample"]

_USED_BY = {
    "num_beams": "beam",
    "length_penalty": "beam",
    "temperature": "sample",
    "top_k": "sample",
    "top_p": "sample",
}
_CHUNK = 1024  # places whose vocabulary logits are in memory at once


@dataclass(frozen=True)
class DecodingConfig:
    """How reports are written, in plain values.

    Args:
        method: ``greedy`` keeps the most probable word, ``beam`` searches, ``sample`` draws.
        max_new_tokens: a report stops after so many word pieces, unfinished; None is the backbone's limit.
        min_new_tokens: SEP_L is not written before so many word pieces.
        no_repeat_ngram_size: no run of so many word pieces comes twice in a report; 0 allows it. Where this leaves
            no word, SEP_L follows, even before ``min_new_tokens``.
        num_beams: hypotheses an image that ``beam`` keeps.
        length_penalty: ``beam`` returns the hypothesis with the largest log-probability divided by
            length ** length_penalty, where the length counts words and SEP_L: 0 compares probabilities, 1 means
            a word; more favours longer reports.
        temperature: ``sample`` divides the logits by it; below 1 is closer to ``greedy``.
        top_k: ``sample`` draws from so many most probable words; None from all.
        top_p: ``sample`` draws from the fewest words that have this probability together (after ``top_k``), 0 to 1;
            None from all.

    Raises:
        ValueError: if a value is out of range, or is set although ``method`` does not use it.
    """

    method: DecodingMethod = "greedy"
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 4
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "beam", "sample"):
            raise ValueError(f"unknown decoding method {self.method!r}: choose one of greedy, beam, sample")
        for field in fields(self):
            user, value = _USED_BY.get(field.name, self.method), getattr(self, field.name)
            if user != self.method and value != field.default:
                raise ValueError(
                    f"{field.name}={value} has no effect with method {self.method!r}: set method to {user!r}"
                )
        for name, least in (
            ("max_new_tokens", 1),
            ("min_new_tokens", 0),
            ("no_repeat_ngram_size", 0),
            ("num_beams", 1),
            ("top_k", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}: for no randomness, decode greedily"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


class Generated(NamedTuple):
    """One generated report.

    Attributes:
        ids: its word pieces, without SEP_L; ``tokenizer.decode`` makes them text.
        log_probability: what the model gives these words, and SEP_L where it was written, in all: the natural
            logarithm, of the model's own probabilities over the whole vocabulary, whatever was forbidden.
        is_finished: whether SEP_L was written; False if the limit came first.
    """

    ids: list[int]
    log_probability: float
    is_finished: bool


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
    search, a hypothesis that ends keeps one of the ``num_beams`` places till the search is over, when all have
    ended or are at the limit. Nothing is dropped out, and the mode of each module is left as it was.

    Args:
        backbone: any, whatever strategy it was pre-trained under.
        config: how reports are written; greedily, by default.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.
        seeds: for ``sample``, the seed of each image, from 0, int64, shape ``(B,)``: its report follows from the seed
            and the image alone.

    Returns:
        One report an image.

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
    with evaluating(backbone):
        visual_tokens = _visual_tokens(backbone, images, visual_tokens)
        draws = _draws(config, seeds, len(visual_tokens), max_new_tokens, visual_tokens.device)
        cache = _encode_prefix(backbone, visual_tokens, num_text=max_new_tokens * width)
        search = _Search.start(len(visual_tokens), width, max_new_tokens, visual_tokens.device)
        forbidden = _forbidden(backbone, visual_tokens.device)
        num_tokens = backbone.tokenizer.vocab_size
        reports: dict[int, Generated] = {}
        for position in range(max_new_tokens):
            hidden = _step(backbone, cache, search, visual_tokens.shape[1] + 2, position)
            log_p = backbone.mlm_logits(hidden.flatten(0, 1)).float().log_softmax(dim=1).view(-1, width, num_tokens)
            scores = _allow(log_p, forbidden, search.words[:, :, :position], config, backbone.tokenizer.sep_id)
            if draws is None:
                parents, words = search.best_extensions(scores)
            else:
                words = _draw(scores, draws[search.examples, position], config)
                parents = torch.zeros_like(words)
            search.extend(position, parents, words, scores, backbone.tokenizer.sep_id)
            is_over = search.is_over()
            if 2 * int(is_over.sum()) >= len(is_over):  # the only time a step waits for the device
                reports |= search.select(is_over).reports(config.length_penalty)
                search, cache = search.select(~is_over), cache.select(~is_over)
            if len(search.examples) == 0:
                break
    reports |= search.reports(config.length_penalty)
    return [reports[example] for example in sorted(reports)]


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
    """Log-probability of each word and SEP_L of given reports, given the image and the words before, in one pass.

    The words run together with one MASK for each, which stands at the word's position and sees the image, the words
    before it and itself, as in :func:`generate`. The perplexity of a corpus is
    ``exp(-torch.cat([value.flatten() for value in values]).nanmean())``.

    Args:
        backbone: any; its mode does not matter.
        input_ids: words and SEP_L, then padding, int64, shape ``(B, T)``, T at least 1.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.
        has_end: False where a report was cut, so that its SEP_L is not its own and does not count, bool,
            shape ``(B,)``; None if none was cut.

    Returns:
        Natural logarithms, float32, shape ``(B, T)``; NaN at padding and at a SEP_L that does not count.

    Raises:
        ValueError: if not exactly one of ``images`` and ``visual_tokens`` is given, or a shape is wrong.
    """
    with evaluating(backbone):
        visual_tokens = _visual_tokens(backbone, images, visual_tokens)
        _check_text(backbone, visual_tokens, input_ids, text_mask)
        is_counted = text_mask
        if has_end is not None:
            if has_end.shape != text_mask.shape[:1] or has_end.dtype != torch.bool:
                raise ValueError(f"has_end must be bool of shape (B,), not {has_end.dtype} {tuple(has_end.shape)}")
            is_last = torch.arange(input_ids.shape[1], device=text_mask.device) == text_mask.sum(1, keepdim=True) - 1
            is_counted = text_mask & (has_end[:, None] | ~is_last)
        queries = _MaskQueries.make(backbone, visual_tokens, input_ids)
        hidden = backbone.encoder(queries.hidden, queries.mask, queries.cache, queries.start)
        hidden = hidden[:, -input_ids.shape[1] :]
        result = torch.full(input_ids.shape, torch.nan, device=input_ids.device)
        places, targets = (torch.split(values[is_counted], _CHUNK) for values in (hidden, input_ids))
        losses = [
            nn.functional.cross_entropy(backbone.mlm_logits(place).float(), target, reduction="none")
            for place, target in zip(places, targets, strict=True)
        ]
        result[is_counted] = -torch.cat(losses)
    return result


def mask_query_hidden(backbone: MedViLL, visual_tokens: Tensor, input_ids: Tensor) -> Tensor:
    """Contextual embeddings of the MASKs of :func:`log_likelihood`, with gradients and dropout, to train by.

    Args:
        backbone: any.
        visual_tokens: what :meth:`MedViLL.encode_image` returned, shape ``(B, K, d)``.
        input_ids: words and SEP_L, then padding, int64, shape ``(B, T)``, T at least 1.

    Returns:
        For ``backbone.mlm_logits``: what stands at each place, given the image and the words before; shape
        ``(B, T, d)``. At padding it means nothing.
    """
    no_text = input_ids[:, :0]
    image, _ = backbone.embed(visual_tokens, no_text, no_text.bool(), MaskStrategy.SEQ2SEQ)
    masks = torch.full_like(input_ids, backbone.tokenizer.mask_id)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    text = _embed_text(backbone, torch.cat([input_ids[:, :-1], masks], dim=1), torch.cat([position[:-1], position]))
    of_text = _mask_query_mask(image.shape[1], position)
    of_image = of_text.new_zeros(image.shape[1], of_text.shape[1])
    of_image[:, : image.shape[1]] = True
    joint = torch.cat([image, backbone.embedding_dropout(text)], dim=1)
    mask = torch.cat([of_image, of_text])[None, None]
    hidden: Tensor = backbone.encoder(joint, mask)
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
    """Attention on the image of the MASK that each word of given reports was, or would be, predicted from (Eq. 8).

    Args:
        backbone: any; its mode does not matter.
        input_ids: words and SEP_L, then padding, int64, shape ``(B, T)``, T at least 1.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        images: as :meth:`MedViLL.encode_image` takes them; or give ``visual_tokens``.
        visual_tokens: what :meth:`MedViLL.encode_image` returned in evaluation mode, shape ``(B, K, d)``.

    Returns:
        Probabilities, float32, shape ``(B, layers, heads, T, K)``, visual tokens row by row of the feature map; NaN
        at padding. They sum to at most 1 over the image: the rest is on CLS, SEP_V, earlier words and the MASK
        itself. ``[:, -1].mean(dim=1)`` is the last layer's mean over heads, shape ``(B, T, K)``. With the paper's
        sizes, a word takes 144 KiB.

    Raises:
        ValueError: if not exactly one of ``images`` and ``visual_tokens`` is given, or a shape is wrong.
    """
    with evaluating(backbone):
        visual_tokens = _visual_tokens(backbone, images, visual_tokens)
        _check_text(backbone, visual_tokens, input_ids, text_mask)
        num_visual, num_text = visual_tokens.shape[1], input_ids.shape[1]
        queries = _MaskQueries.make(backbone, visual_tokens, input_ids)
        layers: list[Tensor] = []

        def keep(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
            assert mask is not None
            weights = attention_probabilities(query[:, :, -num_text:], key, mask[:, :, -num_text:])
            layers.append(weights[..., 1 : num_visual + 1])

        backbone.encoder(queries.hidden, queries.mask, queries.cache, queries.start, on_attention=keep)
    return torch.stack(layers, dim=1).masked_fill(~text_mask[:, None, None, :, None], torch.nan)


# --- arguments


def _visual_tokens(backbone: MedViLL, images: Tensor | None, visual_tokens: Tensor | None) -> Tensor:
    if (images is None) == (visual_tokens is None):
        raise ValueError("give either images or visual_tokens")
    if visual_tokens is None:
        assert images is not None
        visual_tokens = backbone.encode_image(images)
    width = backbone.hparams["hidden_size"]
    if visual_tokens.ndim != 3 or visual_tokens.shape[2] != width:
        raise ValueError(f"visual_tokens must be of shape (B, K, {width}), not {tuple(visual_tokens.shape)}")
    return visual_tokens


def _check_limits(config: DecodingConfig, backbone: MedViLL) -> int:
    """Find the longest report to write, in word pieces."""
    limit: int = backbone.hparams["max_tokens"]
    max_new_tokens = limit if config.max_new_tokens is None else config.max_new_tokens
    if max_new_tokens > limit:
        raise ValueError(f"max_new_tokens {max_new_tokens} is more than the {limit} of this backbone")
    if config.min_new_tokens > max_new_tokens:
        raise ValueError(f"min_new_tokens {config.min_new_tokens} is more than max_new_tokens {max_new_tokens}")
    return max_new_tokens


def _check_text(backbone: MedViLL, visual_tokens: Tensor, input_ids: Tensor, text_mask: Tensor) -> None:
    if text_mask.shape != input_ids.shape or text_mask.dtype != torch.bool:
        shapes = f"{text_mask.dtype} {tuple(text_mask.shape)} for input_ids {tuple(input_ids.shape)}"
        raise ValueError(f"text_mask must be bool and of the shape of input_ids, not {shapes}")
    if input_ids.ndim != 2 or len(input_ids) != len(visual_tokens):
        raise ValueError(f"input_ids must be of shape ({len(visual_tokens)}, T), not {tuple(input_ids.shape)}")
    longest = backbone.hparams["max_tokens"] + 1
    if not 1 <= input_ids.shape[1] <= longest:
        raise ValueError(f"a text must have 1 to {longest} tokens (with SEP), not {input_ids.shape[1]}")


def _draws(
    config: DecodingConfig, seeds: Tensor | None, batch_size: int, max_new_tokens: int, device: torch.device
) -> Tensor | None:
    """Draw the numbers in ``[0, 1)`` that choose the words, shape ``(B, max_new_tokens)``.

    None unless tokens are sampled.
    """
    if config.method != "sample":
        if seeds is not None:
            raise ValueError(f"seeds have no effect with method {config.method!r}: set method to 'sample'")
        return None
    if seeds is None or seeds.shape != (batch_size,) or bool((seeds < 0).any()):
        raise ValueError(f"method 'sample' needs seeds of shape ({batch_size},), each 0 or more")
    # float32 numbers stay below 1 when they are multiplied in float64
    draws = [np.random.default_rng(seed).random(max_new_tokens, dtype=np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(draws)).to(device, torch.float64)


# --- the transformer over a cache


def _encode_prefix(backbone: MedViLL, visual_tokens: Tensor, num_text: int) -> KeyValueCache:
    """Cache CLS, visual tokens and SEP_V, with room for so many text tokens."""
    no_text = torch.empty(len(visual_tokens), 0, dtype=torch.long, device=visual_tokens.device)
    joint, _ = backbone.embed(visual_tokens, no_text, no_text.bool(), MaskStrategy.SEQ2SEQ)
    cache = KeyValueCache(len(backbone.encoder.layers), num_slots=joint.shape[1] + num_text)
    backbone.encoder(joint, None, cache)  # without text all see all: no mask is faster
    return cache


def _embed_text(backbone: MedViLL, ids: Tensor, positions: Tensor) -> Tensor:
    """Embed tokens ``(B, Q)`` at positions ``(Q,)`` of the text (Eq. 4), ready for the encoder."""
    embedding = backbone.report_embedding
    embedded: Tensor = backbone.embedding_norm(embedding.word(ids) + embedding.position[positions] + embedding.semantic)
    return embedded


def _places(num_image: int, text_positions: Tensor) -> tuple[Tensor, Tensor]:
    """Kind and position, for :func:`may_attend`, of I followed by text tokens."""
    image = torch.arange(num_image, device=text_positions.device)
    kind = torch.cat([torch.full_like(image, IMAGE), torch.full_like(text_positions, TEXT)])
    return kind, torch.cat([image, text_positions])


class _MaskQueries(NamedTuple):
    """Words of given reports, and a MASK for each token, about to run against the cached image.

    Attributes:
        hidden: T - 1 words, then T MASKs, embedded, shape ``(B, 2 * T - 1, d)``.
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
        words, masks = input_ids[:, :-1], torch.full_like(input_ids, backbone.tokenizer.mask_id)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = _embed_text(backbone, torch.cat([words, masks], dim=1), torch.cat([position[:-1], position]))
        num_image = visual_tokens.shape[1] + 2
        cache = _encode_prefix(backbone, visual_tokens, num_text=hidden.shape[1])
        return cls(hidden, _mask_query_mask(num_image, position)[None, None], cache, num_image)


def _mask_query_mask(num_image: int, position: Tensor) -> Tensor:
    """Who sees whom among words and MASKs: rows words and MASKs, columns I, words and MASKs."""
    word = position[:-1]
    keys = _places(num_image, word)
    kind = torch.full_like(position, TEXT)
    words_see = may_attend(MaskStrategy.SEQ2SEQ, kind[:-1], word, *keys)
    # A MASK sees itself and what the word before it sees; the word at its own position is what it must predict.
    masks_see = may_attend(MaskStrategy.SEQ2SEQ, kind, position - 1, *keys)
    itself = torch.eye(len(position), dtype=torch.bool, device=position.device)
    no_mask = itself.new_zeros(len(word), len(position))
    return torch.cat([torch.cat([words_see, no_mask], dim=1), torch.cat([masks_see, itself], dim=1)])


# --- the search


@dataclass
class _Search:
    """Hypotheses of the examples that are not over yet: R examples, W hypotheses each.

    Attributes:
        examples: place of each example in the batch, shape ``(R,)``.
        words: word pieces, then zeros, shape ``(R, W, max_new_tokens)``.
        log_probability: of words and SEP_L in all; minus infinity where there is no hypothesis, shape ``(R, W)``.
        length: words and SEP_L, shape ``(R, W)``.
        is_finished: whether SEP_L was written, shape ``(R, W)``.
        writer: which of the W wrote the cached word at each position, shape ``(R, W, max_new_tokens)``. A hypothesis
            reads its ancestors' words where they lie, so the cache is never reordered.
    """

    examples: Tensor
    words: Tensor
    log_probability: Tensor
    length: Tensor
    is_finished: Tensor
    writer: Tensor

    @classmethod
    def start(cls, batch_size: int, width: int, max_new_tokens: int, device: torch.device) -> "_Search":
        shape = (batch_size, width)
        log_probability = torch.full(shape, -torch.inf, device=device)
        log_probability[:, 0] = 0.0  # all hypotheses begin alike, so one is enough
        return cls(
            examples=torch.arange(batch_size, device=device),
            words=torch.zeros(*shape, max_new_tokens, dtype=torch.long, device=device),
            log_probability=log_probability,
            length=torch.zeros(shape, dtype=torch.long, device=device),
            is_finished=torch.zeros(shape, dtype=torch.bool, device=device),
            writer=torch.arange(width, device=device)[:, None].repeat(batch_size, 1, max_new_tokens),
        )

    def select(self, rows: Tensor) -> "_Search":
        """Keep the examples where ``rows`` is True."""
        return _Search(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def best_extensions(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the W most probable hypotheses of each example; those that are finished stay.

        Args:
            scores: log-probability of each next word, minus infinity where it is forbidden, shape ``(R, W, V)``.

        Returns:
            The hypothesis that each one goes on from, and its next word, shapes ``(R, W)``.
        """
        totals = self.log_probability[..., None] + scores
        totals.masked_fill_(self.is_finished[..., None], -torch.inf)
        totals[..., 0].masked_fill_(self.is_finished, torch.inf)
        best = totals.flatten(1).topk(totals.shape[1]).indices
        return best // totals.shape[2], best % totals.shape[2]

    def extend(self, position: int, parents: Tensor, words: Tensor, scores: Tensor, sep_id: int) -> None:
        """Go on from the parents with the next words; with a forbidden one it is a hypothesis no more.

        Args:
            position: of the next words.
            parents: the hypothesis that each one goes on from, shape ``(R, W)``.
            words: the next words, shape ``(R, W)``.
            scores: as :meth:`best_extensions` takes them.
            sep_id: SEP_L.
        """
        was_finished = self.is_finished.gather(1, parents)
        gain = scores.flatten(1).gather(1, parents * scores.shape[2] + words).masked_fill(was_finished, 0.0)
        self.log_probability = self.log_probability.gather(1, parents) + gain
        self.length = self.length.gather(1, parents) + ~was_finished
        self.is_finished = was_finished | ((words == sep_id) & ~self.log_probability.isneginf())
        family = parents[..., None].expand(-1, -1, position)
        self.words[:, :, :position] = self.words[:, :, :position].gather(1, family)
        self.words[:, :, position] = words.masked_fill(self.is_finished, 0)
        self.writer[:, :, :position] = self.writer[:, :, :position].gather(1, family)

    def is_over(self) -> Tensor:
        """Tell whether nothing of an example can go on, shape ``(R,)``."""
        return (self.is_finished | self.log_probability.isneginf()).all(dim=1)

    def reports(self, length_penalty: float) -> dict[int, Generated]:
        """Make the best hypothesis of each example a report, by its place in the batch."""
        best = (self.log_probability / self.length**length_penalty).argmax(dim=1, keepdim=True)
        words = self.words.gather(1, best[..., None].expand(-1, -1, self.words.shape[2]))[:, 0].tolist()
        columns = [
            values.gather(1, best)[:, 0].tolist() for values in (self.length, self.log_probability, self.is_finished)
        ]
        return {
            example: Generated(ids[: length - is_finished], log_probability, is_finished)
            for example, ids, length, log_probability, is_finished in zip(
                self.examples.tolist(), words, *columns, strict=True
            )
        }


def _step(backbone: MedViLL, cache: KeyValueCache, search: _Search, num_image: int, position: int) -> Tensor:
    """Contextual embedding of the MASK at ``position`` of each hypothesis, shape ``(R, W, d)``.

    Text slots go by position, then by hypothesis. The word kept last takes the slot of the MASK it was predicted from.
    """
    width, device = search.words.shape[1], search.words.device
    first = max(position - 1, 0)
    ids = torch.full_like(search.words[:, :, first : position + 1], backbone.tokenizer.mask_id)
    ids[:, :, :-1] = search.words[:, :, first:position]
    positions = torch.arange(position + 1, device=device).repeat_interleave(width)
    queries = positions[first * width :]
    embedded = _embed_text(backbone, ids.transpose(1, 2).flatten(1), queries)

    rule = may_attend(MaskStrategy.SEQ2SEQ, torch.full_like(queries, TEXT), queries, *_places(num_image, positions))
    is_own = search.writer[:, :, : position + 1, None] == torch.arange(width, device=device)
    is_own = nn.functional.pad(is_own.flatten(2), (num_image, 0), value=True)
    mask = rule & is_own.repeat(1, len(queries) // width, 1)
    hidden: Tensor = backbone.encoder(embedded, mask[:, None], cache, num_image + first * width)
    return hidden[:, -width:]


def _forbidden(backbone: MedViLL, device: torch.device) -> Tensor:
    """True at every token but the ordinary ones and SEP_L, shape ``(V,)``."""
    forbidden = torch.ones(backbone.tokenizer.vocab_size, dtype=torch.bool)
    forbidden[backbone.tokenizer.ordinary_ids] = False
    forbidden[backbone.tokenizer.sep_id] = False
    return forbidden.to(device)


def _allow(log_p: Tensor, forbidden: Tensor, words: Tensor, config: DecodingConfig, sep_id: int) -> Tensor:
    """Set what must not come after ``words``, shape ``(R, W, t)``, to minus infinity in a copy of ``log_p``."""
    scores = log_p.masked_fill(forbidden, -torch.inf)
    size = config.no_repeat_ngram_size
    if words.shape[2] < config.min_new_tokens:
        scores[..., sep_id] = -torch.inf
    if 0 < size <= words.shape[2]:
        ngrams = words.unfold(2, size, 1)
        is_begun = (ngrams[..., :-1] == words[:, :, None, words.shape[2] - size + 1 :]).all(dim=3)
        blocked = torch.zeros_like(scores[..., :1]).expand(ngrams.shape[:-1]).masked_fill(is_begun, -torch.inf)
        scores.scatter_add_(2, ngrams[..., -1], blocked)
        scores[..., sep_id] = scores[..., sep_id].where(~scores.isneginf().all(dim=2), log_p[..., sep_id])
    return scores


def _draw(scores: Tensor, draws: Tensor, config: DecodingConfig) -> Tensor:
    """Draw a word for each row from its scores, shape ``(R, 1, V)``, by a number in ``[0, 1)``; shape ``(R, 1)``."""
    scores = scores[:, 0].double() / config.temperature
    if config.top_k is not None:
        least = scores.topk(min(config.top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = scores.softmax(dim=1)
    if config.top_p is not None:
        ordered = probabilities.sort(dim=1, descending=True).values
        is_kept = ordered.cumsum(dim=1) - ordered < config.top_p
        least = ordered.where(is_kept, 1.0).amin(dim=1, keepdim=True)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    # Summed in the order of the vocabulary, not of probability, so that rounding cannot swap words.
    sums = probabilities.cumsum(dim=1)
    return torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)
