"""Mask-filling against plain references: whole sequences run again for every word, all texts tried, loops in Python."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medvill_pl import MedViLL, ReportTokenizer
from medvill_pl.models.decoding import generate as generate_module
from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.models.decoding.generate import generate
from medvill_pl.models.decoding.likelihood import log_likelihood, mask_query_hidden, token_attention
from medvill_pl.models.decoding.search import Generated, Search, sample
from medvill_pl.models.encoder import KeyValueCache
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tokenizer import SPECIAL_TOKENS

NUM_IMAGE = 18  # CLS, 16 visual tokens, SEP_V


def sharpen(backbone: MedViLL, factor: float = 3.0) -> MedViLL:
    """Enlarge the transformer's weights, so that what is predicted depends on what was read."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1 and not name.startswith("image_encoder"):
                parameter.mul_(factor)
    return backbone


@pytest.fixture
def model(tiny: BackboneConfig) -> MedViLL:
    """A backbone with the synthetic vocabulary whose reports differ and, some of them, end."""
    torch.manual_seed(0)
    backbone = sharpen(MedViLL(**tiny))
    with torch.no_grad():
        backbone.mlm_head.bias[backbone.tokenizer.sep_id] = 6.0
    return backbone.eval()


def few_words(tiny: BackboneConfig, seed: int, words: Sequence[str] = ("a", "b")) -> MedViLL:
    """A backbone that knows so few words that all texts can be tried."""
    vocabulary = ReportTokenizer.from_vocab([*SPECIAL_TOKENS, "[unused1]", *words]).to_json()
    torch.manual_seed(seed)
    return sharpen(MedViLL(**{**tiny, "tokenizer": vocabulary, "max_tokens": 6}), 1.5).eval()


def make_images(number: int, seed: int = 0) -> Tensor:
    return torch.rand(number, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images() -> Tensor:
    return make_images(4)


def make_tokens(number: int, seed: int = 0) -> Tensor:
    """Visual tokens that differ more than those of noise do."""
    return 3 * torch.randn(number, 16, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def next_log_p(backbone: MedViLL, visual_tokens: Tensor, words: Sequence[int]) -> Tensor:
    """Log-probability of each next word after some words, shape ``(V,)``: the whole sequence anew, masked by hand."""
    ids = torch.tensor([[*words, backbone.tokenizer.mask_id]])
    joint, _ = backbone.embed(visual_tokens[None], ids, torch.ones_like(ids).bool(), "bidirectional")
    size = joint.shape[1]
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for query, key in itertools.product(range(size), repeat=2):
        mask[0, 0, query, key] = key < NUM_IMAGE or (query >= NUM_IMAGE and key <= query)
    hidden = backbone.encoder(joint, mask)[:, -1]
    return backbone.mlm_logits(hidden)[0].double().log_softmax(0)


def log_p_of(backbone: MedViLL, visual_tokens: Tensor, ids: Sequence[int]) -> float:
    """Log-probability of a text in all, by N passes."""
    return sum(
        next_log_p(backbone, visual_tokens, ids[:position])[ids[position]].item() for position in range(len(ids))
    )


def allowed_ids(backbone: MedViLL) -> list[int]:
    return [*backbone.tokenizer.ordinary_ids.tolist(), backbone.tokenizer.sep_id]


# -- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        DecodingConfig(max_new_tokens=12),
        DecodingConfig(max_new_tokens=12, min_new_tokens=12),
        DecodingConfig("beam", max_new_tokens=10, num_beams=3),
        DecodingConfig("beam", max_new_tokens=10, num_beams=4, min_new_tokens=5, no_repeat_ngram_size=2),
        DecodingConfig("sample", max_new_tokens=12, temperature=2.0),
    ],
)
def test_cached_and_uncached_decoding_give_the_same_logits_at_every_step(
    config: DecodingConfig, model: MedViLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    visual_tokens, cached_step, compared = make_tokens(4, seed=1), generate_module.decode_step, Counter[int]()

    def compare(backbone: MedViLL, cache: KeyValueCache, search: Search, position: int, num_image: int) -> Tensor:
        hidden = cached_step(backbone, cache, search, position, num_image)
        for row, hypothesis in itertools.product(*map(range, hidden.shape[:2])):
            if search.is_finished[row, hypothesis] or search.log_probability[row, hypothesis].isneginf():
                continue
            words = search.tokens[row, hypothesis, :position].tolist()
            expected = next_log_p(backbone, visual_tokens[search.examples[row]], words)
            actual = backbone.mlm_logits(hidden[row, hypothesis, None])[0].double().log_softmax(0)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
            compared[position] += 1
        return hidden

    monkeypatch.setattr(generate_module, "decode_step", compare)
    seeds = torch.arange(4) if config.method == "sample" else None
    reports = generate(model, config, visual_tokens=visual_tokens, seeds=seeds)
    assert len(compared) >= max(len(report.ids) + report.is_finished for report in reports) > 3
    assert (max(compared.values()) > 8) == (config.method == "beam")


def test_image_is_read_once_and_each_step_runs_two_tokens(model: MedViLL, images: Tensor) -> None:
    tokens: list[tuple[int, ...]] = []
    model.image_encoder.register_forward_hook(lambda *_: tokens.append(("image_encoder",)))
    model.encoder.layers[-1].expand.register_forward_hook(lambda *arguments: tokens.append(arguments[2].shape[:2]))
    generate(model, DecodingConfig(min_new_tokens=5, max_new_tokens=5), images=images)
    assert tokens == [("image_encoder",), (4, NUM_IMAGE), (4, 1), (4, 2), (4, 2), (4, 2), (4, 2)]


def greedy(backbone: MedViLL, visual_tokens: Tensor, max_new_tokens: int, min_new_tokens: int = 0) -> Generated:
    """One report, by the most probable word of a whole new pass at a time."""
    words: list[int] = []
    total, sep = 0.0, backbone.tokenizer.sep_id
    while len(words) < max_new_tokens:
        log_p = next_log_p(backbone, visual_tokens, words)
        choices = allowed_ids(backbone)[: -1 if len(words) < min_new_tokens else None]
        best = max(choices, key=lambda word: log_p[word].item())
        total += log_p[best].item()
        if best == sep:
            return Generated(words, total, True)
        words.append(best)
    return Generated(words, total, False)


def assert_same(actual: Sequence[Generated], expected: Sequence[Generated]) -> None:
    assert [(one.ids, one.is_finished) for one in actual] == [(one.ids, one.is_finished) for one in expected]
    assert [one.log_probability for one in actual] == pytest.approx([one.log_probability for one in expected], abs=1e-3)


@pytest.mark.parametrize("min_new_tokens", [0, 6])
def test_greedy_reports_are_those_of_whole_passes(min_new_tokens: int, model: MedViLL) -> None:
    visual_tokens = make_tokens(6, seed=1)
    actual = generate(
        model, DecodingConfig(max_new_tokens=10, min_new_tokens=min_new_tokens), visual_tokens=visual_tokens
    )
    assert_same(actual, [greedy(model, tokens, 10, min_new_tokens) for tokens in visual_tokens])
    assert all(len(report.ids) >= min_new_tokens for report in actual)


def test_images_and_their_visual_tokens_give_the_same(model: MedViLL, images: Tensor) -> None:
    tokens = model.encode_image(images).detach()
    assert generate(model, images=images) == generate(model, visual_tokens=tokens)


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_a_batch_gives_what_its_rows_give_alone(method: Any, model: MedViLL) -> None:
    tokens, seeds = make_tokens(9, seed=1), torch.arange(9) if method == "sample" else None
    config = DecodingConfig(method, max_new_tokens=20, **({"num_beams": 3} if method == "beam" else {}))
    alone = []
    for row in range(9):
        seed = None if seeds is None else seeds[row : row + 1]
        alone += generate(model, config, visual_tokens=tokens[row : row + 1], seeds=seed)
    together = generate(model, config, visual_tokens=tokens, seeds=seeds)
    assert_same(together, alone)
    assert len({len(report.ids) for report in together}) > 3  # rows end at different times
    backwards = generate(model, config, visual_tokens=tokens.flip(0), seeds=None if seeds is None else seeds.flip(0))
    assert_same(backwards[::-1], alone)


# -- beam search ---------------------------------------------------------------------------------


def test_a_beam_of_one_is_greedy(model: MedViLL, images: Tensor) -> None:
    beam = generate(model, DecodingConfig("beam", num_beams=1, max_new_tokens=15), images=images)
    assert_same(beam, generate(model, DecodingConfig(max_new_tokens=15), images=images))


def all_texts(backbone: MedViLL, max_new_tokens: int) -> Iterator[list[int]]:
    """Every text that can be written: closed by SEP_L before the limit, or stopped by it."""
    words = backbone.tokenizer.ordinary_ids.tolist()
    for length in range(max_new_tokens):
        yield from ([*text, backbone.tokenizer.sep_id] for text in itertools.product(words, repeat=length))
    yield from map(list, itertools.product(words, repeat=max_new_tokens))


def repeats(ids: Sequence[int], size: int) -> bool:
    ngrams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    return len(set(ngrams)) < len(ngrams)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_unpruned_beam_finds_what_exhaustive_search_finds(penalty: float, seed: int, tiny: BackboneConfig) -> None:
    backbone = few_words(tiny, seed)
    visual_tokens = backbone.encode_image(make_images(2, seed)).detach()
    config = DecodingConfig("beam", max_new_tokens=4, num_beams=40, length_penalty=penalty)
    actual = generate(backbone, config, visual_tokens=visual_tokens)
    texts = list(all_texts(backbone, 4))
    assert len(texts) == 31
    for report, tokens in zip(actual, visual_tokens, strict=True):
        scored = [(log_p_of(backbone, tokens, ids), ids) for ids in texts]
        log_p, best = max(scored, key=lambda one: one[0] / len(one[1]) ** penalty)
        assert report.ids + [backbone.tokenizer.sep_id] * report.is_finished == best
        assert report.log_probability == pytest.approx(log_p, abs=1e-4)


@pytest.mark.parametrize(("min_new_tokens", "ngram"), [(2, 0), (0, 1), (1, 2), (3, 1)])
def test_an_unpruned_beam_finds_the_best_allowed_text(min_new_tokens: int, ngram: int, tiny: BackboneConfig) -> None:
    backbone = few_words(tiny, seed=3)
    sep, (tokens,) = backbone.tokenizer.sep_id, backbone.encode_image(make_images(1)).detach()
    config = DecodingConfig(
        "beam",
        max_new_tokens=4,
        num_beams=40,
        length_penalty=0.0,
        min_new_tokens=min_new_tokens,
        no_repeat_ngram_size=ngram,
    )
    (report,) = generate(backbone, config, visual_tokens=tokens[None])

    def is_allowed(ids: list[int]) -> bool:
        words = [word for word in ids if word != sep]
        if ngram and repeats(words, ngram):
            return False
        # SEP_L comes early only where every further word would repeat something.
        stuck = ngram and all(repeats([*words, word], ngram) for word in backbone.tokenizer.ordinary_ids)
        return len(words) >= min_new_tokens or bool(stuck)

    scored = [(log_p_of(backbone, tokens, ids), ids) for ids in all_texts(backbone, 4) if is_allowed(ids)]
    log_p, best = max(scored)
    assert report.ids + [sep] * report.is_finished == best
    assert report.log_probability == pytest.approx(log_p, abs=1e-4)


def beam_search(
    log_p_after: Callable[[Sequence[int]], Tensor], choices: Sequence[int], sep: int, config: DecodingConfig
) -> tuple[float, list[int]]:
    """Beam search in lists: a hypothesis is its log-probability and its ids, with SEP_L where it has ended."""
    assert config.max_new_tokens is not None
    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(config.max_new_tokens):
        ended = [one for one in beam if one[1][-1:] == [sep]]
        going = [one for one in beam if one not in ended]
        longer = []
        for total, ids in going:
            log_p = log_p_after(ids)
            longer += [(total + log_p[word].item(), [*ids, word]) for word in choices]
        beam = ended + sorted(longer, reverse=True)[: config.num_beams - len(ended)]
    return max(beam, key=lambda one: one[0] / len(one[1]) ** config.length_penalty)


@pytest.mark.parametrize("num_beams", [2, 3, 6])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_pruned_beam_keeps_what_a_search_in_lists_keeps(num_beams: int, seed: int, tiny: BackboneConfig) -> None:
    backbone = few_words(tiny, seed, words=("a", "b", "c", "d"))
    tokens = backbone.encode_image(make_images(1, seed)).detach()
    config = DecodingConfig("beam", max_new_tokens=5, num_beams=num_beams, length_penalty=0.8)
    log_p, ids = beam_search(
        lambda words: next_log_p(backbone, tokens[0], words), allowed_ids(backbone), backbone.tokenizer.sep_id, config
    )
    (report,) = generate(backbone, config, visual_tokens=tokens)
    assert report.ids + [backbone.tokenizer.sep_id] * report.is_finished == ids
    assert report.log_probability == pytest.approx(log_p, abs=1e-4)


@pytest.mark.parametrize("vocab_size", [8, 300])
@pytest.mark.parametrize("width", [4, 8, 40])
def test_hypotheses_without_an_allowed_token_stay_empty(width: int, vocab_size: int) -> None:
    search, allowed = Search.start(1, width, 3, torch.device("cpu")), {3, 6, 7}
    log_p = torch.randn(1, width, vocab_size, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    is_forbidden = torch.tensor([word not in allowed for word in range(vocab_size)])
    scores = log_p.masked_fill(is_forbidden, -torch.inf)
    parents, words = search.best_extensions(scores)
    search.extend(0, parents, words, scores, sep_id=3)
    is_hypothesis = ~search.log_probability.isneginf()
    assert sorted(words[is_hypothesis].tolist()) == sorted(allowed)
    assert search.is_finished.sum() == 1  # what is no hypothesis does not end, for it would keep its place


def test_a_larger_length_penalty_gives_longer_reports(tiny: BackboneConfig) -> None:
    lengths = []
    for penalty in (0.0, 3.0):
        config = DecodingConfig("beam", num_beams=20, max_new_tokens=5, length_penalty=penalty)
        reports = generate(few_words(tiny, 1), config, images=make_images(8))
        lengths.append(sum(len(report.ids) for report in reports))
    assert lengths[0] < lengths[1]


# -- limits and blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(method: Any, size: int, model: MedViLL, images: Tensor) -> None:
    free = generate(model, DecodingConfig(method, max_new_tokens=30, min_new_tokens=30), images=images)
    assert any(repeats(report.ids, size) for report in free)
    config = DecodingConfig(method, max_new_tokens=30, min_new_tokens=30, no_repeat_ngram_size=size)
    blocked = generate(model, config, images=images)
    assert not any(repeats(report.ids, size) for report in blocked)
    assert all(len(report.ids) == 30 for report in blocked)


def test_where_every_token_would_repeat_the_report_ends(tiny: BackboneConfig) -> None:
    backbone = few_words(tiny, 0)
    config = DecodingConfig(min_new_tokens=5, max_new_tokens=5, no_repeat_ngram_size=1)
    for report in generate(backbone, config, images=make_images(3)):
        assert report.is_finished
        assert sorted(report.ids) == backbone.tokenizer.ordinary_ids.tolist()


def test_limits_are_kept_and_only_words_are_written(model: MedViLL, images: Tensor) -> None:
    with torch.no_grad():
        model.mlm_head.bias[model.tokenizer.sep_id] = 50.0
    for report in generate(model, DecodingConfig(min_new_tokens=3), images=images):
        assert (len(report.ids), report.is_finished) == (3, True)
        assert set(report.ids) <= set(model.tokenizer.ordinary_ids.tolist())
    with torch.no_grad():  # whatever else the model likes best, specials and padding are never written
        model.mlm_head.bias[: len(SPECIAL_TOKENS)] = 100.0
        model.mlm_head.bias[model.tokenizer.sep_id] = -50.0
    for report in generate(model, DecodingConfig(max_new_tokens=4), images=images):
        assert (len(report.ids), report.is_finished) == (4, False)
        assert set(report.ids) <= set(model.tokenizer.ordinary_ids.tolist())


def test_unused_tokens_are_never_written(tiny: BackboneConfig) -> None:
    backbone = few_words(tiny, 0)
    with torch.no_grad():
        backbone.mlm_head.bias[5] = 100.0
    assert backbone.tokenizer.tokens([5]) == ["[unused1]"]
    for report in generate(backbone, images=make_images(2)):
        assert 5 not in report.ids


def test_default_limit_is_the_backbones(model: MedViLL, images: Tensor) -> None:
    with torch.no_grad():
        model.mlm_head.bias[model.tokenizer.sep_id] = -100.0
    assert [len(report.ids) for report in generate(model, images=images[:1])] == [120]


def test_a_report_may_be_empty(model: MedViLL, images: Tensor) -> None:
    with torch.no_grad():
        model.mlm_head.bias[model.tokenizer.sep_id] = 100.0
    for method in ("greedy", "beam"):
        for report in generate(model, DecodingConfig(method), images=images):
            assert (report.ids, report.is_finished) == ([], True)
            assert report.log_probability == pytest.approx(0, abs=1e-4)


# -- sampling ------------------------------------------------------------------------------------


def shares(config: DecodingConfig, probabilities: Sequence[float]) -> list[float]:
    """How often each word is drawn, over draws that cover 0 to 1 evenly."""
    number = 2000
    scores = torch.tensor(probabilities).log().expand(number, 1, -1)
    draws = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    words = sample(scores, draws, config)
    assert words.shape == (number, 1)
    return np.bincount(words[:, 0], minlength=len(probabilities)) / number


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.0, 0.3, 0.2]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0, 0.09 / 0.3, 0.04 / 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 100}, [0.1, 0.4, 0.0, 0.3, 0.2]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.75}, [0, 4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.0, 0.3, 0.2]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),  # 4/9 alone is less than a half
    ],
)
def test_words_are_drawn_as_often_as_they_are_probable(options: dict[str, Any], expected: list[float]) -> None:
    actual = shares(DecodingConfig("sample", **options), [0.1, 0.4, 0.0, 0.3, 0.2])
    assert actual == pytest.approx(expected, abs=1e-3)


def test_sampled_texts_are_as_frequent_as_the_model_says(tiny: BackboneConfig) -> None:
    backbone, number = few_words(tiny, 5), 1500
    tokens = backbone.encode_image(make_images(1)).detach()
    config = DecodingConfig("sample", max_new_tokens=2)
    seeds = torch.arange(number)
    reports = generate(backbone, config, visual_tokens=tokens.expand(number, -1, -1), seeds=seeds)
    sep = backbone.tokenizer.sep_id
    actual = Counter(tuple(report.ids + [sep] * report.is_finished) for report in reports)
    weights = {}
    for ids in all_texts(backbone, 2):  # specials are left out, so the shares are of what may be written
        steps = [next_log_p(backbone, tokens[0], ids[:position])[allowed_ids(backbone)] for position in range(len(ids))]
        positions = [allowed_ids(backbone).index(word) for word in ids]
        weights[tuple(ids)] = math.exp(
            sum(step.log_softmax(0)[at].item() for step, at in zip(steps, positions, strict=True))
        )
    assert sum(weights.values()) == pytest.approx(1)
    for ids, weight in weights.items():
        deviation = math.sqrt(weight * (1 - weight) / number)
        assert abs(actual[ids] / number - weight) < 4 * deviation, ids


def test_a_seed_gives_one_report(model: MedViLL, images: Tensor) -> None:
    config = DecodingConfig("sample", max_new_tokens=12, min_new_tokens=12)
    same = images[:1].expand(4, -1, -1, -1)
    reports = generate(model, config, images=same, seeds=torch.tensor([7, 8, 7, 2**62]))
    assert reports[0].ids == reports[2].ids
    assert len({tuple(report.ids) for report in reports}) == 3
    torch.manual_seed(123)
    again = generate(model, config, images=same, seeds=torch.tensor([8, 7, 2**62, 7]))
    assert [report.ids for report in again] == [reports[row].ids for row in (1, 0, 3, 0)]


def test_log_probability_of_a_sample_is_the_models_own(model: MedViLL, images: Tensor) -> None:
    config = DecodingConfig("sample", max_new_tokens=6, temperature=3.0, top_k=50)
    visual_tokens = model.encode_image(images).detach()
    for report, tokens in zip(
        generate(model, config, visual_tokens=visual_tokens, seeds=torch.arange(4)), visual_tokens, strict=True
    ):
        expected = log_p_of(model, tokens, report.ids + [model.tokenizer.sep_id] * report.is_finished)
        assert report.log_probability == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seeds", [None, torch.tensor([1, 2]), torch.tensor([1, 2, 3, -4]), torch.zeros(4, 1)])
def test_sampling_needs_a_seed_per_image(seeds: Tensor | None, model: MedViLL, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"method 'sample' needs seeds of shape \(4,\), each 0 or more"):
        generate(model, DecodingConfig("sample"), images=images, seeds=seeds)


def test_seeds_without_sampling_are_refused(model: MedViLL, images: Tensor) -> None:
    with pytest.raises(ValueError, match="seeds have no effect with method 'beam': set method to 'sample'"):
        generate(model, DecodingConfig("beam"), images=images, seeds=torch.arange(4))


# -- likelihood ----------------------------------------------------------------------------------


@pytest.fixture
def texts(model: MedViLL) -> tuple[Tensor, Tensor]:
    """Ids and mask of four texts of 9, 1, 5 and 0 words, each closed by SEP_L."""
    generator, tokenizer = torch.Generator().manual_seed(1), model.tokenizer
    ids = torch.full((4, 10), tokenizer.pad_id)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    for row, length in enumerate((9, 1, 5, 0)):
        ids[row, :length] = torch.randint(5, tokenizer.vocab_size, (length,), generator=generator)
        ids[row, length] = tokenizer.sep_id
        mask[row, : length + 1] = True
    return ids, mask


@torch.no_grad()
def n_pass_log_likelihood(model: MedViLL, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """For each word a pass of its own through ``forward``, over the words before it and a MASK."""
    result = torch.full(ids.shape, torch.nan)
    for row, position in mask.nonzero().tolist():
        before = torch.cat([ids[row, :position], torch.tensor([model.tokenizer.mask_id])])[None]
        output = model(
            images=images[row : row + 1],
            input_ids=before,
            text_mask=torch.ones_like(before).bool(),
            mask_strategy="seq2seq",
        )
        result[row, position] = model.mlm_logits(output.text[:, -1])[0].log_softmax(0)[ids[row, position]]
    return result


def test_one_pass_gives_the_likelihood_of_n_passes(
    backbone: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    actual = log_likelihood(backbone, images=images, input_ids=ids, text_mask=mask)
    expected = n_pass_log_likelihood(backbone, images, ids, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    perplexities = [math.exp(-values.nanmean()) for values in (actual, expected)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)


def test_one_pass_gives_the_likelihood_of_n_passes_with_sharp_weights(
    model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    double = model.double()
    actual = log_likelihood(double, images=images.double(), input_ids=ids, text_mask=mask)
    expected = n_pass_log_likelihood(double, images.double(), ids, mask)
    assert expected.nan_to_num().std() > 3  # unlike words
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_likelihood_in_chunks_is_the_same(
    model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = texts
    whole = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)
    monkeypatch.setattr("medvill_pl.models.decoding.likelihood._CHUNK", 3)
    parts = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)
    torch.testing.assert_close(parts, whole, equal_nan=True)


def test_probabilities_of_all_texts_sum_to_one(tiny: BackboneConfig) -> None:
    backbone, length = few_words(tiny, 0), 2
    words = [index for index in range(backbone.tokenizer.vocab_size) if index != backbone.tokenizer.mask_id]
    texts = torch.tensor(list(itertools.product(words, repeat=length)))
    tokens = backbone.encode_image(make_images(1)).detach().expand(len(texts), -1, -1)
    values = log_likelihood(
        backbone, visual_tokens=tokens, input_ids=texts, text_mask=torch.ones_like(texts, dtype=torch.bool)
    )
    first = next_log_p(backbone, tokens[0], [])
    after = [next_log_p(backbone, tokens[0], [word])[backbone.tokenizer.mask_id] for word in words]
    missing = first[backbone.tokenizer.mask_id].exp() + sum(
        (first[word] + log_p).exp() for word, log_p in zip(words, after, strict=True)
    )
    assert values.sum(1).exp().sum().item() + missing.item() == pytest.approx(1, abs=1e-4)


def test_a_truncated_reports_end_does_not_count(model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]) -> None:
    ids, mask = texts
    whole = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)
    has_end = torch.tensor([False, True, False, True])
    truncated = log_likelihood(model, images=images, input_ids=ids, text_mask=mask, has_end=has_end)
    assert truncated[0, 9].isnan()
    assert truncated[2, 5].isnan()
    whole[0, 9] = whole[2, 5] = torch.nan
    torch.testing.assert_close(truncated, whole, equal_nan=True)
    assert (~truncated.isnan()).sum(1).tolist() == [9, 2, 5, 1]


def test_likelihood_of_what_was_written_is_what_writing_gave(model: MedViLL, images: Tensor) -> None:
    reports = generate(model, DecodingConfig("beam", max_new_tokens=8, num_beams=3), images=images)
    for row, report in enumerate(reports):
        ids = torch.tensor([[*report.ids, model.tokenizer.sep_id]])
        values = log_likelihood(
            model,
            images=images[row : row + 1],
            input_ids=ids,
            text_mask=torch.ones_like(ids).bool(),
            has_end=torch.tensor([report.is_finished]),
        )
        assert values.nansum().item() == pytest.approx(report.log_probability, abs=1e-3)


def test_training_predicts_what_the_likelihood_counts(
    model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    hidden = mask_query_hidden(model, model.encode_image(images), ids)
    log_p = model.mlm_logits(hidden[mask]).log_softmax(1).gather(1, ids[mask][:, None])[:, 0]
    expected = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)[mask]
    torch.testing.assert_close(log_p, expected, rtol=1e-4, atol=1e-4)
    log_p.sum().backward()
    for name in (
        "image_encoder.stages.0.0.weight",
        "report_embedding.position",
        "encoder.layers.0.query.weight",
    ):
        gradients = {key: value.grad for key, value in model.named_parameters()}
        assert gradients[name] is not None, name
        assert gradients[name].abs().sum() > 0


# -- attention -----------------------------------------------------------------------------------


def test_token_attention_is_that_of_the_mask_in_a_pass_of_its_own(
    model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    actual = token_attention(model, images=images, input_ids=ids, text_mask=mask)
    assert actual.shape == (4, 2, 2, 10, 16)
    assert actual.isnan().all(dim=4).sum((1, 2)).eq(4 * (~mask)).all()
    for row, position in mask.nonzero().tolist():
        before = torch.cat([ids[row, :position], torch.tensor([model.tokenizer.mask_id])])[None]
        weights = model.attention_weights(
            images=images[row : row + 1],
            input_ids=before,
            text_mask=torch.ones_like(before).bool(),
            mask_strategy="seq2seq",
        )
        expected = weights[0, :, :, -1, 1 : NUM_IMAGE - 1]
        torch.testing.assert_close(actual[row, :, :, position], expected, rtol=1e-4, atol=1e-5)


# -- modes, precision, arguments -----------------------------------------------------------------


def test_modes_of_modules_are_left_as_they_were(model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]) -> None:
    expected = generate(model, DecodingConfig(max_new_tokens=5), images=images)
    model.train()
    model.encoder.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert generate(model, DecodingConfig(max_new_tokens=5), images=images) == expected  # nothing is dropped out
    assert [module.training for module in model.modules()] == before
    ids, mask = texts
    for function in (log_likelihood, token_attention):
        function(model, images=images, input_ids=ids, text_mask=mask)
        with pytest.raises(ValueError, match="text_mask"):
            function(model, images=images, input_ids=ids, text_mask=mask[:, 1:])
        assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_bfloat16_is_close_to_float32(
    method: Any, model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    with torch.autocast("cpu", torch.bfloat16):
        reports = generate(model, DecodingConfig(method, min_new_tokens=6, max_new_tokens=6), images=images)
        likelihood = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)
        attention = token_attention(model, images=images, input_ids=ids, text_mask=mask)
    exact = log_likelihood(model, images=images, input_ids=ids, text_mask=mask)
    assert likelihood.dtype == attention.dtype == torch.float32
    torch.testing.assert_close(likelihood, exact, rtol=0.1, atol=0.3, equal_nan=True)
    written = torch.tensor([[*report.ids, model.tokenizer.sep_id] for report in reports])
    values = log_likelihood(model, images=images, input_ids=written, text_mask=torch.ones_like(written).bool())
    actual = torch.tensor([report.log_probability for report in reports])
    torch.testing.assert_close(actual, values[:, :-1].sum(1), rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "unknown decoding method 'magic': choose one of greedy, beam, sample"),
        ({"num_beams": 2}, "num_beams=2 has no effect with method 'greedy': set method to 'beam'"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 has no effect with method 'greedy': set method to 'beam'"),
        ({"method": "sample", "length_penalty": 2.0}, "no effect with method 'sample': set method to 'beam'"),
        ({"temperature": 0.5}, "temperature=0.5 has no effect with method 'greedy': set method to 'sample'"),
        ({"method": "beam", "top_k": 5}, "top_k=5 has no effect with method 'beam': set method to 'sample'"),
        ({"method": "beam", "top_p": 0.9}, "top_p=0.9 has no effect with method 'beam': set method to 'sample'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be 0 or more, not -1"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be 0 or more, not -1"),
        ({"method": "beam", "num_beams": 0}, "num_beams must be 1 or more, not 0"),
        ({"method": "sample", "top_k": 0}, "top_k must be 1 or more, not 0"),
        ({"method": "sample", "temperature": 0.0}, "temperature must be positive, not 0.0: for no randomness"),
        ({"method": "sample", "top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"method": "sample", "top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
    ],
)
def test_wrong_decoding_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DecodingConfig(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DecodingConfig(max_new_tokens=121), "max_new_tokens 121 is more than the 120 of this backbone"),
        (DecodingConfig(min_new_tokens=121), "min_new_tokens 121 is more than max_new_tokens 120"),
        (DecodingConfig(min_new_tokens=4, max_new_tokens=3), "min_new_tokens 4 is more than max_new_tokens 3"),
    ],
)
def test_limits_that_do_not_fit_the_backbone_are_refused(
    config: DecodingConfig, message: str, model: MedViLL, images: Tensor
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, config, images=images)


def test_exactly_one_of_images_and_visual_tokens_is_needed(
    model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    both = {"images": images, "visual_tokens": model.encode_image(images)}
    for arguments in ({}, both):
        with pytest.raises(ValueError, match="give either images or visual_tokens"):
            generate(model, **arguments)
        for function in (log_likelihood, token_attention):
            with pytest.raises(ValueError, match="give either images or visual_tokens"):
                function(model, input_ids=ids, text_mask=mask, **arguments)


def test_wrong_shapes_are_refused(model: MedViLL, images: Tensor, texts: tuple[Tensor, Tensor]) -> None:
    ids, mask = texts
    with pytest.raises(ValueError, match=r"visual_tokens must be of shape \(B, K, 32\), not \(4, 16, 8\)"):
        generate(model, visual_tokens=torch.zeros(4, 16, 8))
    for wrong_ids, wrong_mask, message in (
        (ids, mask.long(), "text_mask must be bool and of the shape of input_ids"),
        (ids[:3], mask[:3], r"input_ids must be of shape \(4, T\), not \(3, 10\)"),
        (ids[:, :0], mask[:, :0], r"a text must have 1 to 121 tokens \(with SEP\), not 0"),
        (ids.repeat(1, 13), mask.repeat(1, 13), r"a text must have 1 to 121 tokens \(with SEP\), not 130"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(model, images=images, input_ids=wrong_ids, text_mask=wrong_mask)
    for has_end in (torch.ones(4), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"has_end must be bool of shape \(B,\)"):
            log_likelihood(model, images=images, input_ids=ids, text_mask=mask, has_end=has_end)
