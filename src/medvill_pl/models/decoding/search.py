"""Which token comes next: beam search, sampling, and what must not be written."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.tokenizer import ReportTokenizer


class Generated(NamedTuple):
    """One generated report.

    Attributes:
        ids: its tokens, without SEP_L; ``tokenizer.decode`` makes them text.
        log_probability: what the model gives these tokens, and SEP_L where it was written, in all: the natural
            logarithm, of the model's own probabilities over the whole vocabulary, whatever was forbidden.
        is_finished: whether SEP_L was written; False if the limit came first.

    Example:
        >>> Generated(ids=[17, 4], log_probability=-3.5, is_finished=True).ids
        [17, 4]
    """

    ids: list[int]
    log_probability: float
    is_finished: bool


@dataclass
class Search:
    """Hypotheses of the examples that are not over yet: R examples, W hypotheses each.

    Greedy decoding and sampling are a search with W = 1.

    Attributes:
        examples: row of each example in the batch, shape ``(R,)``.
        tokens: tokens written, then zeros, shape ``(R, W, max_new_tokens)``.
        log_probability: of tokens and SEP_L in all; minus infinity where there is no hypothesis, shape ``(R, W)``.
        length: tokens and SEP_L, shape ``(R, W)``.
        is_finished: whether SEP_L was written, shape ``(R, W)``.
        writer: which of the W wrote the cached token at each position, shape ``(R, W, max_new_tokens)``. A hypothesis
            reads its ancestors' tokens where they lie, so the cache is never reordered.

    Example:
        Two hypotheses over the tokens 0, 1 and the end 2; both of the best go on from the first one:

        >>> search = Search.start(batch_size=1, width=2, max_new_tokens=4, device=torch.device("cpu"))
        >>> scores = torch.tensor([[[0.5, 0.3, 0.2]] * 2]).log()
        >>> parents, tokens = search.best_extensions(scores)
        >>> parents, tokens
        (tensor([[0, 0]]), tensor([[0, 1]]))
        >>> search.extend(0, parents, tokens, scores, sep_id=2)
        >>> search.log_probability.exp()
        tensor([[0.5000, 0.3000]])
    """

    examples: Tensor
    tokens: Tensor
    log_probability: Tensor
    length: Tensor
    is_finished: Tensor
    writer: Tensor

    @classmethod
    def start(cls, batch_size: int, width: int, max_new_tokens: int, device: torch.device) -> "Search":
        """Begin with one empty hypothesis per example."""
        shape = (batch_size, width)
        log_probability = torch.full(shape, -torch.inf, device=device)
        log_probability[:, 0] = 0.0  # all hypotheses begin alike, so one is enough
        return cls(
            examples=torch.arange(batch_size, device=device),
            tokens=torch.zeros(*shape, max_new_tokens, dtype=torch.long, device=device),
            log_probability=log_probability,
            length=torch.zeros(shape, dtype=torch.long, device=device),
            is_finished=torch.zeros(shape, dtype=torch.bool, device=device),
            writer=torch.arange(width, device=device)[:, None].repeat(batch_size, 1, max_new_tokens),
        )

    def select(self, rows: Tensor) -> "Search":
        """Keep the examples where ``rows`` is True, bool, shape ``(R,)``."""
        return Search(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def best_extensions(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the W most probable hypotheses of each example; those that are finished stay.

        Args:
            scores: log-probability of each next token, minus infinity where it is forbidden, shape ``(R, W, V)``.

        Returns:
            The hypothesis that each one goes on from, and its next token, shapes ``(R, W)``.
        """
        totals = self.log_probability[..., None] + scores
        # A finished hypothesis keeps its place among the W: it has one extension, which beats all others. Token 0
        # stands for it, and extend() writes nothing.
        totals.masked_fill_(self.is_finished[..., None], -torch.inf)
        totals[..., 0].masked_fill_(self.is_finished, torch.inf)
        # One topk over all W * V extensions, whatever hypothesis they come from.
        best = totals.flatten(1).topk(totals.shape[1]).indices
        return best // totals.shape[2], best % totals.shape[2]

    def extend(self, position: int, parents: Tensor, tokens: Tensor, scores: Tensor, sep_id: int) -> None:
        """Go on from the parents with the next tokens; with a forbidden one it is a hypothesis no more.

        Args:
            position: of the next tokens.
            parents: the hypothesis that each one goes on from, shape ``(R, W)``.
            tokens: the next tokens, shape ``(R, W)``.
            scores: as :meth:`best_extensions` takes them.
            sep_id: SEP_L.
        """
        was_finished = self.is_finished.gather(1, parents)
        gain = scores.flatten(1).gather(1, parents * scores.shape[2] + tokens).masked_fill(was_finished, 0.0)
        self.log_probability = self.log_probability.gather(1, parents) + gain
        self.length = self.length.gather(1, parents) + ~was_finished
        self.is_finished = was_finished | ((tokens == sep_id) & ~self.log_probability.isneginf())
        # A child inherits what its parent wrote, and where the parent's tokens lie in the cache. Its own token at
        # `position` will be written by the child itself, as `writer` says from the start.
        family = parents[..., None].expand(-1, -1, position)
        self.tokens[:, :, :position] = self.tokens[:, :, :position].gather(1, family)
        self.tokens[:, :, position] = tokens.masked_fill(self.is_finished, 0)
        self.writer[:, :, :position] = self.writer[:, :, :position].gather(1, family)

    def is_over(self) -> Tensor:
        """Whether nothing of an example can go on, bool, shape ``(R,)``."""
        return (self.is_finished | self.log_probability.isneginf()).all(dim=1)

    def reports(self, length_penalty: float) -> dict[int, Generated]:
        """Make the best hypothesis of each example a report, by its row in the batch."""
        best = (self.log_probability / self.length**length_penalty).argmax(dim=1, keepdim=True)
        tokens = self.tokens.gather(1, best[..., None].expand(-1, -1, self.tokens.shape[2]))[:, 0].tolist()
        columns = [
            values.gather(1, best)[:, 0].tolist() for values in (self.length, self.log_probability, self.is_finished)
        ]
        return {
            example: Generated(ids[: length - is_finished], log_probability, is_finished)
            for example, ids, length, log_probability, is_finished in zip(
                self.examples.tolist(), tokens, *columns, strict=True
            )
        }


def forbidden_tokens(tokenizer: ReportTokenizer, device: torch.device) -> Tensor:
    """True at every token but the ordinary ones and SEP_L, bool, shape ``(V,)``.

    Example:
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> tokenizer.tokens(forbidden_tokens(tokenizer, torch.device("cpu")).nonzero().flatten().tolist())
        ['[PAD]', '[UNK]', '[CLS]', '[MASK]']
    """
    forbidden = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    forbidden[tokenizer.ordinary_ids] = False
    forbidden[tokenizer.sep_id] = False
    return forbidden.to(device)


def allow(log_p: Tensor, forbidden: Tensor, tokens: Tensor, config: DecodingConfig, sep_id: int) -> Tensor:
    """Set what must not come next to minus infinity, in a copy.

    Args:
        log_p: log-probability of each next token, shape ``(R, W, V)``.
        forbidden: what is never written, as :func:`forbidden_tokens` gives it.
        tokens: those written so far, shape ``(R, W, t)``.
        config: the shortest length and the n-grams to block.
        sep_id: SEP_L.

    Example:
        After the tokens 1 2 1, a second 2 would repeat the pair 1 2; token 0 is never written:

        >>> log_p, forbidden = torch.full((1, 1, 4), 0.25).log(), torch.tensor([True, False, False, False])
        >>> config = DecodingConfig(no_repeat_ngram_size=2)
        >>> allow(log_p, forbidden, torch.tensor([[[1, 2, 1]]]), config, sep_id=3).exp()
        tensor([[[0.0000, 0.2500, 0.0000, 0.2500]]])
    """
    scores = log_p.masked_fill(forbidden, -torch.inf)
    num_tokens, size = tokens.shape[2], config.no_repeat_ngram_size
    if num_tokens < config.min_new_tokens:
        scores[..., sep_id] = -torch.inf
    if 0 < size <= num_tokens:
        # Of every n-gram so far: if the last n - 1 tokens begin it again, its last token is blocked.
        ngrams = tokens.unfold(2, size, 1)
        is_begun = (ngrams[..., :-1] == tokens[:, :, None, num_tokens - size + 1 :]).all(dim=3)
        blocked = torch.zeros_like(scores[..., :1]).expand(ngrams.shape[:-1]).masked_fill(is_begun, -torch.inf)
        scores.scatter_add_(2, ngrams[..., -1], blocked)
        # Where nothing is left, the report ends.
        scores[..., sep_id] = scores[..., sep_id].where(~scores.isneginf().all(dim=2), log_p[..., sep_id])
    return scores


def draw_numbers(seeds: Tensor, max_new_tokens: int, device: torch.device) -> Tensor:
    """The numbers in ``[0, 1)`` that choose the tokens of each image, float64, shape ``(B, max_new_tokens)``.

    Args:
        seeds: of each image, from 0, int64, shape ``(B,)``; a row follows from its seed alone.
        max_new_tokens: numbers per image.
        device: where they are needed.

    Example:
        >>> numbers = draw_numbers(torch.tensor([7, 3, 7]), max_new_tokens=4, device=torch.device("cpu"))
        >>> numbers.shape, torch.equal(numbers[0], numbers[2])
        (torch.Size([3, 4]), True)
    """
    # float32 numbers stay below 1 when they are multiplied in float64
    draws = [np.random.default_rng(seed).random(max_new_tokens, dtype=np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(draws)).to(device, torch.float64)


def sample(scores: Tensor, numbers: Tensor, config: DecodingConfig) -> Tensor:
    """Draw a token for each row.

    Args:
        scores: log-probability of each next token, shape ``(R, 1, V)``.
        numbers: in ``[0, 1)``, of :func:`draw_numbers`, shape ``(R,)``.
        config: temperature, ``top_k`` and ``top_p``.

    Returns:
        Tokens, int64, shape ``(R, 1)``.

    Example:
        >>> scores = torch.tensor([[[0.1, 0.6, 0.3]]]).log()
        >>> [sample(scores, torch.tensor([u]), DecodingConfig("sample")).item() for u in (0.05, 0.5, 0.9)]
        [0, 1, 2]
        >>> sample(scores, torch.tensor([0.99]), DecodingConfig("sample", top_k=1)).item()
        1
    """
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
    # Summed in the order of the vocabulary, not of probability, so that rounding cannot swap tokens.
    sums = probabilities.cumsum(dim=1)
    return torch.searchsorted(sums, numbers[:, None] * sums[:, -1:], right=True)
