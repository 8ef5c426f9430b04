"""Tests of the WordPiece tokenizer, word masking, the report embedding and the MLM head."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, BertTokenizerFast

from medvill_pl.models.text import LanguageModellingHead, ReportEmbedding
from medvill_pl.tokenizer import SPECIAL_TOKENS, MaskedTokens, ReportTokenizer, mask_tokens

REPORTS = [
    "No pneumothorax.",
    "The heart is mildly enlarged.  Small right pleural effusion,\nunchanged?",
    "Zyzzyva's 3.5-cm nodule [SEP] (see above) & [MASK]",
    "PNEUMOTHORACES; sub-cardiomegaly",
    "Épanchement pleural",
    "",
]
VOCAB = [*SPECIAL_TOKENS, "[unused0]", "no", "lung", "##s", "nod", "##ule", ".", "[", "]", "mask", "sep", "heart"]


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.load("synthetic")


@pytest.fixture
def small() -> ReportTokenizer:
    """A tokenizer with parts of words, an unused token and brackets."""
    return ReportTokenizer.from_vocab(VOCAB)


def wordpiece(report: str, vocab: dict[str, int]) -> list[int]:
    """BERT's uncased algorithm for ASCII: split at spaces and punctuation, then take the longest pieces."""
    ids = []
    for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", report.lower()):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = [end for end in range(len(word), start, -1) if prefix + word[start:end] in vocab]
            if not ends:
                pieces = ["[UNK]"]
                break
            pieces.append(prefix + word[start : ends[0]])
            start = ends[0]
        ids += [vocab[piece] for piece in pieces]
    return ids


def vocab_of(tokenizer: ReportTokenizer) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokenizer.tokens(range(tokenizer.vocab_size)))}


# --- tokenizer


def test_special_ids_are_the_places_of_the_special_tokens(small: ReportTokenizer) -> None:
    assert [small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id] == [0, 1, 2, 3, 4]
    moved = ReportTokenizer.from_vocab(VOCAB[::-1])
    assert [VOCAB[::-1].index(token) for token in SPECIAL_TOKENS] == [
        moved.pad_id,
        moved.unk_id,
        moved.cls_id,
        moved.sep_id,
        moved.mask_id,
    ]
    assert small.vocab_size == moved.vocab_size == len(VOCAB)


def test_ordinary_ids_leave_out_special_and_unused_tokens(small: ReportTokenizer) -> None:
    assert small.ordinary_ids.dtype == np.int64
    assert [VOCAB[index] for index in small.ordinary_ids] == VOCAB[6:]


def test_encoding_written_by_hand(small: ReportTokenizer) -> None:
    ids = small.encode(["No lungs.", "NODULES heart", "xlung", ""])
    assert [small.tokens(row) for row in ids] == [
        ["no", "lung", "##s", "."],
        ["nod", "##ule", "##s", "heart"],
        ["[UNK]"],
        [],
    ]
    assert ids[0] == [VOCAB.index(token) for token in ("no", "lung", "##s", ".")]


@settings(deadline=None, max_examples=100)
@given(
    st.text("abcdehlnorstuNLS  .,-?[]#'\n0123", max_size=40)
    | st.lists(st.sampled_from(["no", "lungs", "nodules", "[SEP]", "heart", "."])).map(" ".join)
)
def test_encoding_is_the_longest_match_from_the_left(report: str) -> None:
    for tokenizer in (ReportTokenizer.load("synthetic"), ReportTokenizer.from_vocab(VOCAB)):
        assert tokenizer.encode([report]) == [wordpiece(report, vocab_of(tokenizer))]


def test_batch_is_encoded_as_its_reports_are_alone(tokenizer: ReportTokenizer) -> None:
    assert tokenizer.encode(REPORTS) == [tokenizer.encode([report])[0] for report in REPORTS]
    assert len(tokenizer.encode(["no " * 1000])[0]) == 1000, "nothing is truncated or padded here"


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_special_token_in_a_report_is_letters(small: ReportTokenizer, name: str) -> None:
    ids = small.encode([f"no {name} lung"])[0]
    assert small.tokens(ids)[:2] == ["no", "["]
    assert small.tokens(ids)[-2:] == ["]", "lung"]
    special = {small.pad_id, small.cls_id, small.sep_id, small.mask_id}
    assert special.isdisjoint(ids)


def test_decoding_joins_pieces_and_leaves_special_tokens_out(small: ReportTokenizer) -> None:
    ids = small.encode(["No nodules."])[0]
    assert small.decode([small.cls_id, *ids, small.sep_id, small.pad_id]) == "no nodules."
    assert small.decode([]) == ""


def test_id_outside_the_vocabulary_is_named_unknown(small: ReportTokenizer) -> None:
    assert small.tokens([6, len(VOCAB) + 7]) == ["no", "[UNK]"]


SOURCES = ("vocab.txt", "tokenizer.json", "a folder", "a folder with vocab.txt only", "vocab.txt from Windows", "text")


@pytest.mark.parametrize("source", SOURCES)
def test_tokenizer_comes_back_from_what_was_saved(tokenizer: ReportTokenizer, tmp_path: Path, source: str) -> None:
    folder = tmp_path / "saved"
    tokenizer.save(folder)
    if source.endswith("vocab.txt only"):
        (folder / "tokenizer.json").unlink()
    if source.endswith("Windows"):
        (folder / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    location = {"text": tokenizer.to_json()}.get(source, str(folder))
    if source.startswith(("vocab.txt", "tokenizer.json")):
        location = str(folder / source.split()[0])
    loaded = ReportTokenizer.load(location)
    assert loaded == tokenizer
    assert loaded.encode(REPORTS) == tokenizer.encode(REPORTS)
    assert loaded.sep_id not in loaded.encode(["[SEP]"])[0]
    assert np.array_equal(loaded.ordinary_ids, tokenizer.ordinary_ids)


@pytest.mark.parametrize("reader", [AutoTokenizer, BertTokenizerFast])
def test_saved_folder_is_read_by_transformers(small: ReportTokenizer, tmp_path: Path, reader: type) -> None:
    small.save(tmp_path)
    theirs = reader.from_pretrained(tmp_path)
    reports = ["No nodules.", "heart", "lungs no xyz", ""]
    assert [theirs(report, add_special_tokens=False).input_ids for report in reports] == small.encode(reports)
    assert theirs("no lung").input_ids == [small.cls_id, *small.encode(["no lung"])[0], small.sep_id]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (small.pad_id, small.mask_id)
    assert theirs.model_max_length == 512


def test_vocabularies_are_equal_where_their_tokens_are(small: ReportTokenizer) -> None:
    assert small == ReportTokenizer.from_vocab(VOCAB)
    assert small != ReportTokenizer.from_vocab([*VOCAB, "rib"])
    assert small != VOCAB


def test_training_learns_the_words_that_come_often() -> None:
    reports = ["Clear lungs. No effusion."] * 5 + ["Clear heart."] * 4 + ["xylograph"]
    trained = ReportTokenizer.train(reports, vocab_size=200)
    assert list(vocab_of(trained))[:5] == list(SPECIAL_TOKENS)
    assert trained.tokens(trained.encode(["clear lungs."])[0]) == ["clear", "lungs", "."]
    assert len(trained.encode(["xylograph"])[0]) > 1, "seen once: spelled in pieces"
    assert ReportTokenizer.train(reports, vocab_size=45).vocab_size <= 45


def test_training_again_gives_the_same_ids() -> None:
    reports = ["Clear lungs. No effusion.", "Clear heart, no pneumothorax.", "The heart is mildly enlarged."] * 5
    vocabularies = {tuple(vocab_of(ReportTokenizer.train(reports, vocab_size=100))) for _ in range(5)}
    assert len(vocabularies) == 1


@pytest.mark.parametrize("reports", [[], ["", "   "]])
def test_training_without_text_is_refused(reports: list[str]) -> None:
    with pytest.raises(ValueError, match="no text"):
        ReportTokenizer.train(reports)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_vocabulary_without_a_special_token_is_refused(tmp_path: Path, token: str, form: str) -> None:
    path = tmp_path / form
    if form == "vocab.txt":
        path.write_text("".join(f"{word}\n" for word in VOCAB if word != token), encoding="utf-8")
    else:
        written = json.loads(ReportTokenizer.from_vocab(VOCAB).to_json())
        written["added_tokens"] = [added for added in written["added_tokens"] if added["content"] != token]
        del written["model"]["vocab"][token]
        path.write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path} has no {token}")) as caught:
        ReportTokenizer.load(str(path))
    one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{nonsense"),
        ("tokenizer.json", b"\xff\xfe\x00\x80"),
        ("tokenizer.json", b""),
        ("vocab.txt", b"\xff\xfe\x00\x80"),
        ("vocab.txt", b""),
    ],
)
def test_broken_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        ReportTokenizer.load(str(path))
    one_line(caught.value)


def test_broken_text_of_a_tokenizer_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="embedded tokenizer"):
        ReportTokenizer.load('{"version": "1.0"')


@pytest.mark.parametrize("source", ["no/such/vocab.txt", "./nowhere", "", "an empty folder", "owner/name"])
def test_missing_tokenizer_is_one_line(tmp_path: Path, source: str) -> None:
    where = str(tmp_path) if source == "an empty folder" else source
    with pytest.raises(FileNotFoundError, match=f"tokenizer.*{re.escape(where)}") as caught:
        ReportTokenizer.load(where)
    one_line(caught.value)


def reports_of_open_i(shared_data: Path, count: int) -> list[str]:
    with tarfile.open(shared_data / "openi_reports" / "NLMCXR_reports.tgz") as archive:
        texts = []
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                xml = file.read().decode("utf-8")
                texts += re.findall(r'<AbstractText Label="FINDINGS">([^<]+)<', xml)
            if len(texts) >= count:
                break
    return texts


def test_ids_of_real_reports_are_berts(shared_data: Path) -> None:
    path = shared_data / "bert-base-uncased" / "vocab.txt"
    ours = ReportTokenizer.load(str(path))
    assert ours.vocab_size == 30522
    # As published.
    assert [ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id] == [0, 100, 101, 102, 103]
    assert ours.encode(["No chest the HEART"]) == [[2053, 3108, 1996, 2540]]

    theirs = BertTokenizer.from_pretrained(path.parent, do_lower_case=True)  # transformers 5.0 does not by itself
    vocab = {token: index for index, token in enumerate(path.read_text(encoding="utf-8").splitlines())}
    assert len(ours.ordinary_ids) == 30522 - 5 - sum(token.startswith("[unused") for token in vocab)
    reports = reports_of_open_i(shared_data, 50)
    assert len(reports) >= 50
    assert sum(map(len, reports)) > 5000
    encoded = ours.encode(reports)
    for report, ids in zip(reports, encoded, strict=True):
        assert ids == theirs(report, add_special_tokens=False).input_ids
        assert ids == wordpiece(report, vocab)


# --- masking


def masked(
    rows: list[list[int]],
    tokenizer: ReportTokenizer,
    seeds: list[int] | None = None,
    predicted: list[bool] | None = None,
    width: int | None = None,
    probability: float = 0.15,
) -> MaskedTokens:
    """Mask rows of words, each with SEP after it and padding to the longest, or to ``width``."""
    lengths = torch.tensor([len(row) + 1 for row in rows])
    width = width or int(lengths.max())
    ids = torch.full((len(rows), width), tokenizer.pad_id)
    for index, row in enumerate(rows):
        ids[index, : len(row) + 1] = torch.tensor([*row, tokenizer.sep_id])
    text_mask = torch.arange(width) < lengths[:, None]
    before = ids.clone()
    result = mask_tokens(
        ids,
        text_mask,
        torch.tensor(seeds or list(range(len(rows)))),
        tokenizer,
        torch.tensor(predicted or [True] * len(rows)),
        probability,
    )
    assert torch.equal(ids, before), "the batch itself stays as it is"
    return result


def words(tokenizer: ReportTokenizer, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.choice(tokenizer.ordinary_ids, length).tolist() for length in lengths]


def test_eighty_ten_ten(tokenizer: ReportTokenizer) -> None:
    rows = words(tokenizer, *[400] * 500)
    result = masked(rows, tokenizer)
    num_words, num_chosen = 200_000, len(result.positions)
    actual = result.input_ids.flatten()[result.positions]
    is_mask, is_kept = actual == tokenizer.mask_id, actual == result.targets
    is_random = ~is_mask & ~is_kept
    by_chance = 0.1 / len(tokenizer.ordinary_ids)  # a random token may be the word itself
    assert num_chosen / num_words == pytest.approx(0.15, abs=0.004)
    assert is_mask.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert is_kept.float().mean().item() == pytest.approx(0.1 + by_chance, abs=0.008)
    assert is_random.float().mean().item() == pytest.approx(0.1 - by_chance, abs=0.008)
    # Random tokens are drawn from all words alike: each of 267 about 11 times.
    counts = torch.bincount(actual[is_random], minlength=tokenizer.vocab_size)
    assert counts[tokenizer.ordinary_ids].min() > 0
    assert counts.sum() == counts[tokenizer.ordinary_ids].sum()
    # Every position of a report has the same chance.
    share = torch.bincount(result.positions % 401, minlength=401)[:400] / 500
    assert share[:200].mean().item() == pytest.approx(share[200:].mean().item(), abs=0.01)


def test_random_words_are_no_unused_tokens(small: ReportTokenizer) -> None:
    result = masked(words(small, *[100] * 100), small, probability=0.9)
    actual = set(result.input_ids.flatten().tolist())
    assert actual == {*small.ordinary_ids.tolist(), small.mask_id, small.sep_id, small.pad_id} - {small.pad_id}


@pytest.mark.parametrize("special", ["pad_id", "unk_id", "cls_id", "sep_id", "mask_id"])
def test_special_tokens_are_never_chosen(small: ReportTokenizer, special: str) -> None:
    token, word = getattr(small, special), int(small.ordinary_ids[0])
    result = masked([[word, token, word, token]], small, probability=1.0)
    assert result.positions.tolist() == [0, 2]
    assert result.input_ids[0, [1, 3]].tolist() == [token, token]


def test_padding_is_never_chosen_whatever_its_ids(small: ReportTokenizer) -> None:
    word = int(small.ordinary_ids[0])
    ids, text_mask = torch.full((1, 6), word), torch.tensor([[True, True, True, False, False, False]])
    result = mask_tokens(ids, text_mask, torch.tensor([0]), small, torch.tensor([True]), probability=1.0)
    assert result.positions.tolist() == [0, 1, 2]
    assert (result.input_ids[0, 3:] == word).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 2**62), st.sampled_from([0.0, 0.15, 1.0]))
def test_each_report_that_has_words_loses_at_least_one(lengths: list[int], seed: int, probability: float) -> None:
    tokenizer = ReportTokenizer.load("synthetic")
    rows = words(tokenizer, *lengths)
    result = masked(rows, tokenizer, seeds=[seed + row for row in range(len(rows))], probability=probability)
    width = result.input_ids.shape[1]
    for row, length in enumerate(lengths):
        num_chosen = int((result.positions // width == row).sum())
        assert min(1, length) <= num_chosen <= length
        if probability == 0.0:
            assert num_chosen == min(1, length)
        if probability == 1.0:
            assert num_chosen == length


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(0, 40), st.data())
def test_a_reports_draw_follows_from_its_seed_alone(lengths: list[int], padding: int, data: st.DataObject) -> None:
    tokenizer = ReportTokenizer.load("synthetic")
    seeds = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(lengths), max_size=len(lengths)))
    rows = words(tokenizer, *lengths)
    together = masked(rows, tokenizer, seeds, width=max(lengths) + 1 + padding)
    width = together.input_ids.shape[1]
    for index, row in enumerate(rows):
        alone = masked([row], tokenizer, [seeds[index]])
        is_here = together.positions // width == index
        assert torch.equal(together.positions[is_here] % width, alone.positions)
        assert torch.equal(together.targets[is_here], alone.targets)
        assert torch.equal(together.input_ids[index, : len(row) + 1], alone.input_ids[0])


def test_another_seed_masks_other_tokens(tokenizer: ReportTokenizer) -> None:
    row = words(tokenizer, 60)[0]
    result = masked([row] * 20, tokenizer, seeds=list(range(20)))
    assert len({tuple(hidden) for hidden in result.input_ids.tolist()}) == 20


def test_positions_and_targets_tell_what_was_hidden(tokenizer: ReportTokenizer) -> None:
    rows = words(tokenizer, 30, 7, 0, 50)
    result = masked(rows, tokenizer)
    assert result.input_ids.dtype == result.positions.dtype == result.targets.dtype == torch.int64
    original = torch.full((4, 51), tokenizer.pad_id)
    for index, row in enumerate(rows):
        original[index, : len(row) + 1] = torch.tensor([*row, tokenizer.sep_id])
    assert result.positions.tolist() == sorted(set(result.positions.tolist()))
    assert torch.equal(result.targets, original.flatten()[result.positions])
    changed = (result.input_ids != original).flatten().nonzero()[:, 0]
    assert set(changed.tolist()) <= set(result.positions.tolist())
    assert len(changed) > 0


def test_rows_that_are_not_predicted_are_hidden_all_the_same(tokenizer: ReportTokenizer) -> None:
    rows = words(tokenizer, 40, 40, 40)
    everything = masked(rows, tokenizer)
    some = masked(rows, tokenizer, predicted=[True, False, True])
    nothing = masked(rows, tokenizer, predicted=[False, False, False])
    assert torch.equal(some.input_ids, everything.input_ids)
    assert torch.equal(nothing.input_ids, everything.input_ids)
    in_some = everything.positions // 41 != 1
    assert torch.equal(some.positions, everything.positions[in_some])
    assert torch.equal(some.targets, everything.targets[in_some])
    assert len(nothing.positions) == len(nothing.targets) == 0


# --- modules


def test_report_embedding_adds_word_position_and_semantics() -> None:
    embedding = ReportEmbedding(vocab_size=9, max_tokens=4, hidden_size=3)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    ids = torch.tensor([[7, 7, 2], [0, 8, 7]])
    embedded = embedding(ids)
    for row in range(2):
        for position in range(3):  # positions count from 0 at the first word
            expected = embedding.word.weight[ids[row, position]] + embedding.position[position] + embedding.semantic
            torch.testing.assert_close(embedded[row, position], expected)


def test_text_longer_than_the_table_is_refused() -> None:
    embedding = ReportEmbedding(vocab_size=9, max_tokens=4, hidden_size=3)
    assert embedding(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 3)
    with pytest.raises(ValueError, match=r"5 tokens .* longer than the 4"):
        embedding(torch.zeros(1, 5, dtype=torch.int64))


def mlm_head(eps: float = 0.1) -> tuple[LanguageModellingHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = LanguageModellingHead(hidden_size=6, vocab_size=11, layer_norm_eps=eps).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head, torch.randn(5, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64, requires_grad=True)


def test_mlm_head_is_berts_formula() -> None:
    head, hidden, words_embedded = mlm_head()
    x = hidden @ head.dense.weight.T + head.dense.bias
    x = x * 0.5 * (1 + torch.special.erf(x / 2**0.5))
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 0.1) * head.norm.weight + head.norm.bias
    torch.testing.assert_close(head(hidden, words_embedded), x @ words_embedded.T + head.bias)


def test_mlm_heads_matrix_is_the_word_embedding_and_learns_with_it() -> None:
    head, hidden, words_embedded = mlm_head()
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "dense.weight": (6, 6),
        "dense.bias": (6,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "bias": (11,),
    }
    head(hidden, words_embedded)[:, 4].sum().backward()
    gradient = words_embedded.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [4]
