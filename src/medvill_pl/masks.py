"""Self-attention mask strategies: who may attend to whom (MedViLL, Sec. III-C, Fig. 4 and 8)."""

import random
from enum import StrEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SEQ2SEQ_PROBABILITY = 0.75
"""Share of optimizer steps in which bi_seq2seq runs seq2seq (Sec. III-C)."""


MaskName = Literal["bidirectional", "seq2seq", "bar", "non_crossing", "bi_seq2seq"]
"""The values of :class:`MaskStrategy`, for command lines, which take an enum by the names of its members only."""


class MaskStrategy(StrEnum):
    """The self-attention mask schemes of the paper.

    Write I for CLS, the visual tokens and SEP_V, and T for the words and SEP_L (and CLS_L under
    ``non_crossing``):

    ================  ===========  ===========  ===========  ==================
    strategy          I sees I     I sees T     T sees I     T sees T
    ================  ===========  ===========  ===========  ==================
    bidirectional     yes          yes          yes          all
    seq2seq           yes          no           yes          itself and earlier
    bar               yes          yes          yes          itself and earlier
    non_crossing      yes          no           no           all
    bi_seq2seq        seq2seq or bidirectional, drawn anew for every optimizer step
    ================  =========================================================

    Example:
        >>> MaskStrategy("bar") is MaskStrategy.BAR
        True
        >>> MaskStrategy("causal")
        Traceback (most recent call last):
        ValueError: unknown mask strategy 'causal': choose one of bidirectional, seq2seq, bar, non_crossing, bi_seq2seq
    """

    BIDIRECTIONAL = "bidirectional"
    SEQ2SEQ = "seq2seq"
    BAR = "bar"
    NON_CROSSING = "non_crossing"
    BI_SEQ2SEQ = "bi_seq2seq"

    @classmethod
    def _missing_(cls, value: object) -> "MaskStrategy":
        choices = ", ".join(member.value for member in cls)
        raise ValueError(f"unknown mask strategy {value!r}: choose one of {choices}")

    def draw(self, step: int, seed: int = 0) -> "MaskStrategy":
        """Return the strategy of one optimizer step.

        ``bi_seq2seq`` gives seq2seq with probability 0.75 and bidirectional otherwise; every other
        strategy gives itself. The draw is a pure function of its arguments, so all ranks, all
        micro-batches of a step and a resumed run agree without talking to each other.

        Args:
            step: number of the optimizer step, from 0.
            seed: seed of the run.

        Example:
            >>> [MaskStrategy.BI_SEQ2SEQ.draw(step).value for step in range(3, 6)]
            ['seq2seq', 'bidirectional', 'bidirectional']
        """
        if self is not MaskStrategy.BI_SEQ2SEQ:
            return self
        is_seq2seq = random.Random(f"bi_seq2seq/{seed}/{step}").random() < SEQ2SEQ_PROBABILITY
        return MaskStrategy.SEQ2SEQ if is_seq2seq else MaskStrategy.BIDIRECTIONAL


IMAGE, TEXT = 0, 1
"""The two kinds of token: I (CLS, visual tokens, SEP_V) and T (words, SEP_L, CLS_L)."""


class _Rule(NamedTuple):
    """A row of the table above. I always sees I, and T sees T, all of it or only itself and what is earlier."""

    image_sees_text: bool
    text_sees_image: bool
    is_text_causal: bool


_RULES = {
    MaskStrategy.BIDIRECTIONAL: _Rule(image_sees_text=True, text_sees_image=True, is_text_causal=False),
    MaskStrategy.SEQ2SEQ: _Rule(image_sees_text=False, text_sees_image=True, is_text_causal=True),
    MaskStrategy.BAR: _Rule(image_sees_text=True, text_sees_image=True, is_text_causal=True),
    MaskStrategy.NON_CROSSING: _Rule(image_sees_text=False, text_sees_image=False, is_text_causal=False),
}


def may_attend(
    strategy: MaskStrategy | str, query_kind: Tensor, query_position: Tensor, key_kind: Tensor, key_position: Tensor
) -> Tensor:
    """Tell which query may attend to which key: the one rule behind every mask (Eq. 10-14).

    Args:
        strategy: any strategy but ``bi_seq2seq``.
        query_kind: ``IMAGE`` or ``TEXT``, int64, shape ``(Q,)``.
        query_position: position of the query among its kind, int64, shape ``(Q,)``.
        key_kind: as ``query_kind``, shape ``(S,)``.
        key_position: as ``query_position``, shape ``(S,)``.

    Returns:
        True where attention is allowed, bool, shape ``(Q, S)``.

    Raises:
        ValueError: if the strategy is unknown, or is ``bi_seq2seq``.

    Example:
        One token of the image and two of the text ask for the same three:

        >>> kind, position = torch.tensor([IMAGE, TEXT, TEXT]), torch.tensor([0, 0, 1])
        >>> may_attend("bar", kind, position, kind, position).int()
        tensor([[1, 1, 1],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    strategy = MaskStrategy(strategy)
    if strategy is MaskStrategy.BI_SEQ2SEQ:
        raise ValueError("bi_seq2seq has no mask of its own: use MaskStrategy.draw(), which gives each step's strategy")
    if strategy not in _RULES:
        raise ValueError(f"the mask strategy {strategy.value} has no row in the table of rules")
    rule = _RULES[strategy]
    from_text, to_text = (query_kind == TEXT)[:, None], (key_kind == TEXT)[None, :]
    allowed = from_text == to_text
    if rule.image_sees_text:
        allowed = allowed | (~from_text & to_text)
    if rule.text_sees_image:
        allowed = allowed | (from_text & ~to_text)
    if rule.is_text_causal:
        is_later = key_position[None, :] > query_position[:, None]
        allowed = allowed & ~(from_text & to_text & is_later)
    return allowed


def attention_mask(strategy: MaskStrategy | str, *, num_visual: int, text_mask: Tensor) -> Tensor:
    """Attention mask of one strategy over the joint sequence (MedViLL, Sec. III-C, Eq. 7-14).

    The joint sequence is CLS, ``num_visual`` visual tokens, SEP_V, then ``T`` text tokens, so
    ``S = num_visual + 2 + T``. Padding is attended to by nobody; the row of a padded query follows
    the rule of text.

    Args:
        strategy: any strategy but ``bi_seq2seq``.
        num_visual: number of visual tokens K.
        text_mask: True at real text tokens, bool, shape ``(B, T)``. T counts the words and SEP_L,
            and CLS_L under ``non_crossing``. Every row has a real token first, unless T is 0
            (an image without text).

    Returns:
        True where attention is allowed, bool, shape ``(B, 1, S, S)``, on the device of ``text_mask``.

    Raises:
        ValueError: if the strategy is unknown or is ``bi_seq2seq`` (call
            :meth:`MaskStrategy.draw`), if ``num_visual`` is not positive, or if ``text_mask`` is
            not a bool matrix.

    Example:
        >>> mask = attention_mask("seq2seq", num_visual=1, text_mask=torch.tensor([[True, True, False]]))
        >>> mask[0, 0].int()
        tensor([[1, 1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0],
                [1, 1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1, 0]], dtype=torch.int32)
    """
    if num_visual < 1:
        raise ValueError(f"num_visual must be positive, not {num_visual}")
    if text_mask.ndim != 2 or text_mask.dtype != torch.bool:
        raise ValueError(f"text_mask must be bool of shape (B, T), not {text_mask.dtype} {tuple(text_mask.shape)}")
    batch_size, num_text = text_mask.shape
    num_image = num_visual + 2
    index = torch.arange(num_image + num_text, device=text_mask.device)
    kind = (index >= num_image).long() * TEXT
    position = torch.where(kind == TEXT, index - num_image, index)
    rule = may_attend(strategy, kind, position, kind, position)
    is_real = torch.cat([text_mask.new_ones(batch_size, num_image), text_mask], dim=1)
    return rule[None, None] & is_real[:, None, None, :]
