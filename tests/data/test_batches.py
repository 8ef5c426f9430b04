"""Non-matching reports, the plan of batches, their order and their making."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl.batch import FINDINGS
from medvill_pl.data.batches import PairDataset, QuestionDataset
from medvill_pl.data.negatives import NonMatchingIndex, index_negatives
from medvill_pl.data.plan import BatchPlan, BatchRequest, PairSampler
from medvill_pl.tokenizer import ReportTokenizer

NAN = float("nan")


@dataclass
class ListedExamples:
    """Pairs in memory; the image of a pair has its index as its only value."""

    reports: list[str]
    labels: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.ids = [f"id {index}" for index in range(len(self.reports))]

    def image(self, index: int) -> Tensor:
        return torch.full((1, 8, 8), index, dtype=torch.uint8)


def labels_of(*rows: dict[str, float]) -> NDArray[np.float32]:
    """Labels of some findings; the others are not mentioned."""
    return np.array([[row.get(finding, NAN) for finding in FINDINGS] for row in rows], np.float32)


def draws(index: NonMatchingIndex, of: int, number: int = 200) -> set[int]:
    """All that is drawn for one pair."""
    return set(index.draw(np.full(number, of), np.random.default_rng(0)).tolist())


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(-3, 3), min_size=2, max_size=30).filter(lambda keys: len(set(keys)) > 1))
def test_no_draw_has_the_key_of_its_pair(keys: list[int]) -> None:
    array = np.array(keys)
    index = NonMatchingIndex(array)
    asked = np.tile(np.arange(len(keys)), 20)
    drawn = index.draw(asked, np.random.default_rng(0))
    assert (array[drawn] != array[asked]).all()
    assert index.num_keys == len(set(keys))


@pytest.mark.parametrize("of", range(6))
def test_all_admissible_pairs_are_equally_likely(of: int) -> None:
    keys = np.array([7, -3, 7, 5, -3, 7])
    admissible = keys != keys[of]
    number = 20_000
    drawn = NonMatchingIndex(keys).draw(np.full(number, of), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=6)
    expected = number * admissible / admissible.sum()
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max()))
    assert (counts[~admissible] == 0).all()


def test_labels_match_where_the_positive_ones_are_the_same() -> None:
    labels = labels_of(
        {"Edema": 1},
        {"Edema": 1, "Fracture": -1},  # uncertain is not positive
        {"Edema": 1, "Fracture": 0},
        {"Edema": 1, "Fracture": 1},
        {"Fracture": 1},
        {},
    )
    index = index_negatives(ListedExamples([f"text {n}" for n in range(6)], labels), "labels", "train")
    assert index is not None
    assert [draws(index, of) for of in range(6)] == [{3, 4, 5}] * 3 + [
        {0, 1, 2, 4, 5},
        {0, 1, 2, 3, 5},
        {0, 1, 2, 3, 4},
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([1, 0, -1, NAN]), min_size=14, max_size=14), min_size=2, max_size=12),
)
def test_every_set_of_positive_labels_is_a_key_of_its_own(rows: list[list[float]]) -> None:
    sets = {frozenset(place for place, value in enumerate(row) if value == 1) for row in rows}
    examples = ListedExamples([""] * len(rows), np.array(rows, np.float32))
    assume(len(sets) > 1)
    index = index_negatives(examples, "labels", "train")
    assert index is not None
    assert index.num_keys == len(sets)


def test_text_matches_where_it_differs_in_case_and_spaces_only() -> None:
    reports = ["No edema.", "no  EDEMA.\n", "Edema.", "No edema"]
    index = index_negatives(ListedExamples(reports, labels_of({}, {}, {}, {})), "text", "train")
    assert index is not None
    assert [draws(index, of) for of in range(4)] == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]


def test_no_negatives_need_no_index() -> None:
    assert index_negatives(ListedExamples(["Same.", "Same."], labels_of({}, {})), "none", "train") is None


def test_text_stands_in_for_labels_where_there_are_none() -> None:
    examples = ListedExamples(["One.", "Two.", "One."], labels_of({}, {}, {}))
    with pytest.warns(UserWarning, match="the val split has no labels: reports with a different text"):
        index = index_negatives(examples, "labels", "val")
    assert index is not None
    assert draws(index, 0) == {1}


@pytest.mark.parametrize(
    ("negatives", "labels", "message"),
    [
        ("labels", [{"Edema": 1}, {"Edema": 1, "Fracture": 0}], "one set of positive labels.*negatives to 'text'"),
        ("labels", [{"Edema": 0}, {}], "one set of positive labels"),  # labelled, with no positive one
        ("text", [{"Edema": 1}, {"Edema": 0}], "one text"),
    ],
)
def test_a_split_of_one_key_is_refused(negatives: str, labels: list[dict[str, float]], message: str) -> None:
    examples = ListedExamples(["Same.", "same."], labels_of(*labels))
    with pytest.raises(ValueError, match=f"all pairs of the test split have {message}"):
        index_negatives(examples, negatives, "test")  # type: ignore[arg-type]


@dataclass
class Case:
    """A plan, and the key of each pair that its negatives were made from."""

    plan: BatchPlan
    keys: NDArray[np.int64] | None

    def parts(self, epoch: int | None) -> list[list[BatchRequest]]:
        """The batches of each process, of a training epoch or of evaluation."""
        position = None if epoch is None else lambda: (epoch, 0)
        ranks = range(self.plan.num_replicas)
        return [list(PairSampler(self.plan, rank, epoch is not None, position)) for rank in ranks]


def make_case(
    number: int, batch_size: int, replicas: int, bucket: int = 1, seed: int = 0, has_negatives: bool = True
) -> Case:
    """A plan over pairs with random lengths of text and two or three keys."""
    rng = np.random.default_rng(seed)
    keys = rng.permutation(np.arange(number) % 3) if has_negatives and number > 1 else None
    negatives = None if keys is None else NonMatchingIndex(keys)
    return Case(BatchPlan(rng.integers(1, 60, number), negatives, batch_size, replicas, seed, bucket), keys)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    replicas = draw(st.integers(1, 4))
    return make_case(
        draw(st.integers(replicas, 70)),
        draw(st.integers(1, 7)),
        replicas,
        draw(st.integers(1, 5)),
        draw(st.integers(0, 3)),
        draw(st.booleans()),
    )


def pairs_of(parts: list[list[BatchRequest]]) -> list[tuple[int, int]]:
    """Image and report of every pair that any process gets."""
    return [pair for batches in parts for batch in batches for pair in zip(batch.images, batch.reports, strict=True)]


def as_lists(batches: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> list[tuple[list[int], list[int]]]:
    return [(images.tolist(), reports.tolist()) for images, reports in batches]


@settings(max_examples=80, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_training_plan_uses_images_once_in_equal_parts(case: Case, epoch: int) -> None:
    plan = case.plan
    parts, number = case.parts(epoch), len(plan.lengths)
    images = [image for image, _ in pairs_of(parts)]
    assert len(set(images)) == len(images)
    assert set(images) <= set(range(number))
    size = min(plan.batch_size, number // plan.num_replicas)
    assert {len(batch.images) for batches in parts for batch in batches} == {size}
    assert len({len(batches) for batches in parts}) == 1
    assert number - len(images) < size * plan.num_replicas


@settings(max_examples=80, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_training_plan_halves_every_part_of_a_batch(case: Case, epoch: int) -> None:
    parts = case.parts(epoch)
    if case.keys is None:
        assert all(image == report for image, report in pairs_of(parts))
        return
    assert all(image == report or case.keys[image] != case.keys[report] for image, report in pairs_of(parts))
    for batches in parts:
        surplus = [2 * int(np.equal(batch.images, batch.reports).sum()) - len(batch.images) for batch in batches]
        if len(batches[0].images) % 2 == 0:
            assert set(surplus) == {0}
        else:
            assert set(surplus) <= {-1, 1}
            assert abs(sum(surplus)) <= 1  # the odd one out alternates


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_bucketing_rearranges_the_pairs_and_changes_none(case: Case, epoch: int) -> None:
    unsorted = Case(replace(case.plan, bucket_batches=1), case.keys)
    assert sorted(pairs_of(case.parts(epoch))) == sorted(pairs_of(unsorted.parts(epoch)))


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_training_plan_is_a_pure_function(case: Case, epoch: int) -> None:
    again = replace(case.plan)
    again.train(epoch + 1)  # an epoch is planned alike whatever was planned before
    assert as_lists(again.train(epoch)) == as_lists(case.plan.train(epoch))


@pytest.mark.parametrize("bucket", [1, 4])
def test_epochs_and_seeds_differ(bucket: int) -> None:
    plan = make_case(60, 4, 2, bucket).plan
    orders = [as_lists(plan.train(epoch)) for epoch in range(4)]
    orders.append(as_lists(replace(plan, seed=plan.seed + 1).train(0)))
    assert all(one != other for place, one in enumerate(orders) for other in orders[:place])
    partners = [
        {image: report for images, reports in order for image, report in zip(images, reports, strict=True)}
        for order in orders
    ]
    assert all(one != other for place, one in enumerate(partners) for other in partners[:place])


def test_the_remainder_is_another_one_every_epoch() -> None:
    plan = make_case(11, 4, 2).plan
    left_out = [set(range(11)) - {int(i) for images, _ in plan.train(epoch) for i in images} for epoch in range(40)]
    assert {len(left) for left in left_out} == {3}
    assert set.union(*left_out) == set(range(11))


def padding(case: Case, epoch: int) -> int:
    """Tokens of padding over an epoch."""
    lengths = case.plan.lengths
    parts = [lengths[batch.reports] for batches in case.parts(epoch) for batch in batches]
    return sum(int((part.max() - part).sum()) for part in parts)


@pytest.mark.parametrize("replicas", [1, 2])
def test_larger_buckets_save_padding(replicas: int) -> None:
    one, four, all_in_one = (padding(make_case(480, 8, replicas, bucket), 0) for bucket in (1, 4, 1000))
    assert four < 0.5 * one
    assert all_in_one < 0.3 * four


def test_batches_of_like_texts_come_in_no_order_of_length() -> None:
    case = make_case(480, 8, 1, 1000, has_negatives=False)
    means = [case.plan.lengths[reports].mean() for _, reports in case.plan.train(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_evaluation_visits_every_image_once_in_even_batches(case: Case) -> None:
    plan, parts = case.plan, case.parts(None)
    number = len(plan.lengths)
    assert sorted(image for image, _ in pairs_of(parts)) == list(range(number))
    assert len({len(batches) for batches in parts}) == 1
    sizes = [len(batch.images) for batches in parts for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    # Where the pairs cannot be dealt out evenly, a process that has one more of them puts it into a full batch.
    assert max(sizes) <= plan.batch_size + (number % plan.num_replicas > 0)
    for batches in parts:
        lengths = [plan.lengths[batch.reports] for batch in batches]
        assert (np.diff(np.concatenate(lengths)) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(case=cases(), replicas=st.integers(1, 4), batch_size=st.integers(1, 9))
def test_evaluation_pairs_alike_whatever_the_number_of_processes(case: Case, replicas: int, batch_size: int) -> None:
    number = len(case.plan.lengths)
    pairs = dict(pairs_of(case.parts(None)))
    other = replace(case.plan, num_replicas=min(replicas, number), batch_size=batch_size, bucket_batches=9)
    assert pairs == dict(pairs_of(Case(other, case.keys).parts(None)))
    non_matching = {image: report for image, report in pairs.items() if image != report}
    assert len(non_matching) == (0 if case.keys is None else number // 2)
    assert all(case.keys[image] != case.keys[report] for image, report in non_matching.items())  # type: ignore[index]


def test_parts_of_the_processes_are_the_plan() -> None:
    case = make_case(50, 4, 3, bucket=2)
    for plan, parts in ((case.plan.train(2), case.parts(2)), (case.plan.evaluate(), case.parts(None))):
        assert len(plan) == len(parts[0]) > 2
        for (images, reports), *batches in zip(plan, *parts, strict=True):
            dealt = [pair for batch in batches for pair in zip(batch.images, batch.reports, strict=True)]
            assert sorted(dealt) == sorted(zip(images.tolist(), reports.tolist(), strict=True))


def test_sampler_begins_at_the_position_of_the_moment() -> None:
    plan = make_case(50, 4, 2).plan
    place = (0, 0)
    sampler = PairSampler(plan, 1, True, lambda: place)
    whole = {epoch: list(PairSampler(plan, 1, True, lambda epoch=epoch: (epoch, 0))) for epoch in (0, 3)}
    assert list(sampler) == whole[0]
    place = (3, 2)
    sampler.set_epoch(7)  # the position is what counts
    assert list(sampler) == whole[3][2:]
    assert {request.epoch for request in sampler} == {3}
    assert len(sampler) == len(whole[3]) == 6  # the length of the epoch, wherever it begins


def test_sampler_without_a_position_follows_the_epoch_it_is_told() -> None:
    case = make_case(50, 4, 2)
    sampler = PairSampler(case.plan, 0, True)
    assert list(sampler) == case.parts(0)[0]
    sampler.set_epoch(5)
    assert list(sampler) == case.parts(5)[0]


def test_evaluation_knows_no_epochs() -> None:
    sampler = PairSampler(make_case(50, 4, 2).plan, 0, False)
    first = list(sampler)
    sampler.set_epoch(5)
    assert list(sampler) == first
    assert {request.epoch for request in first} == {0}


@pytest.mark.parametrize("is_training", [True, False])
def test_fewer_pairs_than_processes_are_refused(is_training: bool) -> None:
    with pytest.raises(ValueError, match="2 pairs are too few for 3 processes"):
        PairSampler(make_case(2, 4, 3).plan, 0, is_training)


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "edema", "seen", "."]
    return ReportTokenizer.from_vocab(words)


SEP, NO, EDEMA, SEEN, DOT = 3, 5, 6, 7, 8
REPORTS = ["No edema seen.", "Edema.", "", "No edema. No edema."]
LABELS = labels_of({"Edema": 0}, {"Edema": 1}, {}, {"Edema": -1})


def make_dataset(tokenizer: ReportTokenizer, max_tokens: int = 10, split: str = "train", seed: int = 0) -> PairDataset:
    return PairDataset(ListedExamples(REPORTS, LABELS), REPORTS, tokenizer, max_tokens, split, seed)  # type: ignore[arg-type]


def test_batch_by_hand(tokenizer: ReportTokenizer) -> None:
    dataset = make_dataset(tokenizer)
    assert len(dataset) == 4
    assert dataset.lengths.tolist() == [5, 3, 1, 7]
    batch = dataset[BatchRequest(0, [1, 3, 2], [1, 0, 2])]
    assert batch["id"] == ["id 1", "id 3", "id 2"]
    # Padded to the longest of the batch, which is shorter than the longest of all.
    expected = torch.tensor([[EDEMA, DOT, SEP, 0, 0], [NO, EDEMA, SEEN, DOT, SEP], [SEP, 0, 0, 0, 0]])
    torch.testing.assert_close(batch["input_ids"], expected)
    torch.testing.assert_close(batch["text_mask"], expected > 0)
    torch.testing.assert_close(
        batch["image"], torch.tensor([1, 3, 2]).to(torch.uint8).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    )
    torch.testing.assert_close(batch["labels"], torch.from_numpy(LABELS[[1, 3, 2]]), equal_nan=True)
    torch.testing.assert_close(batch["matched"], torch.tensor([True, False, True]))
    assert (batch["seed"].dtype, batch["seed"].shape) == (torch.int64, (3,))


def test_empty_report_is_just_sep(tokenizer: ReportTokenizer) -> None:
    batch = make_dataset(tokenizer)[BatchRequest(0, [2], [2])]
    assert batch["input_ids"].tolist() == [[SEP]]
    assert batch["text_mask"].tolist() == [[True]]


@pytest.mark.parametrize(("max_tokens", "num_truncated"), [(2, 2), (3, 2), (4, 1), (5, 1), (6, 0)])
def test_long_reports_are_truncated_and_counted_once(
    max_tokens: int, num_truncated: int, tokenizer: ReportTokenizer
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = make_dataset(tokenizer, max_tokens, "val")
        batch = dataset[BatchRequest(0, [0, 1, 2, 3], [0, 1, 2, 3])]
    assert dataset.num_truncated == num_truncated
    said = [str(warning.message) for warning in caught if "truncated" in str(warning.message)]
    expected = f"{num_truncated} of 4 texts of the val split are longer than {max_tokens} tokens and were truncated"
    assert said == ([expected] if num_truncated else [])
    whole = [[NO, EDEMA, SEEN, DOT], [EDEMA, DOT], [], [NO, EDEMA, DOT, NO, EDEMA, DOT]]
    for ids, mask, words in zip(batch["input_ids"], batch["text_mask"], whole, strict=True):
        assert ids[mask].tolist() == [*words[:max_tokens], SEP]


def test_seed_of_a_pair_follows_from_run_split_epoch_and_index_alone(tokenizer: ReportTokenizer) -> None:
    seeds = {
        (seed, split, epoch, index): int(
            make_dataset(tokenizer, split=split, seed=seed)[BatchRequest(epoch, [index], [index])]["seed"]
        )
        for seed in (0, 1)
        for split in ("train", "val")
        for epoch in (0, 1)
        for index in range(4)
    }
    assert len(set(seeds.values())) == len(seeds)
    together = make_dataset(tokenizer, split="val", seed=1)[BatchRequest(1, [3, 0, 2], [1, 0, 3])]
    assert together["seed"].tolist() == [seeds[1, "val", 1, index] for index in (3, 0, 2)]


class ListedQuestions(ListedExamples):
    """Questions in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.questions = ["no edema seen.", "edema.", "edema seen.", "seen."]
        self.answers = ["yes", "no", "left", "no"]
        self.answer_types = ["closed", "closed", "open", "closed"]
        self.question_types = ["presence", "presence", "side", "presence"]
        self.organs = ["chest", "head", "chest", "abdomen"]


def make_questions(tokenizer: ReportTokenizer, split: str, max_tokens: int = 10) -> QuestionDataset:
    return QuestionDataset(ListedQuestions(REPORTS, LABELS), tokenizer, max_tokens, split, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_batch_of_questions_by_hand(split: str, tokenizer: ReportTokenizer) -> None:
    dataset = make_questions(tokenizer, split)
    assert dataset.lengths.tolist() == [5, 3, 4, 3]  # of the questions, not of the reports
    batch = dataset[BatchRequest(0, [2, 0], [2, 0])]
    assert batch["input_ids"].tolist() == [[EDEMA, SEEN, DOT, SEP, 0], [NO, EDEMA, SEEN, DOT, SEP]]
    assert batch["answer"] == ["left", "yes"]
    assert batch["answer_type"] == ["open", "closed"]
    assert batch["question_type"] == ["side", "presence"]
    assert batch["organ"] == ["chest", "chest"]
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0]
    assert batch.get("report") == (None if split == "train" else ["edema seen.", "no edema seen."])
    assert ("other_image" in batch) == (split == "test")


def test_other_image_is_that_of_another_question_and_each_serves_once(tokenizer: ReportTokenizer) -> None:
    batch = make_questions(tokenizer, "test")[BatchRequest(0, [0, 1, 2, 3], [0, 1, 2, 3])]
    own, other = (batch[name][:, 0, 0, 0].tolist() for name in ("image", "other_image"))  # type: ignore[literal-required]
    assert sorted(other) == sorted(own)
    assert all(a != b for a, b in zip(own, other, strict=True))


def test_long_questions_are_truncated(tokenizer: ReportTokenizer) -> None:
    with pytest.warns(UserWarning, match="2 of 4 texts of the test split are longer than 2 tokens and were truncated"):
        batch = make_questions(tokenizer, "test", max_tokens=2)[BatchRequest(0, [0, 1], [0, 1])]
    assert batch["input_ids"].tolist() == [[NO, EDEMA, SEP], [EDEMA, DOT, SEP]]
    assert batch["is_truncated"].tolist() == [True, False]
