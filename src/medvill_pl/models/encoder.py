"""The transformer: BERT's post-norm layers over masked, fused attention, with an optional key/value cache.

Read from top to bottom: what a layer may keep (cache, attention), the layer, the encoder, the pooler.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

OnAttention = Callable[[Tensor, Tensor, Tensor | None], None]
"""Takes queries, keys and mask of a layer, which :func:`attention_probabilities` turns into probabilities."""


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities (Eq. 8), which the fused kernel does not keep.

    Args:
        query: shape ``(B, heads, Q, d / heads)``.
        key: shape ``(B, heads, S, d / heads)``.
        mask: True where attention is allowed, bool, broadcast to ``(B, heads, Q, S)``; None allows all.

    Returns:
        Rows are queries and sum to 1, float32, shape ``(B, heads, Q, S)``.

    Example:
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> attention_probabilities(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), mask)
        tensor([[[[1.0000, 0.0000],
                  [0.5000, 0.5000]]]])
    """
    scores: Tensor = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


class KeyValueCache:
    """Keys and values of every layer, so that tokens which stay as they are run through the encoder once only.

    Space is taken once, when a layer is first written, in the dtype that the layer computes in.

    Args:
        num_layers: transformer layers.
        num_slots: tokens there is room for.

    Example:
        >>> cache = KeyValueCache(num_layers=1, num_slots=3)
        >>> _ = cache.write(0, 0, key=torch.zeros(1, 1, 2, 4), value=torch.zeros(1, 1, 2, 4))
        >>> key, value = cache.write(0, 2, key=torch.ones(1, 1, 1, 4), value=torch.ones(1, 1, 1, 4))
        >>> key[0, 0, :, 0]
        tensor([0., 0., 1.])
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self._keys: list[Tensor] = [torch.empty(0)] * num_layers
        self._values = list(self._keys)
        self._num_slots = num_slots

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values, shape ``(B, heads, Q, d / heads)``, from slot ``start`` on; return all up to there."""
        if start == 0:
            shape = (*key.shape[:2], self._num_slots, key.shape[3])
            self._keys[layer], self._values[layer] = key.new_empty(shape), value.new_empty(shape)
        end = start + key.shape[2]
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, start:end], values[:, :, start:end] = key, value
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> "KeyValueCache":
        """Keep the rows of the batch where ``rows`` is True, bool, shape ``(B,)``; this cache is used up."""
        for tensors in (self._keys, self._values):
            for layer, tensor in enumerate(tensors):  # one at a time: there may be no room for two caches
                tensors[layer] = tensor[rows]
        return self


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by dropout, residual and LayerNorm (post-norm).

    Args:
        hidden_size: width d.
        num_heads: attention heads.
        intermediate_size: width of the feed-forward network.
        dropout: probability of dropout, of hidden states and of attention.
        layer_norm_eps: epsilon of both LayerNorms.

    Example:
        >>> layer = EncoderLayer(hidden_size=8, num_heads=2, intermediate_size=16, dropout=0.1, layer_norm_eps=1e-12)
        >>> layer(torch.randn(3, 5, 8), mask=None).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float, layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        # The order of these lines is that of the parameters, by which the optimizers' states of checkpoints go.
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, layer_norm_eps)
        self.expand = nn.Linear(hidden_size, intermediate_size)
        self.reduce = nn.Linear(intermediate_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(dropout)  # never called: the fused kernel drops out by its probability

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
        index: int = 0,
        start: int = 0,
        on_attention: OnAttention | None = None,
    ) -> Tensor:
        """Run the layer; see :meth:`Encoder.forward`. ``index`` is the layer's own in the cache."""
        query, key, value = (
            linear(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        if cache is not None:
            # From here on, keys and values are those of all tokens so far, queries those of the new tokens only.
            key, value = cache.write(index, start, key, value)
        if on_attention is not None:
            on_attention(query, key, mask)
        dropout = self.attention_dropout.p if self.attention_dropout.training else 0.0
        context = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        context = self.attention_output(context.transpose(1, 2).flatten(2))
        hidden = self.attention_norm(self.dropout(context) + hidden)
        wide = nn.functional.gelu(self.expand(hidden))
        result: Tensor = self.output_norm(self.dropout(self.reduce(wide)) + hidden)
        return result


class Encoder(nn.Module):
    """BERT's encoder: layers one after the other, under any mask.

    Args:
        num_layers: how many.
        hidden_size: width d.
        num_heads: attention heads per layer.
        intermediate_size: width of the feed-forward networks.
        dropout: probability of dropout, of hidden states and of attention.
        layer_norm_eps: epsilon of every LayerNorm.
        is_checkpointed: compute the layers' activations anew in the backward pass, for less memory.

    Raises:
        ValueError: if the heads do not share the width evenly.

    Example:
        >>> encoder = Encoder(2, hidden_size=8, num_heads=2, intermediate_size=16).eval()
        >>> hidden = torch.randn(3, 5, 8)
        >>> is_causal = torch.ones(5, 5).tril().bool()
        >>> whole = encoder(hidden, is_causal)
        >>> whole.shape
        torch.Size([3, 5, 8])

        With a cache, the last token alone gives what it gives among the others:

        >>> cache = KeyValueCache(num_layers=2, num_slots=5)
        >>> _ = encoder(hidden[:, :4], is_causal[:4, :4], cache)
        >>> last = encoder(hidden[:, 4:], is_causal[4:], cache, start=4)
        >>> torch.allclose(last, whole[:, 4:], atol=1e-6)
        True
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float = 0.0,
        layer_norm_eps: float = 1e-12,
        is_checkpointed: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.layers = nn.ModuleList(
            EncoderLayer(hidden_size, num_heads, intermediate_size, dropout, layer_norm_eps) for _ in range(num_layers)
        )
        self.is_checkpointed = is_checkpointed

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
        start: int = 0,
        on_attention: OnAttention | None = None,
    ) -> Tensor:
        """Embed tokens in context.

        Args:
            hidden: embedded tokens, shape ``(B, Q, d)``.
            mask: True where attention is allowed, bool, broadcast to ``(B, heads, Q, S)``, where S counts the tokens
                up to the last one of ``hidden``; None allows all.
            cache: keeps keys and values; these tokens attend to what it holds before ``start``, and to themselves.
                None if ``hidden`` is the whole sequence.
            start: the slot of the cache that the first token takes.
            on_attention: called with queries, keys and mask of each layer, in order.

        Returns:
            Contextual embeddings, shape ``(B, Q, d)``.
        """
        for index, layer in enumerate(self.layers):
            if self.is_checkpointed and self.training and cache is None and on_attention is None:
                hidden = checkpoint(layer, hidden, mask, use_reentrant=False)
            else:
                hidden = layer(hidden, mask, cache, index, start, on_attention)
        return hidden

    def attention(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Attention probabilities of all layers over embedded tokens, shape ``(B, layers, heads, S, S)``, float32."""
        layers: list[Tensor] = []

        def keep(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
            layers.append(attention_probabilities(query, key, mask))

        self(hidden, mask, on_attention=keep)
        return torch.stack(layers, dim=1)


class Pooler(nn.Module):
    """BERT's pooler: a linear layer and tanh over the first token.

    Args:
        hidden_size: width d.

    Example:
        >>> Pooler(hidden_size=8)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pool contextual embeddings, shape ``(B, S, d)``, to shape ``(B, d)``."""
        return torch.tanh(self.dense(hidden[:, 0]))
