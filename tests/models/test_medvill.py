"""Tests of the joint encoder: what reaches what, against plain attention, and how it is saved and shared."""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertTokenizerFast

from medvill_pl import MedViLL
from medvill_pl.masks import MaskStrategy
from medvill_pl.models.flops import forward_flops
from medvill_pl.models.medvill import BackboneConfig, BackboneOutput

STRATEGIES = ("bidirectional", "seq2seq", "bar", "non_crossing")
NUM_VISUAL = 16

Inputs = dict[str, Tensor]


def redraw(backbone: MedViLL, std: float = 0.3) -> MedViLL:
    """Give every weight of the transformer a value that matters: zero biases would hide their loss."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if not name.startswith("image_encoder."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return backbone


@pytest.fixture
def make_backbone(tiny: BackboneConfig) -> Callable[..., MedViLL]:
    """Build a tiny backbone in evaluation mode: ``make_backbone(num_layers=1)``."""

    def make(**arguments: Any) -> MedViLL:
        torch.manual_seed(0)
        return redraw(MedViLL(**(tiny | arguments))).eval()

    return make


def make_inputs(backbone: MedViLL, lengths: tuple[int, ...] = (5, 7), width: int | None = None) -> Inputs:
    """Images and texts of so many tokens, SEP_L among them; the same texts at every width."""
    generator = torch.Generator().manual_seed(2)
    width = width or max(lengths)
    ids = torch.full((len(lengths), width), backbone.tokenizer.pad_id)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, backbone.tokenizer.vocab_size, (length,), generator=generator)
        ids[row, length - 1] = backbone.tokenizer.sep_id
    images = torch.rand(len(lengths), 1, 64, 64, generator=generator)
    return {"images": images, "input_ids": ids, "text_mask": torch.arange(width) < torch.tensor(lengths)[:, None]}


# --- who hears of a change: two rows, of 4 words + SEP_L + 2 x padding and of 7 tokens; only the first is changed

IMAGE_PARTS = {"cls", *(f"v{position}" for position in range(NUM_VISUAL))}
EVERYTHING = {"pooled", *IMAGE_PARTS, "t0", "t1", "t2", "t3", "t4"}


def parts(output: BackboneOutput, row: int = 0, length: int = 5) -> dict[str, Tensor]:
    return {
        "pooled": output.pooled[row],
        "cls": output.cls[row],
        **{f"v{position}": token for position, token in enumerate(output.visual[row])},
        **{f"t{position}": token for position, token in enumerate(output.text[row, :length])},
    }


def change_word(inputs: Inputs) -> None:
    inputs["input_ids"][0, 2] += 1


def change_padding(inputs: Inputs) -> None:
    inputs["input_ids"][0, 5:] = torch.tensor([17, 23])


def change_image(inputs: Inputs) -> None:
    inputs["visual_tokens"][0] += torch.rand(NUM_VISUAL, 1)


def change_patch(inputs: Inputs) -> None:
    inputs["visual_tokens"][0, 5] += torch.arange(32) % 3


LATER = {"t2", "t3", "t4"}
REACHED = [
    ("bidirectional", 1, change_word, EVERYTHING),
    ("bidirectional", 2, change_word, EVERYTHING),
    ("seq2seq", 1, change_word, LATER),
    ("seq2seq", 2, change_word, LATER),
    ("bar", 1, change_word, {"pooled"} | IMAGE_PARTS | LATER),
    ("bar", 2, change_word, EVERYTHING),  # a later word reaches an earlier one through the image rows
    ("non_crossing", 1, change_word, {"pooled", "t0", "t1", "t2", "t3", "t4"}),
    ("non_crossing", 2, change_word, {"pooled", "t0", "t1", "t2", "t3", "t4"}),
    *[
        (strategy, layers, change, EVERYTHING)
        for strategy in ("bidirectional", "seq2seq", "bar")
        for layers in (1, 2)
        for change in (change_image, change_patch)
    ],
    *[("non_crossing", 2, change, {"pooled"} | IMAGE_PARTS) for change in (change_image, change_patch)],
    *[(strategy, 2, change_padding, set()) for strategy in STRATEGIES],
]


@pytest.mark.parametrize(("strategy", "layers", "change", "reached"), REACHED)
@torch.no_grad()
def test_a_change_reaches_exactly_these_tokens(
    make_backbone: Callable[..., MedViLL],
    strategy: str,
    layers: int,
    change: Callable[[Inputs], None],
    reached: set[str],
) -> None:
    backbone = make_backbone(num_layers=layers)
    inputs = make_inputs(backbone)
    inputs["visual_tokens"] = backbone.encode_image(inputs.pop("images"))
    before = backbone(**inputs, mask_strategy=strategy)
    change(inputs)
    after = backbone(**inputs, mask_strategy=strategy)
    old, new = parts(before), parts(after)
    assert {name for name in EVERYTHING if not torch.equal(old[name], new[name])} == reached
    neighbour = [parts(output, row=1, length=7) for output in (before, after)]
    assert all(torch.equal(neighbour[0][name], neighbour[1][name]) for name in neighbour[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_other_pixels_reach_what_other_visual_tokens_reach(backbone: MedViLL, strategy: str) -> None:
    inputs = make_inputs(backbone)
    old = parts(backbone(**inputs, mask_strategy=strategy))
    inputs["images"][0] = 1 - inputs["images"][0]
    new = parts(backbone(**inputs, mask_strategy=strategy))
    reached = {"pooled"} | IMAGE_PARTS if strategy == "non_crossing" else EVERYTHING
    assert {name for name in EVERYTHING if not torch.equal(old[name], new[name])} == reached


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_a_row_of_a_batch_gives_what_it_gives_alone(backbone: MedViLL, strategy: str) -> None:
    inputs = make_inputs(backbone, lengths=(5, 1, 9), width=14)
    together = backbone(**inputs, mask_strategy=strategy)
    for row, length in enumerate((5, 1, 9)):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        one["input_ids"], one["text_mask"] = one["input_ids"][:, :length], one["text_mask"][:, :length]
        alone = parts(backbone(**one, mask_strategy=strategy), length=length)
        for name, value in parts(together, row, length).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-5)


# --- against plain attention


def rule(strategy: str, is_text: list[bool], is_real: list[bool]) -> Tensor:
    """The mask, cell by cell, as the paper's table has it."""
    size = len(is_text)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            crosses, is_causal = is_text[query] != is_text[key], strategy in ("seq2seq", "bar")
            if crosses:
                mask[query, key] = {
                    "bidirectional": True,
                    "bar": True,
                    "seq2seq": is_text[query],
                    "non_crossing": False,
                }[strategy]
            else:
                mask[query, key] = key <= query if is_text[query] and is_causal else True
            mask[query, key] &= is_real[key]
    return mask


def normed(x: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def plain_bert(
    joint: Tensor, mask: Tensor, weights: dict[str, Tensor], layers: int, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """BERT's encoder over one sequence, written out: hidden states ``(S, d)``, attention ``(layers, heads, S, S)``."""
    x, attention = normed(joint, weights, "embedding_norm", eps), []
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        q, k, v = (linear(x, weights, f"{name}.{part}") for part in ("query", "key", "value"))
        outputs, probabilities = [], []
        for head in range(heads):
            width = q.shape[1] // heads
            own = slice(head * width, (head + 1) * width)
            scores = q[:, own] @ k[:, own].T / math.sqrt(width)
            exponents = torch.where(mask, scores.exp(), 0)
            probabilities.append(exponents / exponents.sum(dim=1, keepdim=True))
            outputs.append(probabilities[-1] @ v[:, own])
        attention.append(torch.stack(probabilities))
        mixed = linear(torch.cat(outputs, dim=1), weights, f"{name}.attention_output")
        x = normed(x + mixed, weights, f"{name}.attention_norm", eps)
        inner = linear(x, weights, f"{name}.expand")
        inner = inner * 0.5 * (1 + torch.special.erf(inner / math.sqrt(2)))
        x = normed(x + linear(inner, weights, f"{name}.reduce"), weights, f"{name}.output_norm", eps)
    return x, torch.stack(attention)


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_outputs_and_attention_are_those_of_plain_attention(
    make_backbone: Callable[..., MedViLL], strategy: str
) -> None:
    eps = 0.05  # large, to see that it is used
    backbone = make_backbone(num_heads=4, layer_norm_eps=eps).double()
    inputs = make_inputs(backbone)
    inputs["images"] = inputs["images"].double()
    output = backbone(**inputs, mask_strategy=strategy)
    attention = backbone.attention_weights(**inputs, mask_strategy=strategy)

    weights = backbone.state_dict()
    visual = backbone.encode_image(inputs["images"])
    words, semantic = weights["report_embedding.word.weight"], weights["report_embedding.semantic"]
    cls, sep = words[backbone.tokenizer.cls_id], words[backbone.tokenizer.sep_id]
    has_text_cls = strategy == "non_crossing"
    for row in range(2):
        text = words[inputs["input_ids"][row]] + weights["report_embedding.position"][:7] + semantic
        is_real = [True] * (NUM_VISUAL + 2) + inputs["text_mask"][row].tolist()
        if has_text_cls:
            text = torch.cat([(cls + weights["text_cls_position_embedding"] + semantic)[None], text])
            is_real.insert(NUM_VISUAL + 2, True)
        joint = torch.cat(
            [
                (cls + weights["cls_position_embedding"])[None],
                visual[row],
                (sep + weights["sep_position_embedding"])[None],
                text,
            ]
        )
        mask = rule(strategy, [False] * (NUM_VISUAL + 2) + [True] * len(text), is_real)
        hidden, probabilities = plain_bert(joint, mask, weights, layers=2, heads=4, eps=eps)

        pooled = torch.tanh(linear(hidden[0], weights, "pooler.dense"))
        if has_text_cls:
            pooled = pooled * torch.tanh(linear(hidden[NUM_VISUAL + 2], weights, "pooler.dense"))
        for actual, expected in [
            (output.pooled[row], pooled),
            (output.cls[row], hidden[0]),
            (output.visual[row], hidden[1 : NUM_VISUAL + 1]),
            (output.text[row], hidden[NUM_VISUAL + 2 + has_text_cls :]),
        ]:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

        torch.testing.assert_close(attention[row], probabilities.float(), rtol=1e-5, atol=1e-6)
        assert (attention[row][..., ~mask] == 0).all()
        assert (attention[row][..., mask] > 0).all()
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))


def test_attention_of_a_text_without_end_is_refused(backbone: MedViLL) -> None:
    inputs = make_inputs(backbone)
    inputs["text_mask"][0, 4] = False  # its SEP
    with pytest.raises(ValueError, match="row 0 has no closing SEP"):
        backbone.attention_weights(**inputs)


@torch.no_grad()
def test_a_text_that_is_being_written_ends_with_a_mask(backbone: MedViLL) -> None:
    inputs = make_inputs(backbone)
    inputs["input_ids"][0, 4] = backbone.tokenizer.mask_id
    assert backbone(**inputs, mask_strategy="seq2seq").text.isfinite().all()


def test_modes_are_left_as_they_were_also_after_an_error(backbone: MedViLL) -> None:
    backbone.train().encoder.layers[0].eval()
    before = [module.training for module in backbone.modules()]
    inputs = make_inputs(backbone)
    backbone.attention_weights(**inputs)
    assert [module.training for module in backbone.modules()] == before
    with pytest.raises(ValueError, match="text_mask"):
        backbone.attention_weights(**(inputs | {"text_mask": torch.ones(2, 7)}))
    assert [module.training for module in backbone.modules()] == before


def test_attention_weights_leave_a_training_backbone_as_it_was(backbone: MedViLL) -> None:
    inputs = make_inputs(backbone)
    expected = backbone.attention_weights(**inputs)
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert torch.equal(backbone.attention_weights(**inputs), expected), "no dropout"
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    after = backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# --- inputs and outputs


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_kept_visual_tokens_are_as_good_as_images(backbone: MedViLL, strategy: str) -> None:
    inputs = make_inputs(backbone)
    expected = backbone(**inputs, mask_strategy=strategy)
    tokens = backbone.encode_image(inputs.pop("images"))
    output = backbone(**inputs, visual_tokens=tokens, mask_strategy=MaskStrategy(strategy))
    assert all(torch.equal(*pair) for pair in zip(output, expected, strict=True))
    assert [tuple(part.shape) for part in output] == [(2, 32), (2, 32), (2, NUM_VISUAL, 32), (2, 7, 32)]


@torch.no_grad()
def test_bytes_and_unit_floats_are_the_same_picture(backbone: MedViLL) -> None:
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    assert torch.equal(backbone.encode_image(pixels), backbone.encode_image(pixels.float() / 255))


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_image_without_text(backbone: MedViLL, strategy: str) -> None:
    ids = torch.zeros(2, 0, dtype=torch.int64)
    images = torch.rand(2, 1, 64, 64)
    output = backbone(images=images, input_ids=ids, text_mask=ids.bool(), mask_strategy=strategy)
    assert output.text.shape == (2, 0, 32)
    assert output.pooled.isfinite().all()


@torch.no_grad()
def test_only_non_crossing_has_a_cls_of_the_text(make_backbone: Callable[..., MedViLL]) -> None:
    backbone = make_backbone()
    inputs = make_inputs(backbone)
    before = {strategy: backbone(**inputs, mask_strategy=strategy) for strategy in STRATEGIES}
    backbone.text_cls_position_embedding += torch.rand(32)
    for strategy in STRATEGIES:
        old, new = parts(before[strategy]), parts(backbone(**inputs, mask_strategy=strategy))
        changed = {name for name in EVERYTHING if not torch.equal(old[name], new[name])}
        assert changed == (EVERYTHING - IMAGE_PARTS if strategy == "non_crossing" else set())


@torch.no_grad()
def test_sampled_visual_tokens_are_some_of_all_in_their_order(make_backbone: Callable[..., MedViLL]) -> None:
    backbone = make_backbone()
    images = make_inputs(backbone, lengths=(1,) * 6)["images"]
    everything = backbone.encode_image(images)
    torch.manual_seed(0)
    sampled = backbone.encode_image(images, num_sampled=11)
    assert sampled.shape == (6, 11, 32)
    distances, position = torch.cdist(sampled, everything).topk(2, dim=2, largest=False)
    assert (distances[..., 0] < 1e-3).all()
    assert (distances[..., 1] > 1e-2).all(), "no two positions look the same"
    position = position[..., 0]
    assert (position.diff(dim=1) > 0).all()
    assert len(set(map(tuple, position.tolist()))) == 6, "a draw for each image"
    assert torch.equal(backbone.encode_image(images, num_sampled=NUM_VISUAL), everything)
    output = backbone(
        visual_tokens=sampled,
        input_ids=torch.full((6, 1), backbone.tokenizer.sep_id),
        text_mask=torch.ones(6, 1, dtype=torch.bool),
    )
    assert output.visual.shape == (6, 11, 32)


def test_word_embedding_is_the_mlm_heads_matrix(backbone: MedViLL) -> None:
    redraw(backbone)
    hidden = torch.randn(3, 32)
    logits = backbone.mlm_logits(hidden)
    assert logits.shape == (3, backbone.tokenizer.vocab_size)
    logits.sum().backward()
    gradient = backbone.report_embedding.word.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).all(), "each word's vector learns"
    with torch.no_grad():
        backbone.report_embedding.word.weight[9] += 1.0
    changed = (backbone.mlm_logits(hidden) != logits).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [9]


@pytest.mark.parametrize(("num_sampled", "num_text"), [(None, 7), (11, 20), (99, 1)])
@torch.no_grad()
def test_flops_are_those_that_torch_counts(backbone: MedViLL, num_sampled: int | None, num_text: int) -> None:
    ids = torch.full((1, num_text), backbone.tokenizer.sep_id)
    backbone.pooler = nn.Identity()  # which is not counted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tokens = backbone.encode_image(torch.rand(1, 1, 64, 64), num_sampled)
        backbone(visual_tokens=tokens, input_ids=ids, text_mask=ids.bool())
    assert forward_flops(backbone, num_sampled, num_text) == counter.get_total_flops()


# --- arguments


def test_defaults_are_the_papers() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(MedViLL).parameters.items()}
    paper = {
        "image_encoder": "resnet50",
        "image_size": 512,
        "tokenizer": "bert-base-uncased",
        "max_tokens": 253,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": 3072,
        "dropout": 0.1,
        "layer_norm_eps": 1e-12,
        "mlm_layer_norm_eps": 1e-5,
        "freeze_image_encoder_stages": 0,
    }
    assert {name: defaults[name] for name in paper} == paper


def test_backbone_config_is_the_constructors_signature() -> None:
    arguments = inspect.get_annotations(MedViLL.__init__)
    del arguments["return"]
    assert inspect.get_annotations(BackboneConfig) == arguments
    assert BackboneConfig.__required_keys__ == frozenset()


def set_to(name: str, value: object) -> Callable[[Inputs], None]:
    return lambda inputs: inputs.__setitem__(name, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (set_to("input_ids", torch.zeros(2, 122).long()), r"122 tokens .*longer than the 121"),
        (set_to("images", torch.rand(2, 1, 64, 48)), r"\(B, 1, 64, 64\), not \(2, 1, 64, 48\)"),
        (set_to("images", torch.rand(2, 3, 64, 64)), r"\(B, 1, 64, 64\), not \(2, 3, 64, 64\)"),
        (set_to("images", torch.rand(1, 64, 64)), r"\(B, 1, 64, 64\), not \(1, 64, 64\)"),
        (set_to("visual_tokens", torch.rand(2, 16, 32)), "either images or visual_tokens"),
        (set_to("images", None), "either images or visual_tokens"),
        (set_to("mask_strategy", "bi_seq2seq"), r"draw\(\)"),
        (set_to("mask_strategy", "causal"), "choose one of bidirectional"),
        (set_to("text_mask", torch.ones(2, 7)), "text_mask must be bool"),
        (lambda inputs: inputs["input_ids"][1].fill_(9), r"^the text of row 1 has no closing SEP: append"),
        (lambda inputs: inputs["text_mask"][0].fill_(False), r"^the text of row 0 has no closing SEP: append"),
        (set_to("images", torch.full((2, 1, 64, 64), 2.0)), r"must be in 0\.\.1, not 2\.\.2"),
    ],
)
def test_wrong_inputs_are_refused(backbone: MedViLL, spoil: Callable[[Inputs], None], message: str) -> None:
    inputs = make_inputs(backbone)
    spoil(inputs)
    with pytest.raises(ValueError, match=message):
        backbone(**inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 72}, "image_size must be a multiple of 16 for resnet_tiny, not 72"),
        ({"image_size": 0}, "image_size must be a multiple of 16 for resnet_tiny, not 0"),
        ({"image_encoder": "resnet18", "image_size": 48}, "image_size must be a multiple of 32 for resnet18, not 48"),
        ({"num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
        ({"freeze_image_encoder_stages": 5}, "freeze_image_encoder_stages must be 0 to 4"),
        ({"image_encoder": "vgg16"}, "unknown image encoder 'vgg16'"),
    ],
)
def test_wrong_arguments_are_refused(tiny: BackboneConfig, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedViLL(**(tiny | arguments))


# --- options of training


def train_step(backbone: MedViLL) -> tuple[float, dict[str, Tensor]]:
    backbone.train()
    backbone.zero_grad()
    torch.manual_seed(3)
    output = backbone(**make_inputs(backbone), mask_strategy="bar")
    loss = output.pooled.sum() + output.text.square().mean() + backbone.mlm_logits(output.text[:, 0]).logsumexp(1).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def test_gradient_checkpointing_changes_nothing_but_memory(make_backbone: Callable[..., MedViLL]) -> None:
    plain, saving = make_backbone(), make_backbone(gradient_checkpointing=True)
    calls = {id(plain): 0, id(saving): 0}
    for backbone in (plain, saving):

        def count(*_: object, backbone: MedViLL = backbone) -> None:
            calls[id(backbone)] += 1

        backbone.encoder.layers[0].expand.register_forward_hook(count)
    loss, gradients = train_step(plain)  # with dropout
    saving_loss, saving_gradients = train_step(saving)
    assert saving_loss == loss
    assert saving_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(saving_gradients[name], gradient)
    assert (calls[id(plain)], calls[id(saving)]) == (1, 2), "the activations are computed again"


def test_every_weight_learns_under_the_strategy_that_uses_it(make_backbone: Callable[..., MedViLL]) -> None:
    backbone = make_backbone()
    _, gradients = train_step(backbone)
    unused = {name for name, _ in backbone.named_parameters()} - gradients.keys()
    assert unused == {"text_cls_position_embedding"}


@torch.no_grad()
def test_channels_last_gives_close_outputs(make_backbone: Callable[..., MedViLL]) -> None:
    plain, fast = (make_backbone(image_encoder="resnet_small", channels_last=is_fast) for is_fast in (False, True))
    inputs = make_inputs(plain)
    for expected, actual in zip(plain(**inputs), fast(**inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    seen = []
    convolution = next(module for module in fast.image_encoder.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda module, given, result: seen.extend([module.weight, result]))
    fast(**inputs)
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen)
    assert not any(tensor.is_contiguous() for tensor in seen)


def test_channels_last_is_refused_where_pytorch_fails(make_backbone: Callable[..., MedViLL]) -> None:
    with pytest.raises(ValueError, match="resnet_tiny has too few channels"):
        make_backbone(image_encoder="resnet_tiny", channels_last=True)


@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_frozen_stages_neither_learn_nor_track_statistics(make_backbone: Callable[..., MedViLL], frozen: int) -> None:
    backbone = make_backbone(freeze_image_encoder_stages=frozen)
    before = {name: value.clone() for name, value in backbone.image_encoder.state_dict().items()}
    _, gradients = train_step(backbone)
    for name, parameter in backbone.image_encoder.named_parameters():
        is_frozen = int(name.split(".")[1]) < frozen
        assert parameter.requires_grad != is_frozen, name
        assert (f"image_encoder.{name}" in gradients) != is_frozen, name
    for name, value in backbone.image_encoder.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, before[name]) == (int(name.split(".")[1]) < frozen), name


# --- saving


def test_checkpoint_of_lightning_holds_plain_values_only(backbone: MedViLL, tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(backbone)
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"] == dict(backbone.hparams)
    assert saved["hyper_parameters"]["hidden_size"] == 32
    loaded = MedViLL.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    inputs = make_inputs(backbone)
    assert all(torch.equal(*pair) for pair in zip(loaded(**inputs), backbone(**inputs), strict=True))


def test_config_builds_an_equal_backbone_without_a_file(tiny: BackboneConfig, tmp_path: Path) -> None:
    vocab, weights = tmp_path / "vocab.txt", tmp_path / "image_encoder.pth"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "lung", "##s"]), encoding="utf-8")
    torch.save(MedViLL(**tiny).image_encoder.stages[0].state_dict(), weights)
    backbone = MedViLL(**(tiny | {"tokenizer": str(vocab)})).eval()
    backbone.hparams["image_encoder_weights"] = backbone.hparams["text_weights"] = str(
        weights
    )  # as if it came from there
    torch.save({"config": backbone.config(), "weights": backbone.state_dict()}, tmp_path / "saved.pt")
    vocab.unlink()
    weights.unlink()

    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = MedViLL(**saved["config"]).eval()
    again.load_state_dict(saved["weights"])
    assert again.tokenizer == backbone.tokenizer
    assert again.tokenizer.tokens(again.tokenizer.encode(["No lungs"])[0]) == ["no", "lung", "##s"]
    assert again.config() == backbone.config()
    inputs = make_inputs(backbone)
    assert all(torch.equal(*pair) for pair in zip(again(**inputs), backbone(**inputs), strict=True))


OPEN_I = {"name": "Open-I 2024", "pairs": 2483, "credentialed": False}
MIMIC = {"name": "MIMIC-CXR 2.1.0", "pairs": 89395, "credentialed": True}


@pytest.fixture
def trained(make_backbone: Callable[..., MedViLL]) -> MedViLL:
    """A backbone that was trained on an open and on a credentialed corpus."""
    backbone = make_backbone(max_tokens=30)
    backbone.trained_on = [OPEN_I, MIMIC]  # type: ignore[list-item]
    return backbone


@torch.no_grad()
def test_saved_backbone_comes_back_as_it_was(trained: MedViLL, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "saved")
    loaded = MedViLL.from_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert loaded.trained_on == [OPEN_I, MIMIC]
    assert loaded.is_credentialed
    assert loaded.tokenizer == trained.tokenizer
    assert loaded.config() == trained.config()
    inputs = make_inputs(trained)
    for strategy in STRATEGIES:
        pairs = zip(loaded(**inputs, mask_strategy=strategy), trained(**inputs, mask_strategy=strategy), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert torch.equal(loaded.mlm_logits(torch.ones(1, 32)), trained.mlm_logits(torch.ones(1, 32)))


def test_arguments_given_win_over_the_saved_ones(trained: MedViLL, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = MedViLL.from_pretrained(tmp_path, dropout=0.5, freeze_image_encoder_stages=1)
    assert loaded.embedding_dropout.p == 0.5
    assert not loaded.image_encoder.stages[0][0].weight.requires_grad
    assert loaded.hparams["max_tokens"] == 30


def test_saved_folder_names_no_path_of_this_machine(tiny: BackboneConfig, tmp_path: Path) -> None:
    MedViLL(**tiny).tokenizer.save(tmp_path / "private")
    backbone = MedViLL(**(tiny | {"tokenizer": str(tmp_path / "private")}))
    backbone.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert set(json.loads((tmp_path / "saved" / "config.json").read_text())) == set(BackboneConfig.__annotations__)


@pytest.mark.parametrize("reader", [AutoTokenizer, BertTokenizerFast])
def test_saved_folder_is_a_tokenizer_for_transformers(trained: MedViLL, tmp_path: Path, reader: type) -> None:
    trained.save_pretrained(tmp_path)
    reports = ["No pneumothorax.", "The heart is mildly enlarged, zyzzyva"]
    theirs = reader.from_pretrained(tmp_path)
    assert theirs(reports, add_special_tokens=False).input_ids == trained.tokenizer.encode(reports)


def test_model_card_says_what_it_was_trained_on_and_is_not_for(trained: MedViLL, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "medvill_pl"
    assert "for research, not a medical device" in card.content.lower()
    listed = [line for line in card.content.splitlines() if line.startswith("- ") and "image-report pairs" in line]
    assert listed == [
        "- Open-I 2024: 2,483 image-report pairs",
        "- MIMIC-CXR 2.1.0: 89,395 image-report pairs (credentialed)",
    ]


def test_model_card_of_initial_weights_claims_no_training(backbone: MedViLL, tmp_path: Path) -> None:
    assert not backbone.is_credentialed
    backbone.save_pretrained(tmp_path)
    assert "Nothing is recorded" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert MedViLL.from_pretrained(tmp_path).trained_on == []


class Hub:
    """Stands for the hub: keeps the names of the files that would be sent."""

    uploads: list[tuple[str, set[str]]]

    def __init__(self, **_: object) -> None: ...

    def create_repo(self, repo_id: str, **_: object) -> "Hub":
        self.repo_id = repo_id
        return self

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
        self.uploads.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        return f"hub/{repo_id}"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    monkeypatch.setattr(Hub, "uploads", [], raising=False)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    return Hub.uploads


def by_push(backbone: MedViLL, folder: Path, **arguments: bool) -> object:
    return backbone.push_to_hub("owner/name", **arguments)


def by_save(backbone: MedViLL, folder: Path, **arguments: bool) -> object:
    return backbone.save_pretrained(folder, push_to_hub=True, repo_id="owner/name", **arguments)


def by_push_of_a_loaded_copy(backbone: MedViLL, folder: Path, **arguments: bool) -> object:
    backbone.save_pretrained(folder)
    return MedViLL.from_pretrained(folder).push_to_hub("owner/name", **arguments)


WAYS_OUT = [by_push, by_save, by_push_of_a_loaded_copy]


@pytest.mark.parametrize("send", WAYS_OUT)
def test_backbone_of_a_credentialed_corpus_stays_here(
    trained: MedViLL, tmp_path: Path, uploads: list[tuple[str, set[str]]], send: Callable[..., object]
) -> None:
    with pytest.raises(PermissionError, match=r"trained on MIMIC-CXR 2\.1\.0, .*allow_credentialed=True") as caught:
        send(trained, tmp_path)
    assert "Open-I" not in str(caught.value)
    assert uploads == []


SENT = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trained_on.json",
    "vocab.txt",
}


@pytest.mark.parametrize("send", WAYS_OUT)
def test_backbone_of_a_credentialed_corpus_leaves_when_it_is_allowed(
    trained: MedViLL, tmp_path: Path, uploads: list[tuple[str, set[str]]], send: Callable[..., object]
) -> None:
    assert send(trained, tmp_path, allow_credentialed=True) == "hub/owner/name"
    assert uploads == [("owner/name", SENT)]


@pytest.mark.parametrize("send", WAYS_OUT)
def test_backbone_of_an_open_corpus_may_leave(
    trained: MedViLL, tmp_path: Path, uploads: list[tuple[str, set[str]]], send: Callable[..., object]
) -> None:
    trained.trained_on = [OPEN_I]  # type: ignore[list-item]
    send(trained, tmp_path)
    assert uploads == [("owner/name", SENT)]


# --- what is no saved folder


def test_a_tasks_checkpoint_is_named_with_what_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(b"")
    for source in (path, "runs/absent.ckpt"):
        with pytest.raises(ValueError, match=r"\.ckpt is no folder: .*load_from_checkpoint.*backbone_ckpt") as caught:
            MedViLL.from_pretrained(source)
        assert "\n" not in str(caught.value)
        assert str(source) in str(caught.value)


def test_an_argument_that_a_saved_folder_has_and_we_do_not_know_is_named(trained: MedViLL, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rotary": True}))
    with pytest.raises(ValueError, match="unknown argument 'rotary'"):
        MedViLL.from_pretrained(tmp_path)


def test_a_misspelt_argument_is_an_error(trained: MedViLL, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="droput"):
        MedViLL.from_pretrained(tmp_path, droput=0.5)
