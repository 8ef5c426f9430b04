"""From a report to tokens: the WordPiece tokenizer, and the masking of tokens (MedViLL, Sec. III-B.2, III-B.4)."""

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from torch import Tensor

from medvill_pl.weights import fetch

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 253
"""Tokens of a report that the paper keeps (Sec. IV-B)."""


class ReportTokenizer:
    """BERT's uncased WordPiece tokenizer, without the special tokens, which the backbone adds.

    Attributes:
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        ordinary_ids: every id that may stand for a word: no special and no unused token, int64.

    Example:
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> tokenizer.decode(tokenizer.encode(["No pleural effusion."])[0])
        'no pleural effusion.'
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "a tokenizer") -> None:
        ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        missing = [token for token, index in zip(SPECIAL_TOKENS, ids, strict=True) if index is None]
        if missing:
            raise ValueError(f"{source} has no {missing[0]}: a BERT WordPiece vocabulary is needed")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (i for i in ids if i is not None)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # a report that says "[SEP]" means those letters
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab()
        self.vocab_size = max(vocab.values()) + 1
        ordinary = sorted(i for t, i in vocab.items() if t not in SPECIAL_TOKENS and not t.startswith("[unused"))
        self.ordinary_ids = np.array(ordinary, dtype=np.int64)

    @classmethod
    def load(cls, source: str) -> "ReportTokenizer":
        """Load a tokenizer.

        Args:
            source: ``"synthetic"`` (the words of the embedded corpus), a ``vocab.txt`` (one token per
                line), a ``tokenizer.json``, a folder with either, a name on the Hugging Face hub,
                or the text that :meth:`to_json` gave.

        Raises:
            FileNotFoundError: if there is no such file, or the hub is out of reach.
            ValueError: if the file is no BERT WordPiece vocabulary.
        """
        if source.startswith("{"):
            try:
                return cls(Tokenizer.from_str(source), "the embedded tokenizer")
            except Exception as error:  # tokenizers raises bare Exception for broken text
                raise ValueError(f"the embedded tokenizer cannot be read: {error}") from error
        if source == "synthetic":
            words = resources.files("medvill_pl").joinpath("synthetic", "vocab.txt").read_text(encoding="utf-8")
            return cls.from_vocab(words.split("\n")[:-1])
        path = fetch(source, ("tokenizer.json", "vocab.txt"), "tokenizer")
        try:
            if path.suffix == ".json":
                return cls(Tokenizer.from_file(str(path)), str(path))
            return cls.from_vocab(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"tokenizer: {path} cannot be read: {error}") from error
        except ValueError:
            raise
        except Exception as error:  # tokenizers raises bare Exception for a broken file
            raise ValueError(f"tokenizer: {path} cannot be read: {error}") from error

    @classmethod
    def from_vocab(cls, tokens: Sequence[str], source: str = "the vocabulary") -> "ReportTokenizer":
        """Make a tokenizer from a list of tokens; a token's id is its position in the list."""
        vocab = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise ValueError(f"{source} has no {missing[0]}: a BERT WordPiece vocabulary is needed, one token per line")
        return cls(BertWordPieceTokenizer(vocab)._tokenizer, source)

    @classmethod
    def train(cls, reports: Iterable[str], vocab_size: int = 30522, min_frequency: int = 2) -> "ReportTokenizer":
        """Learn a WordPiece vocabulary from reports.

        Raises:
            ValueError: if there is no text to learn from.
        """
        trainer, reports = BertWordPieceTokenizer(), list(reports)
        # Every letter that goes on a word is given beforehand: the trainer would number them anew in every run.
        letters = {letter for report in reports for letter in trainer.normalizer.normalize_str(report)} - {" "}
        trainer.train_from_iterator(
            iter(reports),
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[*SPECIAL_TOKENS, *sorted(f"##{letter}" for letter in letters)],
            show_progress=False,
        )
        by_id = sorted(trainer.get_vocab().items(), key=lambda item: item[1])
        if len(by_id) <= len(SPECIAL_TOKENS):
            raise ValueError("there is no text to learn a vocabulary from")
        return cls.from_vocab([token for token, _ in by_id])

    def encode(self, reports: Sequence[str]) -> list[list[int]]:
        """Turn reports into ids of tokens, without CLS and SEP."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(reports), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; special tokens are left out."""
        return self._tokenizer.decode(list(ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Turn each id into its token, as the vocabulary writes it."""
        return [self._tokenizer.id_to_token(int(i)) or "[UNK]" for i in ids]

    def to_json(self) -> str:
        """Everything that :meth:`load` needs to make an equal tokenizer."""
        return self._tokenizer.to_str()

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``vocab.txt``, as ``transformers`` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        config = '{"tokenizer_class": "BertTokenizerFast", "do_lower_case": true, "model_max_length": 512}\n'
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
        by_id = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReportTokenizer) and self._tokenizer.get_vocab() == other._tokenizer.get_vocab()

    __hash__ = None  # type: ignore[assignment]


class MaskedTokens(NamedTuple):
    """A batch whose tokens are partly masked.

    Attributes:
        input_ids: ids with the chosen tokens replaced, int64, shape ``(B, T)``.
        positions: chosen positions to predict, as indices into the flattened ``(B * T)`` batch, int64, shape ``(M,)``.
        targets: the tokens that stood there, int64, shape ``(M,)``.

    Example:
        >>> masked = MaskedTokens(torch.tensor([[9, 4, 3]]), positions=torch.tensor([1]), targets=torch.tensor([7]))
        >>> masked.input_ids.flatten()[masked.positions], masked.targets
        (tensor([4]), tensor([7]))
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor


def mask_tokens(
    input_ids: Tensor,
    text_mask: Tensor,
    seeds: Tensor,
    tokenizer: ReportTokenizer,
    predicted_rows: Tensor,
    probability: float = 0.15,
    ends: Tensor | None = None,
) -> MaskedTokens:
    """Mask tokens for masked language modelling (MedViLL, Sec. III-B.4; BERT's 80/10/10 rule).

    Of each report, ``probability`` of the tokens are chosen, at least one; special tokens and padding never are. A
    chosen token becomes MASK (80 %), a random ordinary token (10 %) or stays (10 %). All rows are masked, so that
    MASKs do not tell matching from non-matching pairs.

    Args:
        input_ids: tokens and SEP_L of each report, int64, shape ``(B, T)``, on the CPU.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        seeds: seed of each row, int64, shape ``(B,)``; a row's draw depends on nothing else.
        tokenizer: knows the special and the ordinary tokens.
        predicted_rows: True where the masked tokens are to be predicted, bool, shape ``(B,)``.
        probability: share of tokens to choose, 0 to 1.
        ends: True where SEP_L is the true end of the report, bool, shape ``(B,)``: in half of these it is
            masked and to be predicted too, as report generation needs. None never masks it.

    Example:
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> ids = torch.tensor([[*tokenizer.encode(["No pleural effusion."])[0], tokenizer.sep_id]])
        >>> masked = mask_tokens(ids, ids > 0, torch.tensor([3]), tokenizer, predicted_rows=torch.tensor([True]))
        >>> tokenizer.tokens(masked.input_ids[0]), tokenizer.tokens(masked.targets)
        (['[MASK]', 'pleural', 'effusion', '.', '[SEP]'], ['no'])
    """
    ids: NDArray[np.int64] = input_ids.numpy()
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    is_ordinary = text_mask.numpy() & ~np.isin(ids, special)
    chosen = np.zeros_like(is_ordinary)
    masked = ids.copy()
    for row, seed in enumerate(seeds.tolist()):
        candidates = np.flatnonzero(is_ordinary[row])
        if len(candidates) == 0:
            continue
        rng = np.random.default_rng(seed)
        chosen[row] = _mask_row(masked[row], candidates, probability, tokenizer, rng)
        if ends is not None and ends[row] and rng.random() < 0.5:
            end = int(text_mask[row].sum()) - 1
            chosen[row, end], masked[row, end] = True, tokenizer.mask_id
    positions = np.flatnonzero(chosen & predicted_rows.numpy()[:, None])
    return MaskedTokens(
        torch.from_numpy(masked), torch.from_numpy(positions), torch.from_numpy(ids.reshape(-1)[positions])
    )


def _mask_row(
    ids: NDArray[np.int64],
    candidates: NDArray[np.intp],
    probability: float,
    tokenizer: ReportTokenizer,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Mask a report in place, by two numbers per candidate: is it chosen, and what becomes of it."""
    draw, fate = rng.random((2, len(candidates)))
    is_chosen = draw < probability
    if not is_chosen.any():
        is_chosen[draw.argmin()] = True
    positions, fate = candidates[is_chosen], fate[is_chosen]
    ids[positions[fate < 0.8]] = tokenizer.mask_id
    at_random = positions[(fate >= 0.8) & (fate < 0.9)]
    ids[at_random] = rng.choice(tokenizer.ordinary_ids, size=len(at_random))
    chosen = np.zeros(len(ids), dtype=np.bool_)
    chosen[positions] = True
    return chosen


class InputSpec(NamedTuple):
    """What a model reads, which its data must agree with.

    Attributes:
        tokenizer: turns texts into the ids that the model knows.
        image_size: side of the square images, in pixels.
        max_tokens: longest text in tokens, without SEP_L.

    Example:
        >>> spec = InputSpec(ReportTokenizer.load("synthetic"), image_size=128, max_tokens=120)
        >>> spec.image_size
        128
    """

    tokenizer: ReportTokenizer
    image_size: int
    max_tokens: int
