"""Report embedding and language-modelling head (MedViLL, Sec. III-B.2, III-B.4)."""

import torch
from torch import Tensor, nn


class ReportEmbedding(nn.Module):
    """Word, position and semantic embedding of the text (MedViLL, Eq. 4).

    Args:
        vocab_size: tokens of the vocabulary.
        max_tokens: longest text, in tokens with SEP_L.
        hidden_size: width d.
    """

    def __init__(self, vocab_size: int, max_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Parameter(torch.empty(max_tokens, hidden_size))
        self.semantic = nn.Parameter(torch.empty(hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed tokens; positions count from 0 at the first word.

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
    """BERT's head for masked words; its output matrix is the word embedding.

    Args:
        hidden_size: width d.
        vocab_size: tokens of the vocabulary.
        layer_norm_eps: epsilon of the head's LayerNorm.
    """

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_embedding: Tensor) -> Tensor:
        """Score every word at the given places.

        Args:
            hidden: contextual embeddings of the places to predict, shape ``(M, d)``.
            word_embedding: the embedding matrix, shape ``(V, d)``.

        Returns:
            Vocabulary logits, shape ``(M, V)``.
        """
        hidden = self.norm(nn.functional.gelu(self.dense(hidden)))
        return nn.functional.linear(hidden, word_embedding, self.bias)
