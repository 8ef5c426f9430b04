"""Report embedding and language-modelling head (MedViLL, Sec. III-B.2, III-B.4)."""

import torch
from torch import Tensor, nn

from medvill_pl.tokenizer import ReportTokenizer


class ReportEmbedding(nn.Module):
    """Word, position and semantic embedding of the text (MedViLL, Eq. 4).

    Args:
        vocab_size: tokens of the vocabulary.
        max_tokens: longest text, in tokens with SEP_L.
        hidden_size: width d.

    Example:
        >>> ReportEmbedding(vocab_size=10, max_tokens=5, hidden_size=8)(torch.tensor([[7, 3]])).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, vocab_size: int, max_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Parameter(torch.empty(max_tokens, hidden_size))
        self.semantic = nn.Parameter(torch.empty(hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed tokens; positions count from 0 at the first token of the report.

        Args:
            input_ids: int64, shape ``(B, T)``.

        Returns:
            Text tokens, shape ``(B, T, d)``.

        Raises:
            ValueError: if the text is longer than the table of positions.
        """
        length = input_ids.shape[1]
        if length > len(self.position):
            raise ValueError(
                f"a text of {length} tokens (with SEP) is longer than the {len(self.position)} of this model"
            )
        embedded: Tensor = self.word(input_ids) + self.position[:length] + self.semantic
        return embedded


class LanguageModellingHead(nn.Module):
    """BERT's head for masked tokens; its output matrix is the word embedding.

    Args:
        hidden_size: width d.
        vocab_size: tokens of the vocabulary.
        layer_norm_eps: epsilon of the head's LayerNorm.

    Example:
        >>> head = LanguageModellingHead(hidden_size=8, vocab_size=10, layer_norm_eps=1e-5)
        >>> head(torch.randn(3, 8), word_embedding=torch.randn(10, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_embedding: Tensor) -> Tensor:
        """Score every token at the given positions.

        Args:
            hidden: contextual embeddings of the positions to predict, shape ``(M, d)``.
            word_embedding: the embedding matrix, shape ``(V, d)``.

        Returns:
            Vocabulary logits, shape ``(M, V)``.
        """
        hidden = self.norm(nn.functional.gelu(self.dense(hidden)))
        return nn.functional.linear(hidden, word_embedding, self.bias)


def check_end(input_ids: Tensor, text_mask: Tensor, tokenizer: ReportTokenizer) -> None:
    """Refuse a text that does not end with SEP_L or MASK, where this needs no wait for a device.

    On a GPU, and while a model is compiled, nothing is checked: what the data modules give always ends.

    Args:
        input_ids: tokens, then padding, int64, shape ``(B, T)``.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        tokenizer: knows SEP and MASK.

    Raises:
        ValueError: if the last real token of a row is neither.

    Example:
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> ids = torch.tensor(tokenizer.encode(["No edema."]))
        >>> check_end(ids, torch.ones_like(ids).bool(), tokenizer)
        Traceback (most recent call last):
        ValueError: the text of row 0 has no closing SEP: append tokenizer.sep_id to its ids
    """
    is_known = input_ids.shape == text_mask.shape and text_mask.dtype == torch.bool  # else attention_mask() complains
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or not input_ids.numel() or not is_known:
        return
    last = text_mask.sum(dim=1, keepdim=True) - 1
    ends = input_ids.gather(1, last.clamp(min=0))[:, 0]
    is_open = ((ends != tokenizer.sep_id) & (ends != tokenizer.mask_id)) | (last[:, 0] < 0)
    if is_open.any():
        row = int(is_open.nonzero()[0])
        raise ValueError(f"the text of row {row} has no closing SEP: append tokenizer.sep_id to its ids")
