"""Tests of the transformer against the BERT of transformers, and of its cache, attention and recomputation."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import BertConfig, BertModel

from medvill_pl.models.encoder import Encoder, KeyValueCache, Pooler, attention_probabilities
from medvill_pl.models.old_names import rename_weight

LAYERS, WIDTH, HEADS, LENGTH = 3, 32, 4, 9


@pytest.fixture
def bert() -> BertModel:
    """A BERT whose every weight matters, with an epsilon that is seen."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        layer_norm_eps=0.01,
        attn_implementation="eager",
    )
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def encoder(bert: BertModel) -> Encoder:
    """Our encoder with the weights of :func:`bert`."""
    ours = Encoder(LAYERS, WIDTH, HEADS, 48, dropout=0.1, layer_norm_eps=0.01)
    state = {rename_weight(f"encoder.{name}"): tensor for name, tensor in bert.encoder.state_dict().items()}
    ours.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    return ours.eval()


def draw_hidden(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1))


def draw_mask() -> Tensor:
    """Any mask, in which every token sees itself, another one per row."""
    mask = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.5
    return mask | torch.eye(LENGTH, dtype=torch.bool)


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
MASKS = {
    "all": torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool),
    "causal": CAUSAL.expand(2, 1, LENGTH, LENGTH),
    "any": draw_mask(),
}


@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_hidden_states_and_attention_are_those_of_transformers(bert: BertModel, encoder: Encoder, kind: str) -> None:
    hidden, mask = draw_hidden(), MASKS[kind]
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected, probabilities = hidden, []
    for layer in bert.encoder.layer:
        probabilities.append(layer.attention(expected, added)[1])
        expected = layer(expected, added)
    layers: list[Tensor] = []
    actual = encoder(
        hidden, mask, on_attention=lambda query, key, mask: layers.append(attention_probabilities(query, key, mask))
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(layers, probabilities, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pooler_is_that_of_transformers(bert: BertModel) -> None:
    pooler = Pooler(WIDTH)
    pooler.load_state_dict(bert.pooler.state_dict())
    torch.testing.assert_close(pooler(draw_hidden()), bert.pooler(draw_hidden()))


@torch.no_grad()
def test_no_mask_is_a_mask_that_allows_all(encoder: Encoder) -> None:
    torch.testing.assert_close(encoder(draw_hidden(), None), encoder(draw_hidden(), MASKS["all"]))


@pytest.mark.parametrize("parts", [[9], [4, 5], [1] * 9, [3, 1, 4, 1]])
@torch.no_grad()
def test_tokens_in_parts_give_what_they_give_at_once(encoder: Encoder, parts: list[int]) -> None:
    hidden, cache, start, actual = draw_hidden(), KeyValueCache(LAYERS, LENGTH + 3), 0, []
    for length in parts:
        end = start + length
        actual.append(encoder(hidden[:, start:end], CAUSAL[start:end, :end], cache, start))
        start = end
    torch.testing.assert_close(torch.cat(actual, dim=1), encoder(hidden, CAUSAL), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_slot_is_written_anew_and_rows_are_dropped(encoder: Encoder) -> None:
    hidden, other, cache = draw_hidden(), draw_hidden(1), KeyValueCache(LAYERS, LENGTH)
    encoder(hidden, CAUSAL, cache)
    encoder(other, CAUSAL[8:], cache, start=8)  # in place of the last token
    encoder(hidden[:, 8:], CAUSAL[8:], cache, start=8)
    rows = torch.tensor([False, True])
    actual = encoder(hidden[1:, 8:], CAUSAL[8:], cache.select(rows), start=8)
    torch.testing.assert_close(actual, encoder(hidden, CAUSAL)[1:, 8:], rtol=1e-5, atol=1e-5)


def run(encoder: Encoder) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    torch.manual_seed(3)  # of dropout
    hidden = encoder(draw_hidden(), draw_mask())
    hidden.square().sum().backward()
    return hidden.detach(), {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}  # type: ignore[union-attr]


def test_recomputed_activations_give_the_same_gradients(encoder: Encoder) -> None:
    calls: list[None] = []
    encoder.layers[0].expand.register_forward_hook(lambda *_: calls.append(None))
    encoder.train()
    expected, gradients = run(encoder)
    assert len(calls) == 1
    encoder.is_checkpointed = True
    actual, again = run(encoder)
    assert len(calls) == 3, "forward twice, once of it in the backward pass"
    assert torch.equal(actual, expected)
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())


def test_dropout_acts_in_training_alone_on_attention_too(encoder: Encoder) -> None:
    assert torch.equal(encoder(draw_hidden(), CAUSAL), encoder(draw_hidden(), CAUSAL))
    encoder.train()
    for layer in encoder.layers:
        layer.dropout.p = 0.0
    assert not torch.equal(encoder(draw_hidden(), CAUSAL), encoder(draw_hidden(), CAUSAL)), "that of attention"
    for layer in encoder.layers:
        layer.attention_dropout.p = 0.0
    assert torch.equal(encoder(draw_hidden(), CAUSAL), encoder(draw_hidden(), CAUSAL))


def test_compiled_encoder_has_one_graph_for_every_length(encoder: Encoder) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(encoder, backend=counter, fullgraph=True, dynamic=True)
    for length in (5, 7, 8):
        hidden, mask = draw_hidden(length), torch.ones(length, length, dtype=torch.bool).tril()
        assert torch.equal(compiled(hidden, mask), encoder(hidden, mask))
    assert counter.frame_count == 1
